"""Frequencies of a cut's symbols from samples: how often each was seen, smoothed so that none is impossible.

A channel has few samples, all channels together have many. So a channel's table is its own counts plus a Dirichlet
prior in the proportions of the pooled table (MacKay and Peto 1995, "A hierarchical Dirichlet language model"); and
because neighbouring codes are alike, counts are spread over their neighbours. How strong the prior is and how far
counts spread is chosen per tensor and rate: what codes one half of the samples best with tables from the other half.

Knows counts, nothing of codecs or files. Runs where tables are made; what is sent are the integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitmesh.tensor.entropy_steps import Bytes8, alphabet, symbols_of

TOTAL = 1 << 22
"""Sum of a table. A power of two: as float64 shares they and the library's sums over them are exact on every machine."""

SPREADS = (1.0, 0.0, 2.0, 4.0, 8.0)
"""Over how many neighbours a count is spread (decay of a two-sided geometric kernel); tried in this order."""
STRENGTHS = (64.0, 0.25, 1.0, 4.0, 16.0, 256.0, 1024.0, 4096.0, np.inf)
"""Weight of the pooled table, in symbols; infinite: all channels share it."""

Counts = NDArray[np.float64]


def histograms(codes: Bytes8, axis: int) -> Counts:
    """How often each channel had each value, in each half of the samples ``[2, channels, 256]``; samples come first."""
    if codes.dtype != np.uint8 or not 1 <= axis < codes.ndim:
        raise ValueError(f"codes are uint8 with channels along axis {axis}, got {codes.dtype} {codes.shape}")
    channels = codes.shape[axis]
    offsets = 256 * np.arange(channels).reshape([-1 if place == axis else 1 for place in range(1, codes.ndim)])
    seen = np.zeros((2, 256 * channels))
    for number, sample in enumerate(codes):  # one at a time: the places take eight times the memory of the codes
        seen[number % 2] += np.bincount((sample + offsets).reshape(-1), minlength=256 * channels)
    return seen.reshape(2, channels, 256)


def frequencies(seen: Counts, zero_points: Bytes8, step: int) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The tables of one tensor's channels at a step.

    Args:
        seen: what :func:`histograms` gave, of the channels that are sent.
        zero_points: one for all channels, or one each.
        step: of the rate.

    Returns:
        Which table each channel uses ``[channels]``, and the tables ``[tables, symbols]``: they sum to ``TOTAL``, with at
        least 1 for every symbol its channels can have and 0 behind the last of them.
    """
    channels = seen.shape[1]
    points = np.broadcast_to(zero_points, (channels,))
    # Columns count from the zero point, so that the same column is the same distance in every channel.
    below = {int(point): int(symbols_of(int(point), step)[point]) for point in np.unique(points)}
    zero = max(below.values())
    width = max(zero - low + len(alphabet(point, step)) for point, low in below.items())
    counts, possible = np.zeros((2, channels, width)), np.zeros((channels, width), bool)
    for point, low in below.items():
        where = points == point
        columns = symbols_of(point, step).astype(np.int64) + zero - low
        counts[:, where] = seen[:, where] @ np.eye(width)[columns]
        possible[np.ix_(where, np.unique(columns))] = True
    fitted = _integers(_fitted(counts, possible, zero), possible)
    # The symbols of a channel count from its own smallest.
    shifted = np.stack([np.roll(row, -int(np.flatnonzero(row)[0])) for row in fitted])
    keyed = np.concatenate([points[:, None].astype(np.uint32), shifted], axis=1)
    unique, groups = np.unique(keyed, axis=0, return_inverse=True)
    return groups.reshape(-1).astype(np.uint16), np.ascontiguousarray(unique[:, 1:])


def _fitted(halves: Counts, possible: NDArray[np.bool_], zero: int) -> Counts:
    """Shares ``[channels, symbols]`` with the spread and strength that serve the halves best."""
    costs: dict[tuple[float, float], float] = {}
    tests = [(np.nonzero(test), test[np.nonzero(test)]) for test in halves[::-1]]
    for spread in SPREADS:
        trained = [_prior(train, possible, zero, spread) for train in halves]
        for strength in STRENGTHS:
            costs[spread, strength] = sum(
                -float(weights @ np.log2(_mixed(*both, strength)[places]))
                for both, (places, weights) in zip(trained, tests, strict=True)
            )
    spread, strength = min(costs, key=lambda setting: costs[setting])
    return _mixed(*_prior(halves.sum(0), possible, zero, spread), strength)


def _prior(counts: Counts, possible: NDArray[np.bool_], zero: int, spread: float) -> tuple[Counts, Counts]:
    """The channels' own counts, spread, and the pooled table as each channel can have it."""
    own = _spread(counts, possible, zero, spread)
    pooled = own.sum(0)
    seen = pooled.sum()
    # For symbols never seen anywhere as much as there were different ones (Witten and Bell 1991).
    unseen = np.count_nonzero(counts.sum(0)) or 1
    prior = np.where(possible, pooled + unseen / len(pooled), 0.0) / (seen + unseen)
    return own, prior / prior.sum(1, keepdims=True)


def _mixed(own: Counts, prior: Counts, strength: float) -> Counts:
    if np.isinf(strength):
        return prior
    return np.asarray((own + strength * prior) / (own.sum(1, keepdims=True) + strength))


def _spread(counts: Counts, possible: NDArray[np.bool_], zero: int, spread: float) -> Counts:
    if not spread:
        return counts
    used = np.flatnonzero(possible.any(0))
    # The zero point and the two ends are where activations and clipping pile up: spikes, not parts of a slope.
    spikes = np.zeros(counts.shape[1], bool)
    spikes[[zero, used[0], used[-1]]] = True
    places = np.arange(len(spikes))
    kernel = np.exp(-np.abs(places[:, None] - places[None, :]) / spread)
    kernel[:, spikes] = 0.0
    kernel[spikes] = 0.0
    kernel[spikes, spikes] = 1.0
    kernel /= kernel.sum(1, keepdims=True)
    result = np.where(possible, counts @ kernel, 0.0)
    kept = result.sum(1, keepdims=True)
    return np.asarray(result * np.divide(counts.sum(1, keepdims=True), kept, out=np.zeros_like(kept), where=kept > 0))


def _integers(shares: Counts, possible: NDArray[np.bool_]) -> NDArray[np.uint32]:
    free = TOTAL - possible.sum(1, keepdims=True)
    whole = np.where(possible, np.floor(shares * free) + 1, 0).astype(np.int64)
    whole[np.arange(len(whole)), whole.argmax(1)] += TOTAL - whole.sum(1)
    return whole.astype(np.uint32)
