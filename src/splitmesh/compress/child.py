"""A recipe for a child process: bytes and paths in, files out.

What the compressor and the command line run through ``kernel.jobs.run_job``. Pictures never become part of a result:
those that the leakage step draws stay in files beside it. Knows no process, no registry and no step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from splitmesh.compress.engine import RESULT, over_budget, run_held
from splitmesh.compress.kept import Kept, remove, storage_errors
from splitmesh.compress.load_samples import load_folder
from splitmesh.compress.needs import check
from splitmesh.compress.recipe import Recipe
from splitmesh.compress.report import Report
from splitmesh.compress.work import Progress, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.calibration import Calibration, unpack_calibration
from splitmesh.model.lineage import Lineage, program_version
from splitmesh.model.manifest import MANIFEST, Manifest

PICTURES = "pictures"
"""The folder of what the leakage step drew; it stays on this machine."""


@dataclass(frozen=True, slots=True)
class Result:
    """A recipe's outcome on disk, small enough to come out of a child process."""

    files: Mapping[str, Path]
    """Every file of the version, by name."""
    pictures: Mapping[str, Path]
    """PNG files by caption; for the page on this machine, never for a registry."""
    report: Report

    def lineage(self, recipe: Recipe, task: str = "") -> Lineage:
        """Of the version that it becomes."""
        return Lineage(
            task=task,
            code_version=program_version(),
            recipe_sha256=recipe.digest(),
            seeds=(recipe.seed,),
            metrics=self.report.figures(),
        )

    def error(self) -> MeshError | None:
        """MeshError BUDGET_EXCEEDED for a result that must not be registered; None within the budget."""
        return over_budget(self.report)


def run_in(
    folder: str | os.PathLike[str],
    source: Mapping[str, bytes] | str | os.PathLike[str],
    calibration: bytes | str | os.PathLike[str],
    recipe: str,
    model: str,
    threads: int = 1,
    limit: int | None = None,
    split: str = "",
    *,
    progress: Progress,
) -> Result:
    """:func:`engine.run` for a child process: everything comes as bytes or paths, and the version stays in files.

    Args:
        folder: as for :func:`engine.run`.
        source: the version's files by name, manifest included, or the folder that holds them.
        calibration: ``calibration.safetensors`` as bytes or file, or a folder of samples (``load_samples``).
        recipe: ``Recipe.model_dump_json()``.
        model: a name for the report.
        threads: of every session and of torch.
        limit: at most so many samples of a folder; None: all.
        split: only rows of the folder's table with this entry in its column ``split``; empty: all.
        progress: told the step and the share of the whole.

    Raises as :func:`engine.run`, and what reading the samples raises.
    """
    home, plan = Path(folder), Recipe.model_validate_json(recipe)
    work = read_work(source)
    check(work.manifest, plan)
    progress("read the samples", 0.0)
    spool = home / "spool"
    # The samples too: another process in this folder must not take them away from under us.
    with Kept(home).alone(), storage_errors():
        remove(spool)
        spool.mkdir(parents=True)
        try:
            samples = _read_samples(calibration, work.manifest, spool, limit, split, progress)
            finished = run_held(home, work, samples, plan, model=model, threads=threads, progress=progress)
            del samples
        finally:
            remove(spool)
        files = {name: home / RESULT / name for name in finished.artifacts()}
        return Result(files, _keep_pictures(home, plan, finished.report), finished.report)


def read_work(source: Mapping[str, bytes] | str | os.PathLike[str]) -> Work:
    """A version from its files; MeshError MODEL_INCOMPLETE names what is missing, MODEL_CORRUPT."""
    if isinstance(source, Mapping):
        read: Callable[[str], bytes] = source.__getitem__
    else:
        base = Path(source)

        def read(name: str) -> bytes:
            return (base / name).read_bytes()

    name = MANIFEST
    try:
        manifest = Manifest.from_json(read(MANIFEST))
        files: dict[str, bytes] = {}
        for name in manifest.artifacts():
            files[name] = read(name)
    except (KeyError, FileNotFoundError) as error:
        raise MeshError(Reason.MODEL_INCOMPLETE, f"the version has no {name!r}", metadata={"missing": name}) from error
    return Work(manifest, files)


def _read_samples(
    source: bytes | str | os.PathLike[str],
    manifest: Manifest,
    spool: Path,
    limit: int | None,
    split: str,
    progress: Progress,
) -> Calibration:
    if isinstance(source, bytes):
        return unpack_calibration(source, manifest)

    def advance(done: int, total: int) -> None:
        progress(f"read the samples: {done} of {total}", 0.0)

    return load_folder(Path(source), manifest, spool, limit=limit, split=split, on_progress=advance)


def _keep_pictures(home: Path, recipe: Recipe, report: Report) -> dict[str, Path]:
    """What the leakage step drew, out of its scratch folder, by caption."""
    folder = home / PICTURES
    number = next((index for index, step in enumerate(recipe.steps, start=1) if step.kind == "leakage"), 0)
    remove(folder)
    kept: dict[str, Path] = {}
    for index, entry in enumerate(report.leakage):
        drawn = home / f"work_{number}" / f"cut_{index}.png"
        if drawn.is_file():
            folder.mkdir(exist_ok=True)
            caption = f"{', '.join(entry.cut)} ({entry.codec})"
            kept[caption] = Path(shutil.copy(drawn, folder / drawn.name))
    return kept
