"""Datasets as people read them: one line, tables of figures, and bars while pictures are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from splitmesh.cli.output import show_table
from splitmesh.datasets.divide import SPLITS
from splitmesh.datasets.manifest import Dataset
from splitmesh.datasets.statistics import Description, Light, Part

if TYPE_CHECKING:
    from splitmesh.client.datasets import DatasetVersionInfo

MOST_CLASSES = 12
"""Columns of a table; more classes are told in a table of their own."""
MOST_ROWS = 10

OnPicture = Callable[[int, int], None]


@contextmanager
def pictures(doing: str) -> Iterator[OnPicture]:
    """A bar on standard error that counts pictures; gone when the block ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, transient=True, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


def version_line(info: DatasetVersionInfo) -> str:
    """What it is, where it is from and who made it."""
    parent = f", from version {info.parent}" if info.parent else ""
    made = f"made by {info.created_by} at {info.create_time:%Y-%m-%d %H:%M:%S} UTC"
    sites = f" of {', '.join(info.sites)}" if any(info.sites) else ""
    return f"{info.dataset} version {info.version}: {info.pictures:,} pictures{sites} for {info.task}{parent}, {made}"


def show_description(found: Description) -> None:
    """Splits, classes, sites, cameras and sizes."""
    parts: dict[str, Part] = {split: part for split, part in found.splits.items() if part.pictures}
    show_parts("", "split", {**parts, "all": found.all}, found)
    if len(found.all.labels) > MOST_CLASSES:
        rows = [[name, *(found.splits[split].labels[name] for split in SPLITS)] for name in found.all.labels]
        show_table("", ["class", *SPLITS], rows)
    if len(found.sites) > 1:
        show_parts("", "site", found.sites, found)
    if any(not name.endswith("/") for name in found.cameras):
        named = dict(list(found.cameras.items())[:MOST_ROWS])
        show_parts("", "site/camera", named, found)
    show_table("", ["what", "how much"], _figures(found))
    for split, missing in found.missing.items():
        if missing:
            print(f"warning: {split} has no picture of {_few(missing)}")


def show_parts(title: str, what: str, parts: Mapping[str, Part], found: Description) -> None:
    """A row for each part."""
    classes = list(found.all.labels) if len(found.all.labels) <= MOST_CLASSES else []
    detection = found.task == "detection"
    columns = [what, "pictures", "groups", *(["background"] if detection else []), *classes, "skew", "MB"]
    rows = []
    for name, part in parts.items():
        labels = [part.labels[label] for label in classes]
        background = [part.background] if detection else []
        rows.append(
            [name or "-", part.pictures, part.groups, *background, *labels, part.skew, part.picture_bytes / 1e6]
        )
    show_table(title, columns, rows)


def _figures(found: Description) -> list[Sequence[object]]:
    sizes = [f"{count:,} of {size}" for size, count in list(found.sizes.items())[:3]]
    others = f" and others, {sum(found.sizes.values()) + found.other_sizes:,} in all" if len(found.sizes) > 3 else ""
    rows: list[Sequence[object]] = [
        ["picture sizes (pixels)", "; ".join(sizes) + others],
        ["file types", ", ".join(f"{count:,} {kind}" for kind, count in found.media_types.items())],
        ["pictures of a group", f"{found.group_sizes.median:g} (median), {found.group_sizes.most:g} at most"],
        ["most frequent class by the rarest", f"{found.imbalance:.1f}"],
    ]
    if found.all.first_capture:
        rows.append(["taken (UTC)", f"{found.all.first_capture[:19]} to {found.all.last_capture[:19]}"])
    if found.unknown_captures:
        rows.append(["taken at an unknown moment", f"{found.unknown_captures:,}"])
    if found.task == "detection":
        rows.append(["boxes of a picture", f"{found.boxes.mean:.1f} (mean), {found.boxes.most:g} at most"])
        rows.append(["of the picture a box takes", f"{found.box_shares.median:.2%} (median)"])
    return rows


def show_light(light: Light) -> None:
    """Brightness and contrast by split."""
    rows = [
        [split, light.brightness[split].count, light.brightness[split].mean, light.contrast[split].mean]
        for split in SPLITS
        if light.brightness[split].count
    ]
    show_table("", ["split", "pictures", "brightness", "contrast"], rows)
    if light.unreadable:
        print(f"{light.unreadable:,} pictures are not here or damaged")


def described(dataset: Dataset) -> dict[str, object]:
    """The figures as JSON."""
    from splitmesh.datasets.statistics import describe

    return asdict(describe(dataset))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_ROWS} more" if len(names) > MOST_ROWS else ""
    return ", ".join(names[:MOST_ROWS]) + more
