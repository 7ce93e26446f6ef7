"""How two versions of a dataset differ. Knows manifests; no registry and no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitmesh.cli.output import show_table
from splitmesh.datasets.manifest import Dataset, Entry


@dataclass(frozen=True)
class Change:
    """A picture that both have, and what is said of it in each."""

    picture: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """By digest, sorted."""

    added: Sequence[str]
    removed: Sequence[str]
    relabelled: Sequence[Change]
    moved: Sequence[Change]
    """Between splits."""
    same: int
    classes_added: Sequence[str]
    classes_removed: Sequence[str]


def difference(one: Dataset, other: Dataset) -> Difference:
    """From ``one`` to ``other``."""
    before = {entry.picture: entry for entry in one.entries}
    after = {entry.picture: entry for entry in other.entries}
    both = [(before[digest], after[digest]) for digest in before if digest in after]
    relabelled = [
        Change(a.picture, _labels(a), _labels(b)) for a, b in both if (a.label, a.boxes) != (b.label, b.boxes)
    ]
    moved = [Change(a.picture, a.split, b.split) for a, b in both if a.split != b.split]
    changed = {change.picture for change in (*relabelled, *moved)}
    return Difference(
        added=[digest for digest in after if digest not in before],
        removed=[digest for digest in before if digest not in after],
        relabelled=relabelled,
        moved=moved,
        same=len(both) - len(changed),
        classes_added=[name for name in other.classes if name not in one.classes],
        classes_removed=[name for name in one.classes if name not in other.classes],
    )


def show_difference(title: str, found: Difference, most: int) -> None:
    """Counts, then the first ``most`` pictures of each kind."""
    counts = [[kind, len(getattr(found, kind))] for kind in ("added", "removed", "relabelled", "moved")]
    show_table(title, ["pictures", "count"], [*counts, ["the same", found.same]])
    for words, names in (("new", found.classes_added), ("gone", found.classes_removed)):
        if names:
            print(f"classes that are {words}: {', '.join(names)}")
    rows = [[kind, digest, "", ""] for kind in ("added", "removed") for digest in getattr(found, kind)[:most]]
    rows += [
        [kind, change.picture, change.before, change.after]
        for kind in ("relabelled", "moved")
        for change in getattr(found, kind)[:most]
    ]
    if rows:
        show_table("", ["what", "picture", "before", "after"], rows)


def _labels(entry: Entry) -> str:
    if entry.label:
        return entry.label
    boxes = [f"{box.label} {box.x:g},{box.y:g} {box.width:g}x{box.height:g}" for box in entry.boxes]
    return "; ".join(boxes)[:200] or "background"
