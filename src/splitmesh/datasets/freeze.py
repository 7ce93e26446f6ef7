"""Items to a manifest: what is contradictory is told, what is repeated stands once, groups are divided.

Knows items; no files, no samples and no clock. The same items in any order, with the same seed, shares and classes, give the same
bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from splitmesh.datasets.divide import SHARES, Split, checked_shares, divide
from splitmesh.datasets.item import Item
from splitmesh.datasets.manifest import (
    MAX_CLASSES,
    MAX_ENTRIES,
    MAX_MANIFEST_BYTES,
    TASKS,
    Box,
    Dataset,
    Entry,
    Statistics,
    Task,
    moment_text,
    split_statistics,
)
from splitmesh.datasets.problems import Problems
from splitmesh.errors import field_error


def freeze_items(
    items: Iterable[Item],
    *,
    task: Task = "classification",
    seed: int,
    shares: Mapping[Split, float] = SHARES,
    classes: Sequence[str] = (),
    without_picture: int = 0,
) -> Dataset:
    """A dataset of the items that somebody labelled.

    Args:
        items: in any order; their order changes nothing. Where one brings its split, its whole group goes there.
        task: ``classification`` takes labels, ``detection`` boxes.
        seed: of the division.
        shares: of the groups that go to each split, together 1; a split of 0 gets none.
        classes: of the labels, in the order that counts for the model; empty: those found, sorted.
        without_picture: what the caller left out already, for the statistics.

    Raises MeshError FIELD_INVALID for two labels or splits of one picture, a group in two splits, a label that is none of
    ``classes``, a box outside its picture, shares that are none, more than ``MAX_ENTRIES``, ``MAX_ALL_BOXES`` or a manifest of
    more than ``MAX_MANIFEST_BYTES``; CALIBRATION_INSUFFICIENT when there are fewer groups than splits.
    """
    if task not in TASKS:
        raise field_error("task", f"{str(task)[:40]!r} is none of {', '.join(TASKS)}")
    if len(set(classes)) != len(classes) or len(classes) > MAX_CLASSES:
        raise field_error("classes", f"are {len(classes)}, one of them twice or more than {MAX_CLASSES}")
    wanted = checked_shares(shares)
    sieve = _Sieve(task, frozenset(classes))
    with Problems("items", "the pictures cannot be frozen") as problems:
        for item in items:
            sieve.take(item, problems)
        given = _given(sieve.kept.values(), problems)
    chosen = [sieve.kept[digest] for digest in sorted(sieve.kept)]
    division = divide({item.split_group for item in chosen}, seed, wanted, given)
    with Problems("items", "the pictures cannot be frozen") as problems:
        entries = tuple(entry for item in chosen for entry in _entry(item, division[item.split_group], problems))
    names = tuple(classes) or tuple(sorted({label for entry in entries for label in entry.labels}))
    if len(names) > MAX_CLASSES:
        raise field_error("classes", f"are {len(names)}; at most {MAX_CLASSES} make a dataset")
    statistics = Statistics(
        splits=split_statistics(entries, names),
        without_picture=without_picture,
        given=sum(item.split_group in given for item in chosen),
        **sieve.left_out,
    )
    return _checked(
        {"task": task, "seed": seed, "shares": wanted, "classes": names, "entries": entries, "statistics": statistics}
    )


@dataclass
class _Sieve:
    """What is said of each picture, once."""

    task: Task
    classes: frozenset[str]
    kept: dict[str, Item] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=lambda: Counter(unlabelled=0, repeated=0))

    def take(self, item: Item, problems: Problems) -> None:
        """One more."""
        labels = _labels(item, self.task)
        if labels is None:
            self.left_out["unlabelled"] += 1
            return
        if self.classes and (strange := sorted(set(labels) - self.classes)):
            problems.add(_name(item), f"its label {strange[0]!r} is none of the classes")
            return
        if self.task == "detection":
            item = replace(item, label="", boxes=_in_order(item.boxes or ()))
        elif item.boxes is not None:
            item = replace(item, boxes=None)
        if len(self.kept) >= MAX_ENTRIES and item.picture not in self.kept:
            raise field_error("items", f"are more than {MAX_ENTRIES}; divide them into several datasets")
        other = self.kept.setdefault(item.picture, item)
        if other is item:
            return
        self.left_out["repeated"] += 1
        if said := _contradiction(item, other):
            problems.add(_name(item), f"shows what {_name(other)} shows: {said}")
        self.kept[item.picture] = _first(other, item)


def _labels(item: Item, task: Task) -> list[str] | None:
    if task == "detection":
        return None if item.boxes is None else [box.label for box in item.boxes]
    return [item.label] if item.label else None


def _contradiction(item: Item, other: Item) -> str:
    if item.label != other.label:
        return f"{item.label!r}, there {other.label!r}"
    if item.boxes != other.boxes:
        return "its boxes are others"
    if item.split and other.split and item.split != other.split:
        return f"in {item.split}, there in {other.split}"
    return ""


def _first(one: Item, other: Item) -> Item:
    """Which of two items of a picture stands for both; a split that either has is kept."""
    first = min(one, other, key=lambda item: (item.sample or "~", item.name, item.split_group, item.provenance))
    return replace(first, split=first.split or one.split or other.split)


def _given(items: Iterable[Item], problems: Problems) -> dict[str, Split]:
    said: dict[str, Item] = {}
    for item in items:
        if item.split is None:
            continue
        other = said.setdefault(item.split_group, item)
        if other.split != item.split:
            problems.add(
                _name(item), f"is in {item.split}, {_name(other)} of its group {item.split_group!r} in {other.split}"
            )
    return {group: item.split for group, item in said.items() if item.split is not None}


def _in_order(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """By their place, so that the order in a file changes nothing."""
    return tuple(sorted(boxes, key=lambda box: (box.x, box.y, box.width, box.height, box.label)))


def _entry(item: Item, split: Split, problems: Problems) -> Iterable[Entry]:
    try:
        yield Entry(
            picture=item.picture,
            picture_bytes=item.picture_bytes,
            media_type=item.media_type,
            width=item.width,
            height=item.height,
            label=item.label,
            boxes=item.boxes or (),
            site=item.site,
            camera=item.camera,
            captured_at=moment_text(item.captured_at),
            group=item.split_group,
            split=split,
            provenance=item.provenance,
            labelled_by=item.labelled_by,
            sample=item.sample,
        )
    except (ValidationError, ValueError) as error:
        problems.add(_name(item), _told(error))


def _checked(values: Mapping[str, Any]) -> Dataset:
    try:
        dataset = Dataset(**values)
    except ValidationError as error:
        raise field_error("dataset", _told(error)) from error
    if (size_bytes := len(dataset.to_json())) > MAX_MANIFEST_BYTES:
        problem = f"make a manifest of {size_bytes} bytes; at most {MAX_MANIFEST_BYTES} are kept"
        raise field_error("items", f"{problem}: divide them into several datasets")
    return dataset


def _told(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _name(item: Item) -> str:
    return item.name or item.sample or item.picture
