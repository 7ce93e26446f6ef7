"""What the documents say is so: blocks marked as runnable run, links and commands lead somewhere, versions agree."""

import asyncio
import importlib.util
import os
import re
import shutil
import sys
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from splitmesh.testing.mesh import LocalMesh, ProcessLauncher
from splitmesh.testing.parts import find_buf, require_part
from tests.support.models import EASY, EASY_LABEL, picture
from tests.support.worlds import MODEL, ROOT, serving

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK_TIMEOUT_S = 60.0

_BLOCK = re.compile(r"^(?P<marked><!-- runs -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_BENCHMARK = re.compile(r"python3? -m (?P<module>benchmarks\.\w+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document marked `<!-- runs -->`."""

    document: str
    number: int
    language: str
    code: str

    def command(self) -> list[str]:
        """How it is run; a console block is what stands behind its prompts."""
        if self.language == "python":
            return [sys.executable, "-W", "error", "-c", self.code]
        prompts = [line[2:] for line in self.code.splitlines() if line.startswith("$ ")]
        script = self.code if self.language in ("bash", "sh") else "\n".join(prompts)
        return ["bash", "-euo", "pipefail", "-c", script]


def _marked(text: str, document: str = "") -> list[Block]:
    return [
        Block(document, number, found["language"], found["code"])
        for number, found in enumerate(_BLOCK.finditer(text), 1)
        if found["marked"]
    ]


README, SDK = "README.md", "docs/sdk.md"
BLOCKS = [block for document in (README, SDK) for block in _marked((ROOT / document).read_text(), document)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[str]:
    """Address of a head that answers, with reflection on."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(registered, folder / "registry")
    services = ("registry", "router", "tail", "head")
    launcher = ProcessLauncher(ROOT, folder / "run")
    async with LocalMesh(launcher, folder, settings={"head": {"models": MODEL}}, services=services) as mesh:
        await serving(mesh.address("head"))
        yield mesh.address("head")


async def _run(block: Block, folder: Path, head: str) -> tuple[int | None, str, str]:
    environment = {**os.environ, "SPLITMESH_HEAD": head}
    if buf := find_buf():
        environment["PATH"] = f"{buf.parent}{os.pathsep}{environment['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *block.command(),
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(BLOCK_TIMEOUT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.document}-{block.number}-{block.language}")
async def test_a_marked_block_runs(block: Block, head: str, tmp_path: Path) -> None:
    if "buf " in block.code:
        require_part("buf", find_buf() is not None)
    (tmp_path / "joint.jpg").write_bytes(picture(EASY, kind="JPEG"))
    code, out, err = await _run(block, tmp_path, head)
    assert (code, err) == (0, ""), out
    assert EASY_LABEL in out


def test_the_readme_shows_both_clients_and_a_foreign_one() -> None:
    blocks = [block for block in BLOCKS if block.document == README]
    assert sum(block.language == "python" for block in blocks) >= 2
    assert any(block.language == "bash" for block in blocks)
    assert {block.language for block in BLOCKS} <= {"python", "bash", "sh", "console"}


def test_blocks_are_found_by_their_mark() -> None:
    text = (
        "<!-- runs -->\n```python\nprint(1)\n```\n\n```python\nno\n```\n<!-- runs -->\n```console\n$ a\n1\n$ b\n```\n"
    )
    first, second = _marked(text)
    assert (first.language, first.code, second.number) == ("python", "print(1)\n", 3)
    assert second.command()[-1] == "a\nb"


@pytest.mark.parametrize("document", [README, SDK])
def test_every_mark_has_its_block(document: str) -> None:
    marks = (ROOT / document).read_text().count("<!-- runs -->")
    assert marks == sum(block.document == document for block in BLOCKS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    targets = {found["target"] for found in _LINK.finditer(_prose(document))}
    relative = {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)}
    missing = sorted(target for target in relative if not (document.parent / target).exists())
    assert missing == []


def _prose(document: Path) -> str:
    """The text without its blocks of code, where brackets mean other things."""
    return _BLOCK.sub("", document.read_text())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_benchmark_a_document_names_exists(document: Path) -> None:
    named = {found["module"] for found in _BENCHMARK.finditer(document.read_text())}
    missing = sorted(module for module in named if not importlib.util.find_spec(module))
    assert missing == []


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found = re.search(r"^## \[?(?P<version>\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found["version"] == version
