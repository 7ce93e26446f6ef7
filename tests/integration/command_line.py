"""The `splitmesh` command as a user starts it, in a process of its own or (quicker) in this one, and files to give it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from splitmesh.cli import main
from splitmesh.kernel.config import ENV_PREFIX
from tests.integration.small_model import LABELS, small_manifest, small_model, small_pictures

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output as one JSON document."""
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Its standard output as JSON lines."""
        assert self.code == 0, self
        return [json.loads(line) for line in self.out.splitlines()]


async def splitmesh(*arguments: object, **settings: str) -> Ended:
    """Run `splitmesh ARGUMENTS` with only these settings in its environment; a warning of Python is an error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from splitmesh.cli import main; main()"),
        *map(str, arguments),
        env=_environment(settings) | {"PYTHONWARNINGS": "error"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, out.decode(), err.decode())


def splitmesh_here(*arguments: object, **settings: str) -> Ended:
    """The same entry point, called in this process, without an event loop around it."""
    with _captured() as (out, err), patch.dict(os.environ, _environment(settings), clear=True):
        try:
            with patch.object(sys, "argv", ["splitmesh", *map(str, arguments)]):
                main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), err.getvalue())


def _environment(settings: dict[str, str]) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return own | {f"{ENV_PREFIX}{name}": value for name, value in settings.items()} | {"COLUMNS": "200"}


@contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        yield out, err


def refused(ended: Ended, reason: str) -> str:
    """The one line of a refusal with this reason code."""
    assert ended.code == 1, ended
    (line,) = ended.err.strip().splitlines()
    assert line.startswith(f"splitmesh: {reason}: "), ended
    return line


def model_files(folder: Path) -> None:
    """`small.onnx`, `labels.json` and `preprocess.json` of the small model."""
    preprocess = small_manifest().preprocess
    assert preprocess is not None
    (folder / "small.onnx").write_bytes(small_model())
    (folder / "labels.json").write_text(json.dumps(LABELS))
    (folder / "preprocess.json").write_text(preprocess.model_dump_json())


def pictures(folder: Path, count: int, *, seed: int = 0) -> Path:
    """A new folder with pictures of the small model."""
    folder.mkdir()
    for number, picture in enumerate(small_pictures(count, seed)):
        Image.fromarray(picture[..., 0]).save(folder / f"{number:04}.png")
    return folder
