"""Chooses the threshold of exits from calibration samples so that several constraints hold at once, with a stated probability.

What is guaranteed, exactly: let the n calibration samples be independent draws from the distribution that production
samples also come from, none of them used to fit the exits, and let constraints, delta and seed be settled before anybody
looks at them. Then, with probability at least 1 - delta over the draw of the calibration samples, *every* constraint
holds for a new sample: P(the exit's answer is accepted and breaks it | it is about the sample) <= its limit. Not
guaranteed: anything after the distribution has drifted, the share of errors *among accepted* samples, and agreement with
the truth where the reference is the whole model. What is promised are the limits; a bound below its limit would hold so
surely only at a threshold settled beforehand. ``Missed`` outlives a change in how often its class comes, if samples
within the class look as before; so does ``FalseAlarm`` if the other classes keep their proportions; ``Disagreement`` does
not.

Method. Given how many samples each constraint is about, the accepted answers that break it are binomial at a fixed
threshold; its test is exact (Clopper and Pearson, 1934). "Some constraint is broken" is rejected only where each one's
own test rejects at level delta: an intersection-union test, whose p-value is the largest of theirs, so their number costs
nothing (Berger 1982). Thresholds are tested from the strictest down, up to the first that fails: fixed-sequence testing
of Learn then Test (Angelopoulos, Bates, Candes, Jordan, Lei, 2021). The first threshold of the sequence, which is fixed
before any data, that breaks a constraint passes with probability at most delta, and must pass for anything wrong to be
accepted. So with probability 1 - delta *every* threshold before the first failure keeps all constraints, and any of them
may be taken, by looking at the same samples too.

That argument needs no order among the risks, and with several exits there is none: a stricter threshold can turn a right
answer of an early exit into a wrong one of a later exit. So the sequence really stops at the first failure, later
thresholds that would pass again are not looked at, and the one taken is always one that was tested. With one exit every
risk only falls towards stricter thresholds; there, and only there, the threshold may be raised between two tested ones.

Groups. Pictures of one unit resemble each other and are not independent; units are. So each constraint is tested on one
sample a unit, drawn by seed among those it is about, and its n is the number of units that have one. The promise is then
of one picture drawn from a new unit, all units counting the same: production's frames, where units give about as many
pictures each. Drawing again with other seeds until a threshold pleases voids it.

Needs scipy; the edge never imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from splitmesh.errors import field_error
from splitmesh.routing.constraint_tests import ConstraintBound, ConstraintTest, Samples, risk_bound, samples_needed
from splitmesh.routing.constraints import Constraint, Disagreement, FalseAlarm, Missed, require_share
from splitmesh.routing.exit_counts import GRID, Reach, before_failure
from splitmesh.routing.gate import ESCALATE_ALL

__all__ = [
    "MAX_CONSTRAINTS",
    "Choice",
    "Constraint",
    "ConstraintBound",
    "Disagreement",
    "FalseAlarm",
    "Missed",
    "choose",
    "risk_bound",
    "samples_needed",
]

MAX_CONSTRAINTS = 1024
"""Of one choice; each takes a pass over the samples."""

_SHOWN = 4
"""Constraints that a reason spells out."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold, what it did on the calibration samples and what is promised for new ones."""

    threshold: float
    """Smallest accepted ease, or ``ESCALATE_ALL``."""
    coverage: float
    """Share of the calibration samples that are accepted, 0..1."""
    accepted: int
    """Accepted calibration samples."""
    n: int
    """Calibration samples, all of every group."""
    bounds: tuple[ConstraintBound, ...]
    """In the order of the constraints."""
    reason: str
    """One sentence for a person."""
    binding: Constraint | None
    """The one to relax, or to find samples for, if more is to be accepted: that lacks most samples, or whose test failed by most
    where the sequence stopped; None when nothing stopped it."""


def choose(
    eases: ArrayLike,
    answers: ArrayLike,
    reference: ArrayLike,
    constraints: Iterable[Constraint],
    *,
    delta: float,
    groups: ArrayLike | None = None,
    seed: int = 0,
) -> Choice:
    """A threshold that keeps every constraint with probability 1 - ``delta``, as low as can be.

    One exit: the lowest of ``exit_counts.GRID`` that keeps them, raised to the least ease among the samples that exit there.
    Several: of the thresholds of ``GRID`` that keep them, the strictest at which as many samples exit as at the lowest.

    Args:
        eases: ``[n]`` or ``[n, exits]`` from the input on, 0..1, NaN where an exit gave none: never accepted, still one of the n.
        answers: class numbers of the same shape; anything where the ease is NaN.
        reference: class numbers ``[n]``.
        constraints: at least one, at most ``MAX_CONSTRAINTS``.
        delta: probability that a constraint does not hold.
        groups: ``[n]``, numbers or texts: the unit of each sample; None when all are independent.
        seed: of the draw of one sample a unit.

    Too little data is an answer, not an error: ``ESCALATE_ALL`` with the reason. MeshError FIELD_INVALID for arguments
    out of range.
    """
    require_share("delta", delta)
    samples = Samples.of(eases, answers, reference, groups, seed)
    tests = [samples.test(constraint, delta) for constraint in _checked(constraints)]
    lacking = sorted((test for test in tests if test.lacks > 0), key=lambda test: -test.lacks)
    if lacking:
        return _escalate(samples, tests, _few([_too_few(test, samples) for test in lacking]), lacking[0])
    passed = before_failure(np.all([test.bounds <= test.constraint.limit for test in tests], axis=0))
    binding = max(tests, key=lambda test: test.p_value(passed)) if passed < len(GRID) else None
    if binding is not None and passed == 0:
        return _escalate(samples, tests, _too_often(binding), binding)
    answered = samples.reach.answered()
    accepted = int(answered[passed - 1])
    if accepted == 0:
        lowest = f"the lowest threshold that keeps the promise ({GRID[passed - 1]:.6g})"
        return _escalate(samples, tests, f"at {lowest} no calibration sample exits", binding)
    chosen = int(np.searchsorted(answered[:passed], accepted))
    bounds = tuple(test.at(chosen) for test in tests)
    promises = _few([_promise(bound) for bound in bounds])
    return Choice(
        threshold=_raised(samples.reach, float(GRID[chosen])),
        coverage=accepted / samples.n,
        accepted=accepted,
        n=samples.n,
        bounds=bounds,
        reason=f"{accepted} of {samples.n} calibration samples exit; with probability {1 - delta:g} {promises}",
        binding=binding.constraint if binding is not None else None,
    )


def _raised(reach: Reach, threshold: float) -> float:
    """To the least ease that exits there, if that keeps every risk: of one exit it only falls, and a sample less sure than all of
    the calibration escalates. No calibration sample lies between."""
    if reach.exits > 1:
        return threshold
    return float(reach.surest[reach.surest >= threshold].min())


def _checked(constraints: Iterable[Constraint]) -> tuple[Constraint, ...]:
    given = tuple(constraints)
    if not 1 <= len(given) <= MAX_CONSTRAINTS:
        raise field_error("constraints", f"are {len(given)}, expected 1 to {MAX_CONSTRAINTS}")
    for constraint in given:
        if not isinstance(constraint, Constraint):
            raise field_error("constraints", f"hold {constraint!r:.80}, which is no constraint")
    return given


def _escalate(samples: Samples, tests: Sequence[ConstraintTest], reason: str, binding: ConstraintTest | None) -> Choice:
    return Choice(
        threshold=ESCALATE_ALL,
        coverage=0.0,
        accepted=0,
        n=samples.n,
        bounds=tuple(ConstraintBound(test.constraint, 0, test.n, 0.0) for test in tests),
        reason=f"everything escalates: {reason}",
        binding=binding.constraint if binding is not None else None,
    )


def _too_few(test: ConstraintTest, samples: Samples) -> str:
    about, event = test.constraint.words()
    what = "calibration samples" if samples.unit is None else "units with calibration samples"
    return (
        f"{test.n} {what}{about} are too few: a promise that at most {test.constraint.limit:g} of them exit and {event} takes, "
        f"with probability {1 - test.delta:g}, at least {test.n + test.lacks}, {test.lacks} more, even when none does"
    )


def _too_often(test: ConstraintTest) -> str:
    about, event = test.constraint.words()
    return f"even answers of confidence 1 {event} too often to promise at most {test.constraint.limit:g} of the samples{about}"


def _promise(bound: ConstraintBound) -> str:
    about, event = bound.constraint.words()
    return (
        f"at most {bound.constraint.limit:g} of new samples{about} exit and {event} (here {bound.events} of {bound.n})"
    )


def _few(parts: Sequence[str]) -> str:
    more = len(parts) - _SHOWN
    return "; ".join([*parts[:_SHOWN], *([f"and {more} more constraints"] if more > 0 else [])])
