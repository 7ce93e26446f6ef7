"""What a dataset is made of, in figures: classes, splits, sites, cameras, sizes, boxes, times, light. Knows no table and no file.

Everything but light follows from the manifest alone, wherever the pictures are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitmesh.datasets.divide import SPLITS, Split
from splitmesh.datasets.manifest import Dataset, Entry
from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS, Preprocess

MOST_NAMED = 100
"""Cameras and sizes that are named, the most frequent ones; the others are counted together."""

_SMALL = Preprocess(width=64, height=64, mode="L", decode="scaled")
_UNREADABLE = frozenset(
    {Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE, Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH}
)


@dataclass(frozen=True, slots=True)
class Spread:
    """Of some numbers; all 0 of none."""

    count: int
    least: float
    median: float
    mean: float
    most: float

    @classmethod
    def of(cls, values: Collection[float]) -> Spread:
        """Of these."""
        if not values:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        array = np.fromiter(values, dtype=np.float64, count=len(values))
        return cls(len(array), float(array.min()), float(np.median(array)), float(array.mean()), float(array.max()))


@dataclass(frozen=True, slots=True)
class Part:
    """Some pictures of a dataset: a split's, a site's, a camera's."""

    pictures: int
    picture_bytes: int
    groups: int
    labels: Mapping[str, int]
    """Pictures by label, boxes by label in a detection; every class is named."""
    background: int
    """Pictures of a detection without a box."""
    skew: float
    """How far its labels are from those of all: half the sum of the differences of their shares, 0..1."""
    first_capture: str
    """ISO 8601, UTC; empty: unknown."""
    last_capture: str


@dataclass(frozen=True, slots=True)
class Description:
    """Of a dataset."""

    task: str
    all: Part
    splits: Mapping[Split, Part]
    missing: Mapping[Split, tuple[str, ...]]
    """Classes that a split with pictures has none of."""
    sites: Mapping[str, Part]
    cameras: Mapping[str, Part]
    """By ``site/camera``; the most frequent ones."""
    other_cameras: int
    """Cameras that are not named."""
    sizes: Mapping[str, int]
    """Pictures by ``width x height``; the most frequent ones."""
    other_sizes: int
    """Pictures of sizes that are not named."""
    media_types: Mapping[str, int]
    group_sizes: Spread
    """Pictures of a group."""
    boxes: Spread
    """Of a picture; a detection's."""
    box_shares: Spread
    """Of the picture's area that a box takes, 0..1."""
    imbalance: float
    """The most frequent class by the rarest that is there at all; 1: balanced; 0: there is no label."""
    balance: float
    """Entropy of the labels by that of as many equally frequent classes, 0..1."""
    unknown_captures: int
    """Pictures of which nobody knows when they were taken."""


@dataclass(frozen=True, slots=True)
class Light:
    """Brightness and contrast of the pictures that are at hand: mean and standard deviation of their grey, 0..1."""

    brightness: Mapping[Split, Spread]
    contrast: Mapping[Split, Spread]
    unreadable: int
    """Missing, damaged, or not to be decoded."""


def describe(dataset: Dataset) -> Description:
    """The figures of a dataset."""
    entries, classes = dataset.entries, dataset.classes
    whole = _part(entries, classes, None)
    splits = _by(entries, lambda entry: entry.split)
    cameras = _by(entries, lambda entry: f"{entry.site}/{entry.camera}")
    sizes = Counter(f"{entry.width} x {entry.height}" for entry in entries)
    named = sorted(cameras, key=lambda name: (-len(cameras[name]), name))[:MOST_NAMED]
    parts = {split: _part(splits.get(split, ()), classes, whole.labels) for split in SPLITS}
    return Description(
        task=dataset.task,
        all=whole,
        splits=parts,
        missing={split: _without(part) for split, part in parts.items()},
        sites={site: _part(found, classes, whole.labels) for site, found in _by(entries, lambda e: e.site).items()},
        cameras={name: _part(cameras[name], classes, whole.labels) for name in named},
        other_cameras=len(cameras) - len(named),
        sizes=dict(sizes.most_common(MOST_NAMED)),
        other_sizes=len(entries) - sum(count for _, count in sizes.most_common(MOST_NAMED)),
        media_types=dict(sorted(Counter(entry.media_type for entry in entries).items())),
        group_sizes=Spread.of(Counter(entry.group for entry in entries).values()),
        boxes=Spread.of([len(entry.boxes) for entry in entries] if dataset.task == "detection" else []),
        box_shares=Spread.of(
            [box.width * box.height / (entry.width * entry.height) for entry in entries for box in entry.boxes]
        ),
        imbalance=_imbalance(whole.labels),
        balance=_balance(whole.labels),
        unknown_captures=sum(not entry.captured_at for entry in entries),
    )


def measure_light(
    dataset: Dataset,
    read: Callable[[str], bytes],
    *,
    limit: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Light:
    """Brightness and contrast by split.

    Args:
        dataset: says which pictures.
        read: gives the bytes of a picture by its digest; ARTIFACT_NOT_FOUND and DIGEST_MISMATCH are counted.
        limit: so many pictures at most, evenly from all; None: all.
        max_pixels: of a picture that is decoded.
        on_progress: told the pictures done and all of them.
    """
    total = len(dataset.entries)
    count = total if limit is None else min(limit, total)
    bright: dict[Split, list[float]] = {split: [] for split in SPLITS}
    contrast: dict[Split, list[float]] = {split: [] for split in SPLITS}
    unreadable = 0
    for turn in range(count):
        entry = dataset.entries[turn * total // count]
        try:
            grey = _SMALL.pixels(read(entry.picture), max_pixels=max_pixels) / 255
        except MeshError as error:
            if error.reason not in _UNREADABLE:
                raise
            unreadable += 1
        else:
            bright[entry.split].append(float(grey.mean()))
            contrast[entry.split].append(float(grey.std()))
        if on_progress is not None:
            on_progress(turn + 1, count)
    return Light(
        {split: Spread.of(values) for split, values in bright.items()},
        {split: Spread.of(values) for split, values in contrast.items()},
        unreadable,
    )


def _part(entries: Sequence[Entry], classes: Iterable[str], reference: Mapping[str, int] | None) -> Part:
    counted = Counter(label for entry in entries for label in entry.labels)
    labels = {name: counted[name] for name in classes}
    moments = [entry.captured_at for entry in entries if entry.captured_at]
    return Part(
        pictures=len(entries),
        picture_bytes=sum(entry.picture_bytes for entry in entries),
        groups=len({entry.group for entry in entries}),
        labels=labels,
        background=sum(not entry.label and not entry.boxes for entry in entries),
        skew=0.0 if reference is None else _skew(labels, reference),
        first_capture=min(moments, default=""),
        last_capture=max(moments, default=""),
    )


def _by(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return dict(sorted(found.items()))


def _without(part: Part) -> tuple[str, ...]:
    return tuple(name for name, count in part.labels.items() if part.pictures and not count)


def _skew(labels: Mapping[str, int], reference: Mapping[str, int]) -> float:
    here, there = sum(labels.values()), sum(reference.values())
    if not here or not there:
        return 0.0
    return sum(abs(labels[name] / here - reference[name] / there) for name in reference) / 2


def _imbalance(labels: Mapping[str, int]) -> float:
    found = [count for count in labels.values() if count]
    return max(found) / min(found) if found else 0.0


def _balance(labels: Mapping[str, int]) -> float:
    total, classes = sum(labels.values()), len(labels)
    if not total or classes < 2:
        return 1.0 if total else 0.0
    shares = [count / total for count in labels.values() if count]
    return -sum(share * math.log(share) for share in shares) / math.log(classes)
