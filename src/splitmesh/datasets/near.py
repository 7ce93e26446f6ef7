"""Pictures of a dataset that show nearly the same: pairs, those across splits first, for they make a test too easy.

Two steps. Candidates differ in at most a few bits of a perceptual hash: the signs of the 63 lowest frequencies of a discrete
cosine transform of 32 x 32 grey pixels around their median (C. Zauner, "Implementation and Benchmarking of Perceptual Image
Hash Functions", 2010). A pair counts when the pixels themselves correlate. Both ignore brightness, contrast, size and
compression: on solder joints and solar cells the hashes of a picture and of its copy, saved again, halved or with noise, differ
in at most 4 bits for 99 of 100, where those of a difference hash differ in up to 9.

Knows pixels and entries; where pictures lie, ``read`` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitmesh.datasets.divide import Split
from splitmesh.datasets.hashes import MAX_DISTANCE, ClosePairs
from splitmesh.datasets.manifest import Entry
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS, Preprocess

SIDE = 32
"""Pixels of the small pictures that are compared."""
DISTANCE = 6
"""Bits in which candidates may differ, unless told."""
SIMILARITY = 0.985
"""Correlation of a pair, unless told: above it are copies, and frames a moment apart."""
MAX_PAIRS = 10_000
MAX_CANDIDATES = 200_000_000
"""Looked up at most, about half a minute; of pictures that all look alike only a part is compared."""
MAX_TOLD = 1000
"""Pictures that could not be compared, by name; more are counted."""

_LOW = 8
_ROUGH = 8
_SLACK = 0.1
"""For sums of float32."""
_FLAT = 1.5
"""Standard deviation, in grey levels, below which there is nothing to compare."""
_GREY = Preprocess(width=SIDE, height=SIDE, mode="L", decode="scaled")
_UNREADABLE = frozenset(
    {Reason.IMAGE_UNDECODABLE, Reason.IMAGE_TOO_LARGE, Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH}
)

_COSINES: NDArray[np.float64] = np.cos(np.pi / SIDE * (np.arange(SIDE)[None, :] + 0.5) * np.arange(_LOW)[:, None])
"""The lowest rows of the transform (DCT-II), not scaled: only signs around a median are asked."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures, by digest; ``one`` sorts first."""

    one: str
    other: str
    distance: int
    """Bits in which the hashes differ."""
    similarity: float
    """Correlation of the pixels, at most 1."""
    splits: tuple[Split, Split]

    @property
    def leak(self) -> bool:
        """Whether they are in different splits."""
        return self.splits[0] != self.splits[1]


@dataclass(frozen=True, slots=True)
class Near:
    """What was found."""

    pairs: tuple[Pair, ...]
    """Leaks first, then the most similar; at most ``max_pairs``."""
    found: int
    """All pairs, also those that are not told."""
    leaks: int
    """Of those, across splits."""
    compared: int
    """Pictures."""
    undecodable: dict[str, str] = field(default_factory=dict)
    """Why, by digest; missing and damaged ones too. At most ``MAX_TOLD``."""
    flat: tuple[str, ...] = ()
    """Pictures of one shade, which cannot be compared; at most ``MAX_TOLD``."""
    left_out: int = 0
    """Pictures that are undecodable or flat, all of them."""
    complete: bool = True
    """False: so many pictures look alike that not all candidates were compared."""


def near_duplicates(
    entries: Sequence[Entry],
    read: Callable[[str], bytes],
    *,
    max_distance: int = DISTANCE,
    min_similarity: float = SIMILARITY,
    max_pairs: int = MAX_PAIRS,
    max_candidates: int = MAX_CANDIDATES,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Near:
    """All pairs of pictures that look the same.

    Args:
        entries: of a dataset.
        read: gives the bytes of a picture by its digest.
        max_distance: bits, 0 to 7; every pair within is a candidate.
        min_similarity: correlation from which a candidate is a pair, -1 to 1.
        max_pairs: told at most.
        max_candidates: looked up at most.
        max_pixels: of a picture that is decoded.
        on_progress: told the pictures decoded and all of them.

    Raises MeshError FIELD_INVALID for bounds that are none; what ``read`` raises except ARTIFACT_NOT_FOUND and DIGEST_MISMATCH.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise field_error("max_distance", f"is {max_distance}, expected 0 to {MAX_DISTANCE}")
    if not -1 <= min_similarity <= 1:
        raise field_error("min_similarity", f"is {min_similarity}, expected -1 to 1")
    looks = _Looks(len(entries), max_pixels)
    for number, entry in enumerate(entries):
        looks.take(number, entry.picture, read)
        if on_progress is not None:
            on_progress(number + 1, len(entries))
    rows = np.array(looks.numbers, dtype=np.int64)
    splits = np.array([entry.split for entry in entries])[rows] if len(rows) else np.empty(0, dtype=str)
    best = _Best(max_pairs)
    search = ClosePairs(np.array(looks.hashes, dtype=np.uint64), max_distance, max_candidates)
    for left, right, bits in search:
        worth = looks.possible(left, right, min_similarity)
        left, right, bits = left[worth], right[worth], bits[worth]
        similarity = looks.similarity(left, right)
        pairs = similarity >= min_similarity
        best.add(left[pairs], right[pairs], bits[pairs], similarity[pairs], (splits[left] != splits[right])[pairs])
    return Near(
        pairs=tuple(_pair(entries, rows, row) for row in best.rows()),
        found=best.found,
        leaks=best.leaks,
        compared=len(rows),
        undecodable=looks.undecodable,
        flat=tuple(looks.flat),
        left_out=len(entries) - len(rows),
        complete=search.complete,
    )


def phash(small: NDArray[np.uint8]) -> int:
    """The hash of a grey picture of 32 x 32 pixels, 0..2**63-1."""
    low = (_COSINES @ small.astype(np.float64) @ _COSINES.T).ravel()[1:]
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(np.concatenate([[False], bits])).tobytes(), "big")


class _Looks:
    """Hash and small picture of each that can be compared."""

    def __init__(self, count: int, max_pixels: int) -> None:
        self._small = np.empty((count, SIDE * SIDE), dtype=np.uint8)
        self._rough = np.empty((count, _ROUGH * _ROUGH), dtype=np.float32)
        self._max_pixels = max_pixels
        self.numbers: list[int] = []
        self.hashes: list[int] = []
        self.undecodable: dict[str, str] = {}
        self.flat: list[str] = []

    def take(self, number: int, digest: str, read: Callable[[str], bytes]) -> None:
        """One more."""
        try:
            small = _GREY.pixels(read(digest), max_pixels=self._max_pixels)[..., 0]
        except MeshError as error:
            if error.reason not in _UNREADABLE:
                raise
            if len(self.undecodable) < MAX_TOLD:
                self.undecodable[digest] = error.message
            return
        if small.std() < _FLAT:
            if len(self.flat) < MAX_TOLD:
                self.flat.append(digest)
            return
        row = len(self.numbers)
        self._small[row] = small.ravel()
        self._rough[row] = _rough(_standard(small.reshape(1, -1)))
        self.numbers.append(number)
        self.hashes.append(phash(small))

    def possible(self, left: NDArray[np.int64], right: NDArray[np.int64], least: float) -> NDArray[np.bool_]:
        """False for pairs that cannot correlate so much. Standardised pictures a, b of n pixels that do are not further apart
        than the root of 2 n (1 - least), and their projections on few wide pixels are no further apart than they are."""
        gap = self._rough[left] - self._rough[right]
        found: NDArray[np.bool_] = np.einsum("ij,ij->i", gap, gap) <= 2 * SIDE * SIDE * (1 - least) + _SLACK
        return found

    def similarity(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float32]:
        """Correlations of pairs."""
        one, other = (_standard(self._small[rows]) for rows in (left, right))
        found: NDArray[np.float32] = np.einsum("ij,ij->i", one, other) / np.float32(SIDE * SIDE)
        return found


class _Best:
    """The pairs to be told: leaks before others, then the most similar."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[float, ...]] = []
        self.found = 0
        self.leaks = 0

    def add(
        self,
        left: NDArray[np.int64],
        right: NDArray[np.int64],
        bits: NDArray[np.int64],
        similarity: NDArray[np.float32],
        leak: NDArray[np.bool_],
    ) -> None:
        """Some more."""
        self.found += len(left)
        self.leaks += int(leak.sum())
        rank = np.lexsort((right, left, -similarity, ~leak))[: self._most]
        columns = (~leak[rank], -similarity[rank], left[rank], right[rank], bits[rank])
        self._kept += zip(*(column.tolist() for column in columns), strict=True)
        if len(self._kept) > 2 * self._most:
            self._kept = sorted(self._kept)[: self._most]

    def rows(self) -> list[tuple[float, ...]]:
        """Not leak, negative similarity, left, right, bits of each."""
        return sorted(self._kept)[: self._most]


def _pair(entries: Sequence[Entry], rows: NDArray[np.int64], row: tuple[float, ...]) -> Pair:
    _, similarity, left, right, bits = row
    one, other = sorted((entries[rows[int(place)]] for place in (left, right)), key=lambda entry: entry.picture)
    return Pair(one.picture, other.picture, int(bits), min(1.0, round(-similarity, 5)), (one.split, other.split))


def _standard(small: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rows of mean 0 and deviation 1."""
    values = small.astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    values *= math.sqrt(SIDE * SIDE) / np.linalg.norm(values, axis=1, keepdims=True)
    return values


def _rough(standard: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of 32 x 32 pixels projected on 8 x 8 wide ones: an orthogonal projection, so that it brings no two further apart."""
    step = SIDE // _ROUGH
    blocks = standard.reshape(len(standard), _ROUGH, step, _ROUGH, step)
    found: NDArray[np.float32] = blocks.sum(axis=(2, 4)).reshape(len(standard), -1) / np.float32(step)
    return found
