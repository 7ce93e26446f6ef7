"""The pictures of a dataset as a trainer takes them: arrays made by the code that makes them at the edge, and targets.

What pixels become, :class:`Preprocess` alone says: an array from here is bit for bit what a head computes of the same bytes.
Knows no folder (whatever reads a picture by its digest will do) and no training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from splitmesh.datasets.divide import SPLITS, Split
from splitmesh.datasets.manifest import Dataset, Entry
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS, Preprocess

MIN_VISIBLE = 0.25
"""Share of a box's area that must be inside what a model sees of the picture; of less nobody could say what it is."""

_DAMAGED = frozenset(
    {Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE, Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH}
)


class Pictures(Protocol):
    """Where the pictures are: a :class:`~splitmesh.datasets.folder.PictureFolder`, for one."""

    def read(self, digest: str) -> bytes:
        """A picture; ARTIFACT_NOT_FOUND, DIGEST_MISMATCH."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """What is where in the model's input."""

    labels: NDArray[np.int64]
    """``[n]``, numbers of classes."""
    corners: NDArray[np.float32]
    """``[n, 4]``: left, top, right, bottom in pixels of the input."""


class Loaded(NamedTuple):
    """One picture."""

    array: NDArray[np.float32]
    """``[channels, height, width]``, normalised: a row of the model's input."""
    target: int | Boxes
    """Number of the class, or boxes of a detection."""
    entry: Entry


def load(
    dataset: Dataset,
    pictures: Pictures,
    split: Split | None,
    preprocess: Preprocess,
    *,
    classes: Sequence[str] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_damaged: Callable[[Entry, MeshError], None] | None = None,
) -> Iterator[Loaded]:
    """The pictures of a split, in the order of the manifest, one of them in memory.

    Args:
        dataset: says which, and what they show.
        pictures: gives the bytes.
        split: None: all.
        preprocess: of the model's manifest.
        classes: in the model's order; empty: the dataset's.
        max_pixels: of one picture; a head has a limit too.
        on_damaged: told of each picture that is missing, damaged or cannot be decoded, which is then left out; None: it is an
            error.

    Raises MeshError FIELD_INVALID at once for a split or classes that do not fit; later, with the digest in the message,
    ARTIFACT_NOT_FOUND, DIGEST_MISMATCH, IMAGE_UNDECODABLE, IMAGE_TOO_LARGE.
    """
    if split is not None and split not in SPLITS:
        raise field_error("split", f"{str(split)[:40]!r} is none of {', '.join(SPLITS)}")
    numbers = {name: number for number, name in enumerate(classes or dataset.classes)}
    if unknown := [name for name in dataset.classes if name not in numbers]:
        raise field_error(
            "classes", f"the dataset's {', '.join(map(repr, unknown[:5]))} is none of the model's classes"
        )
    wanted = (entry for entry in dataset.entries if split is None or entry.split == split)
    return _loaded(dataset, wanted, pictures, preprocess, numbers, max_pixels, on_damaged)


def _loaded(
    dataset: Dataset,
    entries: Iterator[Entry],
    pictures: Pictures,
    preprocess: Preprocess,
    numbers: Mapping[str, int],
    max_pixels: int,
    on_damaged: Callable[[Entry, MeshError], None] | None,
) -> Iterator[Loaded]:
    for entry in entries:
        try:
            pixels = preprocess.pixels(pictures.read(entry.picture), max_pixels=max_pixels)
        except MeshError as error:
            if error.reason not in _DAMAGED:
                raise
            if on_damaged is None:
                raise _named(entry, error) from error
            on_damaged(entry, error)
            continue
        detection = dataset.task == "detection"
        target = boxes_seen(entry, preprocess, numbers) if detection else numbers[entry.label]
        yield Loaded(preprocess.normalise(pixels[None])[0], target, entry)


def boxes_seen(entry: Entry, preprocess: Preprocess, numbers: Mapping[str, int]) -> Boxes:
    """The boxes of a picture where the model sees them; those of which less than ``MIN_VISIBLE`` is seen are left out."""
    left, top, right, bottom = preprocess.seen(entry.width, entry.height)
    corners = np.array(
        [(box.x, box.y, box.x + box.width, box.y + box.height) for box in entry.boxes], dtype=np.float64
    ).reshape(-1, 4)
    labels = np.array([numbers[box.label] for box in entry.boxes], dtype=np.int64)
    cut = np.clip(corners, (left, top, left, top), (right, bottom, right, bottom))
    visible = _areas(cut) >= MIN_VISIBLE * _areas(corners)
    scale = np.array((preprocess.width / (right - left), preprocess.height / (bottom - top)) * 2)
    moved = (cut - (left, top, left, top)) * scale
    return Boxes(labels[visible], moved[visible].astype(np.float32))


def _areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    sides: NDArray[np.float64] = corners[:, 2:] - corners[:, :2]
    return sides[:, 0] * sides[:, 1]


def _named(entry: Entry, error: MeshError) -> MeshError:
    return MeshError(
        error.reason,
        f"picture {entry.picture} of the dataset's {entry.split}: {error.message}",
        metadata={**error.metadata, "sha256": entry.picture},
    )
