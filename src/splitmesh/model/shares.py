"""Shares out measured times of heads and tails among a model's operators.

Fused heads are timed, operators are not: between two neighbouring measured heads the difference of their times belongs
to the operators that only the larger one has, in proportion to their work. So the operators of any measured head add up
to its time, and those of a head in between to a time between its neighbours'. The same for tails, from the output.

Noise can make a longer head look faster than a shorter one. Times are first replaced by the nearest ones in least
squares that never fall (pool adjacent violators: Ayer, Brunk, Ewing, Reid, Silverman 1955); times that never fall are
not touched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Piece = tuple[int, float]
"""The operators of a head or tail as bits, and its time."""


def share_out(work: Sequence[float], pieces: Sequence[Piece], whole_ms: float) -> list[float]:
    """Milliseconds of every operator, at least 0.

    Args:
        work: of every operator, any unit.
        pieces: measured heads, or measured tails. One that does not hold all operators of the smaller ones is left out.
        whole_ms: of all operators together; what the largest piece takes when that is more.
    """
    everything = (1 << len(work)) - 1
    nested = _nested(pieces)
    times = non_decreasing([ms for _, ms in nested])
    nested = [(bits, ms) for (bits, _), ms in zip(nested, times, strict=True)]
    longest = max([whole_ms, *times])
    shares = [0.0] * len(work)
    inside, spent = 0, 0.0
    for bits, ms in [*nested, (everything, longest)]:
        fresh = np.flatnonzero(_mask(bits & ~inside, len(work))).tolist()
        total = sum(work[index] for index in fresh)
        for index in fresh:
            part = work[index] / total if total > 0 else 1 / len(fresh)
            shares[index] = (ms - spent) * part
        if fresh:
            inside, spent = bits, ms
    return shares


def time_of(bits: int, shares: Sequence[float] | NDArray[np.float64]) -> float:
    """Of the operators in ``bits`` together."""
    return float(_mask(bits, len(shares)) @ np.asarray(shares, dtype=np.float64))


def non_decreasing(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence with the smallest sum of squared differences from ``values``."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean, count = (before * members + mean * count) / (members + count), members + count
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _nested(pieces: Sequence[Piece]) -> list[Piece]:
    found: list[Piece] = []
    for bits, ms in sorted(pieces, key=lambda piece: piece[0].bit_count()):
        if not found or found[-1][0] & ~bits == 0:
            found.append((bits, ms))
    return found


def _mask(bits: int, count: int) -> NDArray[np.uint8]:
    """``[count]`` of 0 and 1; bit by bit, a graph of thousands of operators with as many cuts would take minutes."""
    content = np.frombuffer(bits.to_bytes((count + 7) // 8, "little"), np.uint8)
    return np.unpackbits(content, count=count, bitorder="little")
