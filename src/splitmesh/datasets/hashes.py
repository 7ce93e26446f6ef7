"""Pairs of 64 bit hashes that differ in few bits, without comparing each with each. Knows numbers, no pictures.

Multi-index hashing (M. Norouzi et al., "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012): of two hashes that
differ in at most 7 bits, one of the four 16 bit parts differs in at most one. Each part of each hash is looked up with none and
with each one of its bits turned.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 7

_PARTS = 4
_BITS = 16
_MASKS = (0, *(1 << bit for bit in range(_BITS)))
_AT_ONCE = 1 << 16
"""Candidates; with the pictures that are compared they take half a gigabyte."""

Indices = NDArray[np.int64]


class ClosePairs:
    """Iterates over ``left, right, distance`` of pairs: indices with left < right and bits, each pair once.

    Args:
        hashes: uint64 ``[n]``.
        max_distance: bits, 0 to 7.
        most: look-ups at most; of a hash with too many neighbours only a part is compared then, and ``complete`` is False.
    """

    def __init__(self, hashes: NDArray[np.uint64], max_distance: int, most: int) -> None:
        self._hashes = hashes
        self._max_distance = max_distance
        self._cap = _cap(self._counts(), most)
        self.complete = self._cap is None

    def __iter__(self) -> Iterator[tuple[Indices, Indices, Indices]]:
        for part in range(_PARTS):
            order, begins = self._index(part)
            keys = self._keys(part)
            for mask in _MASKS:
                probes = keys ^ mask
                counts = begins[probes + 1] - begins[probes]
                if self._cap is not None:
                    counts = np.minimum(counts, self._cap)
                for left, places in _ranges(begins[probes], counts):
                    yield from self._kept(left, order[places], part)

    def _kept(self, left: Indices, right: Indices, part: int) -> Iterator[tuple[Indices, Indices, Indices]]:
        forward = left < right
        left, right = left[forward], right[forward]
        differences = self._hashes[left] ^ self._hashes[right]
        bits = np.bitwise_count(differences).astype(np.int64)
        wanted = bits <= self._max_distance
        for earlier in range(part):
            # A pair that an earlier part found is not told again.
            wanted &= np.bitwise_count((differences >> np.uint64(_BITS * earlier)) & np.uint64(0xFFFF)) > 1
        if wanted.any():
            yield left[wanted], right[wanted], bits[wanted]

    def _keys(self, part: int) -> Indices:
        return ((self._hashes >> np.uint64(_BITS * part)) & np.uint64(0xFFFF)).astype(np.int64)

    def _index(self, part: int) -> tuple[Indices, Indices]:
        """Hashes by their part, and where each value of it begins among them."""
        keys = self._keys(part)
        order = np.argsort(keys, kind="stable")
        return order, np.searchsorted(keys[order], np.arange((1 << _BITS) + 1))

    def _counts(self) -> NDArray[np.int64]:
        """How many look-ups have how many neighbours."""
        found = np.zeros(len(self._hashes) + 1, dtype=np.int64)
        for part in range(_PARTS):
            keys, (_, begins) = self._keys(part), self._index(part)
            for mask in _MASKS:
                probes = keys ^ mask
                found += np.bincount(begins[probes + 1] - begins[probes], minlength=len(found))
        return found


def _cap(counts: NDArray[np.int64], most: int) -> int | None:
    """So many neighbours of each look-up may be compared that all together are at most ``most``; None: all of them."""
    sizes = np.arange(len(counts))
    if int((sizes * counts).sum()) <= most:
        return None
    # Raising the cap from k - 1 to k costs one for each look-up with at least k neighbours.
    costs = np.cumsum(np.cumsum(counts[::-1])[::-1][1:])
    return max(1, int(np.searchsorted(costs, most, side="right")))


def _ranges(begins: Indices, counts: Indices) -> Iterator[tuple[Indices, Indices]]:
    """The row and each of the places ``begin .. begin + count`` of it, some at once."""
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    for start in range(0, int(ends[-1]) if len(ends) else 0, _AT_ONCE):
        flat = np.arange(start, min(start + _AT_ONCE, int(ends[-1])))
        which = np.searchsorted(ends, flat, side="right")
        left = rows[which]
        yield left, begins[left] + flat - (ends[which] - counts[left])
