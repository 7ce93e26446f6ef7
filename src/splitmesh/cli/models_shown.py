"""Versions as people read them: one line, tables of parts and signatures, and bars while bytes move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from splitmesh.cli.output import show_json, show_table
from splitmesh.client.registry import VersionInfo
from splitmesh.model.alternatives import ALTERNATIVES
from splitmesh.model.manifest import CALIBRATION, DEFERRAL, MANIFEST, OUTCOMES, REPORT, TABLES, UNUSUAL, Manifest

OTHER = "other"

_BY_NAME = {
    MANIFEST: "manifest",
    CALIBRATION: "calibration",
    OUTCOMES: "outcomes",
    DEFERRAL: "outcomes",
    UNUSUAL: "outcomes",
    TABLES: "tables",
    REPORT: "reports",
    ALTERNATIVES: "plan",
}
ORDER = (
    *("manifest", "whole", "head", "stages", "middle segments", "tail", "tables", "calibration", "outcomes"),
    *("plan", "profiles", "reports", OTHER),
)


def part_of(name: str, manifest: Manifest) -> str:
    """What an artefact is in its version, one of :data:`ORDER`."""
    if name == manifest.whole.artifact:
        return "whole"
    split = manifest.split
    if split is not None:
        if name == split.head.artifact:
            return "head"
        if name == split.tail.artifact:
            return "tail"
        if any(name == hop.segment.artifact for hop in split.middle):
            return "middle segments"
        if split.coding is not None and name == split.coding.artifact:
            return "tables"
    if any(name == stage.artifact for stage in manifest.stages):
        return "stages"
    if name in _BY_NAME:
        return _BY_NAME[name]
    words = {"report": "reports", "leakage": "reports", "profile": "profiles", "plan": "plan", "table": "tables"}
    return next((part for word, part in words.items() if name.startswith(word)), OTHER)


def parts_rows(version: VersionInfo, manifest: Manifest) -> list[list[object]]:
    """Part, artefact, bytes and digest of every artefact, in the order in which they run."""
    rows: list[list[object]] = [
        [part_of(one.name, manifest), one.name, one.size_bytes, one.sha256] for one in version.artifacts.values()
    ]
    return sorted(rows, key=lambda row: (ORDER.index(str(row[0])), str(row[1])))


def show_version(version: VersionInfo, json: bool) -> None:
    """One line, or JSON."""
    if json:
        show_json(version)
        return
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    parent = f", from version {version.parent}" if version.parent else ""
    made = f"made: {version.created_by}, at {time_text(version.create_time)} UTC"
    print(f"{version.model} version {version.version}{aliases}{parent}, {made}")


def show_lineage(version: VersionInfo) -> None:
    """What it was made from and how, as far as anybody said."""
    lineage = version.lineage
    rows: list[Sequence[object]] = [
        *(["from model", f"{one.model}:{one.version}"] for one in lineage.parents),
        *([f"{one.role} data", f"{one.dataset}:{one.version} ({one.sha256[:12]})"] for one in lineage.datasets),
        *([name, text] for name, text in (("task", lineage.task), ("code", lineage.code_version)) if text),
        *([["recipe", lineage.recipe_sha256[:12]]] if lineage.recipe_sha256 else []),
        *([["seeds", ", ".join(map(str, lineage.seeds))]] if lineage.seeds else []),
        *([name, f"{value:g}"] for name, value in sorted(lineage.metrics.items())),
    ]
    if rows:
        show_table("", ["made", "of"], rows)


def time_text(at: datetime) -> str:
    """To the second."""
    return at.strftime("%Y-%m-%d %H:%M:%S")


@contextmanager
def transfer(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error for the bytes of one transfer; gone when the block ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    # Where nobody looks a bar would leave nothing but an empty line.
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update
