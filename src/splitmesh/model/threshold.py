"""Chooses the threshold of exits from calibration samples: a tolerated disagreement holds with a stated probability.

What is guaranteed, exactly: let the n calibration samples be independent draws from the distribution that production
samples also come from, none of them used to fit the exit. Then, with probability at least 1 - delta over the draw of
the calibration samples, P(the exit's answer is accepted and differs from the whole model's answer) <= alpha for a new
sample. Not guaranteed: anything after the distribution has drifted, the share of errors *among accepted* samples, and
agreement with the truth (the reference is the whole model). Samples of one unit that resemble each other count for less
than n.

With several exits there is one threshold for all, and a sample is answered by the first exit, from the input on, whose
confidence reaches it. "The exit's answer" is then that exit's, and the promise is of all together.

Method: fixed-sequence testing of Learn then Test (Angelopoulos, Bates, Candes, Jordan, Lei, 2021) from the strictest
threshold down, with the exact binomial bound of Clopper and Pearson (1934) for each test, stopped at the first threshold
that fails. Why it holds: for a fixed threshold the disagreements are binomial, whatever the exits do, so a threshold whose
risk is above alpha passes with probability at most delta; the first such one in the sequence, which is fixed before any
data, must pass for anything wrong to be accepted. So with probability 1 - delta *every* threshold before the first failure
keeps the promise, and any of them may be taken, by looking at the same samples too.

That argument needs no order among the risks, and with several exits there is none: a stricter threshold can turn a right
answer of an early exit into a wrong one of a later exit. So the sequence really stops at the first failure, later
thresholds that would pass again are not looked at, and the one taken is always one that was tested. With one exit the risk
only falls towards stricter thresholds; there, and only there, the threshold may be raised between two tested ones.

Needs scipy, hence apart from ``gate.py``; the edge never imports it.
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

    One exit: the lowest of ``GRID`` that keeps the promise, raised to the least confidence among the samples that exit
    there. Several: of the thresholds of ``GRID`` that keep it, the strictest at which as many samples exit as at the
    lowest.

    ``confidences`` [n] or [n, exits] from the input on: the exits', NaN where one gave none (never accepted, the sample is
    still one of the n). ``agrees``, of the same shape: whether its answer was the whole model's. Both from samples that
    the exits were not fitted to. Too little data is an answer, not an error: ``ESCALATE_ALL`` with the reason. MeshError
    FIELD_INVALID for arguments out of range.
    """
    for name, value in (("max_disagreement", max_disagreement), ("delta", delta)):
        if not 0 < value < 1:
            raise field_error(name, f"is {value}, expected a number between 0 and 1, both excluded")
    answers = _Answers.of(confidences, agrees)
    n = answers.n
    needed = samples_needed(max_disagreement, delta)
    if n < needed:
        return _escalate(
            n,
            f"{n} calibration samples are too few: a disagreement of at most {max_disagreement:g} with probability "
            f"{1 - delta:g} takes at least {needed}, even when none disagrees",
        )
    wrong, answered = answers.wrong(), answers.answered()
    passed = _passed(_upper_bounds(wrong, n, delta) <= max_disagreement)
    if passed == 0:
        return _escalate(n, f"even answers of confidence 1 disagree more often than {max_disagreement:g} allows")
    accepted = int(answered[passed - 1])
    if accepted == 0:
        lowest = float(GRID[passed - 1])
        return _escalate(
            n, f"at the lowest threshold that keeps the promise ({lowest:.6g}) no calibration sample exits"
        )
    if answers.exits == 1:
        # Raised to the least confidence that was seen to exit: the risk only falls, and a sample less sure than all of
        # the calibration escalates.
        threshold = float(answers.surest[answers.surest >= GRID[passed - 1]].min())
        disagreements = int(wrong[passed - 1])
    else:
        chosen = int(np.searchsorted(answered[:passed], accepted))
        threshold, disagreements = float(GRID[chosen]), int(wrong[chosen])
    bound = risk_bound(disagreements, n, delta)
    return ThresholdChoice(
        threshold=threshold,
        coverage=accepted / n,
        disagreements=disagreements,
        accepted=accepted,
        n=n,
        bound=bound,
        reason=f"{accepted} of {n} calibration samples exit, {disagreements} against the whole model: with probability "
        f"{1 - delta:g} at most {bound:.4g} of new samples exit and disagree (tolerated: {max_disagreement:g})",
    )


def tolerated_threshold(confidences: ArrayLike, agrees: ArrayLike, tolerated: float) -> float:
    """The lowest threshold down to which no more than ``tolerated`` of these samples exit and disagree.

    A reading of the samples, no promise about others: for figures that other samples then check. Arguments as of
    :func:`choose_threshold`; ``ESCALATE_ALL`` when no sample may exit.
    """
    answers = _Answers.of(confidences, agrees)
    answered = answers.answered()
    passed = _passed(answers.wrong() <= tolerated * answers.n)
    if passed == 0 or answered[passed - 1] == 0:
        return ESCALATE_ALL
    return float(GRID[int(np.searchsorted(answered[:passed], answered[passed - 1]))])


def answered_by(confidences: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """Which exit answers each sample: ``[n, exits]`` to ``[n]``, 0 the one nearest to the input, -1: it escalates."""
    sure = np.asarray(confidences, dtype=np.float64) >= threshold
    return np.where(sure.any(axis=1), sure.argmax(axis=1), -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """Who answers what at which threshold: an exit answers for the thresholds above every exit before it, up to its own
    confidence."""

    n: int
    exits: int
    wrong_up_to: NDArray[np.float64]
    """Sorted: the highest threshold of each wrong answer."""
    wrong_above: NDArray[np.float64]
    """Sorted: what the threshold of each must exceed, or an earlier exit answers."""
    surest: NDArray[np.float64]
    """Sorted: the largest confidence of any exit, of the samples that have one."""

    @classmethod
    def of(cls, confidences: ArrayLike, agrees: ArrayLike) -> _Answers:
        scores, agreed = np.asarray(confidences, dtype=np.float64), np.asarray(agrees, dtype=np.bool_)
        if scores.ndim not in (1, 2) or scores.shape != agreed.shape or (scores.ndim == 2 and scores.shape[1] == 0):
            raise field_error("agrees", f"has shape {agreed.shape} for confidences of shape {scores.shape}")
        if scores.ndim == 1:
            scores, agreed = scores[:, None], agreed[:, None]
        scores = np.where(np.isnan(scores), -np.inf, scores)
        reached = np.maximum.accumulate(scores, axis=1)
        before = np.hstack([np.full((len(scores), 1), -np.inf), reached[:, :-1]])
        wrong = ~agreed & (scores > before)
        surest = reached[:, -1]
        return cls(
            n=len(scores),
            exits=scores.shape[1],
            wrong_up_to=np.sort(scores[wrong]),
            wrong_above=np.sort(before[wrong]),
            surest=np.sort(surest[np.isfinite(surest)]),
        )

    def wrong(self) -> NDArray[np.int64]:
        """Samples that exit and disagree, at each threshold of ``GRID``."""
        return _from(self.wrong_up_to) - _from(self.wrong_above)

    def answered(self) -> NDArray[np.int64]:
        """Samples that exit, at each threshold of ``GRID``."""
        return _from(self.surest)


def _from(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many of the sorted values reach each threshold of ``GRID``."""
    counts: NDArray[np.int64] = len(values) - np.searchsorted(values, GRID)
    return counts


def _passed(keeps: NDArray[np.bool_]) -> int:
    """Thresholds before the first that fails."""
    return len(keeps) if keeps.all() else int(keeps.argmin())


def _upper_bounds(events: NDArray[np.int64], n: int, delta: float) -> NDArray[np.float64]:
    others = n - events
    return np.where(others > 0, beta.ppf(1 - delta, events + 1, np.maximum(others, 1)), 1.0)


def _escalate(n: int, reason: str) -> ThresholdChoice:
    return ThresholdChoice(ESCALATE_ALL, 0.0, 0, 0, n, 0.0, f"everything escalates: {reason}")
