"""The threshold of exits for one tolerated disagreement with the whole model: the common case of ``risk.py``.

Knows confidences and whether answers agree, not which classes they name. ``risk.py`` says exactly what is guaranteed and
why: with probability at least 1 - delta over the draw of the calibration samples, P(the exit's answer is accepted and
differs from the whole model's answer) <= alpha for a new sample. With several exits there is one threshold for all, a
sample is answered by the first exit, from the input on, whose confidence reaches it, and the promise is of all together.
Samples of one unit that resemble each other count for less than n; ``risk.choose`` takes groups.

Needs scipy, hence apart from ``gate.py``; the edge never imports it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitmesh.errors import field_error
from splitmesh.routing.constraint_tests import risk_bound, samples_needed
from splitmesh.routing.constraints import Disagreement, require_share
from splitmesh.routing.exit_counts import GRID, Reach, before_failure
from splitmesh.routing.gate import ESCALATE_ALL
from splitmesh.routing.risk import choose

__all__ = [
    "GRID",
    "ThresholdChoice",
    "answered_by",
    "choose_threshold",
    "risk_bound",
    "samples_needed",
    "tolerated_threshold",
]


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
    """Clopper-Pearson's upper limit for P(accepted and disagrees) at confidence 1 - delta; 0 when everything escalates. It is
    at most the tolerated share, which is what is promised."""
    reason: str
    """One sentence for a person."""


def choose_threshold(
    confidences: ArrayLike, agrees: ArrayLike, *, max_disagreement: float, delta: float
) -> ThresholdChoice:
    """A threshold whose risk is at most ``max_disagreement`` with probability 1 - ``delta``, as low as can be.

    One exit: the lowest of ``GRID`` that keeps the promise, raised to the least confidence among the samples that exit
    there. Several: of the thresholds of ``GRID`` that keep it, the strictest at which as many samples exit as at the
    lowest.

    ``confidences`` [n] or [n, exits] from the input on, 0..1: the exits', NaN where one gave none (never accepted, the sample
    is still one of the n). ``agrees``, of the same shape: whether its answer was the whole model's. Both from samples that
    the exits were not fitted to. Too little data is an answer, not an error: ``ESCALATE_ALL`` with the reason. MeshError
    FIELD_INVALID for arguments out of range.
    """
    require_share("max_disagreement", max_disagreement)
    require_share("delta", delta)
    scores, agreed = _table(confidences, agrees)
    constraints = [Disagreement(max_disagreement)]
    # As if the whole model named class 1 for every sample, and exits that disagree class 0.
    choice = choose(scores, agreed, np.ones(len(scores), dtype=np.int64), constraints, delta=delta)
    kept = choice.bounds[0]
    return ThresholdChoice(
        threshold=choice.threshold,
        coverage=choice.coverage,
        disagreements=kept.events,
        accepted=choice.accepted,
        n=choice.n,
        bound=kept.bound,
        reason=choice.reason,
    )


def tolerated_threshold(confidences: ArrayLike, agrees: ArrayLike, tolerated: float) -> float:
    """The lowest threshold down to which no more than ``tolerated`` of these samples exit and disagree.

    A reading of the samples, no promise about others: for figures that other samples then check. Arguments as of
    :func:`choose_threshold`; ``ESCALATE_ALL`` when no sample may exit.
    """
    scores, agreed = _table(confidences, agrees)
    reach = Reach.of(scores)
    answered, wrong = reach.answered(), reach.marked(~agreed, np.arange(len(scores)))
    passed = before_failure(wrong <= tolerated * len(scores))
    if passed == 0 or answered[passed - 1] == 0:
        return ESCALATE_ALL
    return float(GRID[int(np.searchsorted(answered[:passed], answered[passed - 1]))])


def answered_by(confidences: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Which exit answers each sample: ``[n, exits]`` to ``[n]``, 0 the one nearest to the input, -1: it escalates."""
    sure = np.asarray(confidences, dtype=np.float64) >= threshold
    return np.where(sure.any(axis=1), sure.argmax(axis=1), -1)


def _table(confidences: ArrayLike, agrees: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Both as ``[n, exits]``."""
    scores, agreed = np.asarray(confidences, dtype=np.float64), np.asarray(agrees, dtype=np.bool_)
    if scores.ndim not in (1, 2) or scores.shape != agreed.shape or (scores.ndim == 2 and scores.shape[1] == 0):
        raise field_error("agrees", f"has shape {agreed.shape} for confidences of shape {scores.shape}")
    return (scores[:, None], agreed[:, None]) if scores.ndim == 1 else (scores, agreed)
