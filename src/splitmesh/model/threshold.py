"""Chooses the exit's threshold from calibration samples: a tolerated disagreement holds with a stated probability.

What is guaranteed, exactly: let the n calibration samples be independent draws from the distribution that production
samples also come from, none of them used to fit the exit. Then, with probability at least 1 - delta over the draw of
the calibration samples, P(the exit's answer is accepted and differs from the whole model's answer) <= alpha for a new
sample. Not guaranteed: anything after the distribution has drifted, the share of errors *among accepted* samples, and
agreement with the truth (the reference is the whole model). Samples of one unit that resemble each other count for less
than n.

Method: fixed-sequence testing of Learn then Test (Angelopoulos, Bates, Candes, Jordan, Lei, 2021) from the strictest
threshold down, with the exact binomial bound of Clopper and Pearson (1934) for each test. Needs scipy, hence apart from
``gate.py``; the edge never imports it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from splitmesh.errors import field_error
from splitmesh.model.gate import ESCALATE_ALL

GRID: NDArray[np.float64] = np.concatenate([[1.0], 1.0 - np.geomspace(1e-7, 1.0, 512)])
"""Thresholds in the order of testing, 1 down to 0; dense near 1, where softmax confidences crowd.

Fixed in advance, independent of any data, as the proof asks for. In a fixed sequence more points cost nothing.
"""


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """A threshold, what it did on the calibration samples and what is promised for new ones."""

    threshold: float
    """Smallest accepted confidence, or ``ESCALATE_ALL``."""
    coverage: float
    """Share of the calibration samples that are accepted, 0..1."""
    disagreements: int
    """Accepted calibration samples on which exit and whole model differ."""
    accepted: int
    """Accepted calibration samples."""
    n: int
    """Calibration samples."""
    bound: float
    """Upper limit for P(accepted and disagrees), valid with probability 1 - delta; 0 when everything escalates."""
    reason: str
    """One sentence for a person."""


def risk_bound(disagreements: int, n: int, delta: float) -> float:
    """Clopper-Pearson: upper limit, at confidence 1 - delta, of the probability behind so many events in n draws."""
    return float(_upper_bounds(np.array([disagreements]), n, delta)[0])


def samples_needed(max_disagreement: float, delta: float) -> int:
    """Fewest samples with which any threshold can be accepted, even when not one of them disagrees."""
    return math.ceil(math.log(delta) / math.log1p(-max_disagreement))


def choose_threshold(
    confidences: ArrayLike, agrees: ArrayLike, *, max_disagreement: float, delta: float
) -> ThresholdChoice:
    """A threshold whose risk is at most ``max_disagreement`` with probability 1 - ``delta``, as low as can be.

    The lowest of ``GRID`` that keeps the promise, raised to the least confidence among the samples that exit there.

    ``confidences`` [n]: the exit's, NaN where it gave none (never accepted, still one of the n). ``agrees`` [n]:
    whether its answer was the whole model's. Both from samples that the exit was not fitted to. Too little data is an
    answer, not an error: ``ESCALATE_ALL`` with the reason. MeshError FIELD_INVALID for arguments out of range.
    """
    for name, value in (("max_disagreement", max_disagreement), ("delta", delta)):
        if not 0 < value < 1:
            raise field_error(name, f"is {value}, expected a number between 0 and 1, both excluded")
    scores, agreed = np.asarray(confidences, dtype=np.float64), np.asarray(agrees, dtype=np.bool_)
    if scores.ndim != 1 or scores.shape != agreed.shape:
        raise field_error("agrees", f"has shape {agreed.shape} for confidences of shape {scores.shape}")
    n = len(scores)
    needed = samples_needed(max_disagreement, delta)
    if n < needed:
        return _escalate(
            n,
            f"{n} calibration samples are too few: a disagreement of at most {max_disagreement:g} with probability "
            f"{1 - delta:g} takes at least {needed}, even when none disagrees",
        )
    disagreeing = np.sort(scores[~agreed & ~np.isnan(scores)])
    wrong = len(disagreeing) - np.searchsorted(disagreeing, GRID)
    # the risk only grows along the grid, so testing one after the other stops at the first bound above the tolerance
    passed = int(np.searchsorted(_upper_bounds(wrong, n, delta), max_disagreement, side="right"))
    if passed == 0:
        return _escalate(n, f"even answers of confidence 1 disagree more often than {max_disagreement:g} allows")
    best, disagreements = float(GRID[passed - 1]), int(wrong[passed - 1])
    exiting = scores[scores >= best]
    accepted = len(exiting)
    if accepted == 0:
        return _escalate(n, f"at the lowest threshold that keeps the promise ({best:.6g}) no calibration sample exits")
    # Raised to the least confidence that was seen to exit: the risk only falls, and a sample less sure than all of the
    # calibration escalates.
    best = float(exiting.min())
    bound = risk_bound(disagreements, n, delta)
    return ThresholdChoice(
        threshold=best,
        coverage=accepted / n,
        disagreements=disagreements,
        accepted=accepted,
        n=n,
        bound=bound,
        reason=f"{accepted} of {n} calibration samples exit, {disagreements} against the whole model: with probability "
        f"{1 - delta:g} at most {bound:.4g} of new samples exit and disagree (tolerated: {max_disagreement:g})",
    )


def _upper_bounds(events: NDArray[np.int64], n: int, delta: float) -> NDArray[np.float64]:
    others = n - events
    return np.where(others > 0, beta.ppf(1 - delta, events + 1, np.maximum(others, 1)), 1.0)


def _escalate(n: int, reason: str) -> ThresholdChoice:
    return ThresholdChoice(ESCALATE_ALL, 0.0, 0, 0, n, 0.0, f"everything escalates: {reason}")
