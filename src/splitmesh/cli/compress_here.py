"""A recipe on this machine: in a child process with limits, in a folder that a second call goes on from.

The pictures stay here: the version that comes out holds none. A model is read in the child only, never in the process
that the user's terminal hangs on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.importing import as_onnx
from splitmesh.client.plans import carried_plan
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.compress.recipe import Recipe
from splitmesh.compress.report import Report
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import MIB, Progress, run_job
from splitmesh.model.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from splitmesh.compress.child import Result

DEADLINE_S = 7 * 24 * 3600.0
"""Training on a small host takes hours; a person can stop it at any time."""
MAX_MEMORY_BYTES = 32 * 1024 * MIB
"""Of address space, of which frameworks map far more than they use."""

CREATED_BY = "compress"
SOURCE = "source"
"""The fetched version inside the work folder."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line said."""

    model: str
    """A file, or a name in the registry."""
    recipe: Recipe
    calibration: Path
    out: Path | None = None
    work: Path | None = None
    """None: a folder of this very work below the user's cache, which goes when it is done."""
    labels: Path | None = None
    preprocess: Path | None = None
    limit: int | None = None
    split: str = ""
    threads: int = 1
    fresh: bool = False
    """Forget what an earlier call did."""


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it."""

    report: Report
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG files by caption, for the page."""
    version: int = 0
    """Registered; 0: none."""
    out: Path | None = None
    """Written to."""
    error: MeshError | None = None
    """BUDGET_EXCEEDED; then nothing was registered or written."""


async def compress_file(asked: Asked, on_progress: Progress) -> Made:
    """A recipe for a file; the version is written to ``asked.out``."""
    async with as_onnx(Path(asked.model)) as file:
        with _home(asked, str(Path(asked.model).resolve())) as home:
            result = await run_job(
                run_file,
                *(home, file.path, asked.labels, asked.preprocess, asked.calibration.absolute()),
                *(asked.recipe.model_dump_json(), Path(asked.model).name, asked.threads, asked.limit, asked.split),
                deadline_s=DEADLINE_S,
                max_memory_bytes=MAX_MEMORY_BYTES,
                on_progress=on_progress,
            )
            return _written(asked.out, _made(result), result)


async def compress_version(asked: Asked, on_progress: Progress) -> Made:
    """A recipe for a registered version; the result is a new version, or files in ``asked.out``."""
    async with channels() as opened:
        registry = registry_of(opened)
        version = await find_version(registry, asked.model)
        with _home(asked, f"{version.model}:{version.version}") as home:
            source = await _fetch(registry, version, home / SOURCE)
            result = await run_job(
                run_version,
                *(home, source, asked.calibration.absolute(), asked.recipe.model_dump_json(), version.model),
                *(asked.threads, asked.limit, asked.split),
                deadline_s=DEADLINE_S,
                max_memory_bytes=MAX_MEMORY_BYTES,
                on_progress=on_progress,
            )
            made = _made(result)
            if made.error is not None or asked.out is not None:
                return _written(asked.out, made, result)
            on_progress("register the version", 1.0)
            manifest = Manifest.from_json(result.files[MANIFEST].read_bytes())
            new = await registry.create_version(
                version.model,
                {**result.files, **await carried_plan(registry, version, manifest)},
                parent=version.version,
                created_by=CREATED_BY,
                description=f"version {version.version} with {', '.join(asked.recipe.names())}",
                lineage=result.lineage(asked.recipe),
            )
            return replace(made, version=new.version)


def run_file(
    home: Path,
    model: Path,
    labels: Path | None,
    preprocess: Path | None,
    calibration: Path,
    recipe: str,
    name: str,
    threads: int,
    limit: int | None,
    split: str,
    *,
    progress: Progress,
) -> Result:
    """In the child: the file is checked and becomes a version, then the recipe runs."""
    from splitmesh.cli.model_parts import version_parts
    from splitmesh.compress.child import run_in

    parts = version_parts(model, labels, preprocess, None)
    return run_in(home, parts, calibration, recipe, name, threads, limit, split, progress=progress)


def run_version(
    home: Path,
    source: Path,
    calibration: Path,
    recipe: str,
    name: str,
    threads: int,
    limit: int | None,
    split: str,
    *,
    progress: Progress,
) -> Result:
    """In the child: the recipe on a fetched version."""
    from splitmesh.compress.child import run_in

    return run_in(home, source, calibration, recipe, name, threads, limit, split, progress=progress)


async def _fetch(registry: RegistryClient, version: VersionInfo, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = await registry.fetch(version, MANIFEST)
    (folder / MANIFEST).write_bytes(manifest)
    for name in Manifest.from_json(manifest).artifacts():
        if name not in version.artifacts:
            raise MeshError(Reason.MODEL_INCOMPLETE, f"version {version.version} of {version.model!r} has no {name!r}")
        await registry.pull_to_file(version.artifacts[name], folder / name)
    return folder


@contextmanager
def _home(asked: Asked, model: str) -> Iterator[Path]:
    """The work folder: the same for the same work, so that a second call finds it.

    The user's own stays as it is. One of ours goes when the work is done, and also after a failure that left no finished
    step to go on from. MeshError SERVICE_UNAVAILABLE while another call works in it.
    """
    from splitmesh.compress.kept import held

    if asked.work is not None:
        home = asked.work
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        key = "\n".join([model, asked.recipe.digest(), str(asked.calibration.resolve()), str(asked.limit), asked.split])
        home = cache / "splitmesh" / "compress" / hashlib.sha256(key.encode()).hexdigest()[:20]
        home.mkdir(mode=0o700, parents=True, exist_ok=True)  # pixels lie in it while the samples are used
    # Not the lock of the child, which lives shorter: what is cleared and removed here must be nobody else's.
    with held(home / "call.lock", wait_s=0):
        if asked.fresh:
            _clear(home)
        done = False
        try:
            yield home.absolute()
            done = True
        finally:
            if asked.work is None and (done or not any(home.glob("step_*"))):
                shutil.rmtree(home, ignore_errors=True)


def _clear(home: Path) -> None:
    """Only what a recipe leaves there: the folder may be anybody's."""
    for entry in home.iterdir():
        if entry.name.startswith(("step_", "work_")) or entry.name in ("result", "pictures", "spool", SOURCE):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _made(result: Result) -> Made:
    pictures = {caption: path.read_bytes() for caption, path in result.pictures.items()}
    return Made(result.report, pictures, error=result.error())


def _written(out: Path | None, made: Made, result: Result) -> Made:
    """With the version in ``out``, unless it is over its budget."""
    if made.error is not None or out is None:
        return made
    _write(out, result)
    return replace(made, out=out)


def _write(out: Path, result: Result) -> None:
    from splitmesh.model.artifacts import write_split

    files = {name: path.read_bytes() for name, path in result.files.items()}
    manifest = Manifest.from_json(files.pop(MANIFEST))
    write_split(out, manifest, files)
