"""Another threshold for a place that has drifted, from what tail and exit said there since. Pure.

While a place is tightened everything there escalates, so the samples since then that the tail has answered are drawn from the new
state whatever the exit thought of them. What ``splitmesh.routing.risk`` promises for calibration samples holds for them too, but
only for samples of this place and as long as it stays as it is. Frames in a row are not independent: those of a camera in the
same seconds are one unit (``collected.py``), units are what is counted, and the promise is of a frame of a new unit. Samples
without an answer of the tail (a full queue, a spent budget) are not missing by chance; they are taken for the worst that they
could be.

Looking again with more samples would cheat if every look might be wrong with delta: look k may with delta / (k (k + 1)), which
over all looks is delta (a union bound). So a look is taken only where each limit has as many units as it needs, and one that
could test nothing is none. A threshold at which hardly anything exits is not settled for while more samples can be had.

Only the exit that decided tells its ease, the last before the link while all escalate. A threshold holds for every exit as in a
policy; where there are several the reason says which one it was measured at.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from services.router.class_limits import constraints_of
from services.router.drift.collected import KEPT, KEPT_OF_UNIT, UNIT_S, UNKNOWN, Collected
from services.router.drift.events import Place
from services.router.goals import Goals
from splitmesh.errors import field_error
from splitmesh.routing.constraints import Classes, Constraint, FalseAlarm, Mask, Missed
from splitmesh.routing.risk import choose, samples_needed

LEAST = 200
"""Samples before a threshold is looked for, however few the goals need."""
MOST_KEPT = 10_000
"""Samples of a place that are kept where the goals need so many."""
GROWTH = 1.25
"""The next look is taken when so many times the samples of the last have come."""
LEAST_COVERAGE = 0.2
"""Share of the samples that must exit at a threshold, or more are collected before one is settled for, up to ``kept``."""
MOST_NEEDED = 2**32 - 1
"""What a message can say; no place sees as many."""


@dataclass(frozen=True, slots=True)
class AtWorst(Constraint):
    """Another constraint, where samples of class ``UNKNOWN`` count as breaking it whenever they might."""

    inner: Constraint

    @property
    def limit(self) -> float:  # type: ignore[override]
        """The inner one's."""
        return self.inner.limit

    def judge(self, answers: Classes, reference: Classes) -> tuple[Mask, Mask]:
        """About what the inner one is about, and samples that might break it."""
        concerned, broken = self.inner.judge(answers, reference)
        worst = np.zeros_like(broken)
        for candidate in {UNKNOWN, getattr(self.inner, "label", UNKNOWN)}:
            about, breaks = self.inner.judge(answers, np.full_like(reference, candidate))
            worst |= about[:, None] & breaks
        unknown = reference == UNKNOWN
        return np.where(unknown, worst.any(axis=1), concerned), np.where(unknown[:, None], worst, broken)

    def words(self) -> tuple[str, str]:
        """The inner one's."""
        return self.inner.words()


@dataclass(frozen=True, slots=True)
class Look:
    """What came of looking for a threshold."""

    threshold: float | None
    """None: everything goes on escalating."""
    why: str
    """One sentence, without the place."""


def basis(goals: Goals) -> str:
    """Whatever eases and promises depend on, in a few characters: a threshold found under another basis means nothing."""
    text = json.dumps(asdict(replace(goals, audit_share=0.0)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def delta_of(delta: float, look: int) -> float:
    """Of look number ``look``, from 1: all looks together have ``delta``."""
    return delta / (look * (look + 1))


def limits_of(goals: Goals, labels: Sequence[str] | None, place: Place) -> list[Constraint]:
    """What a threshold of the place must keep. FIELD_INVALID where that cannot be tested: classes that are not known.

    Without those that nothing of the place can break: of one class that the exit names there, it misses others alone.
    """
    if goals.classes and labels is None:
        raise field_error("classes", "are limited by name, and the version's names are not known now")
    names = labels or tuple(_numbers(goals))
    found = constraints_of(goals, names)
    if place.number is not None:
        found = [
            one
            for one in found
            if not (isinstance(one, Missed) and one.label == place.number)
            and not (isinstance(one, FalseAlarm) and one.label != place.number)
        ]
    return [AtWorst(one) for one in found]


def units_needed(goals: Goals, look: int, limits: Sequence[Constraint] = ()) -> int:
    """Units before look number ``look`` can find anything, of the limit that needs most."""
    delta = delta_of(goals.delta, look)
    return max(samples_needed(limit, delta) for limit in (goals.max_disagreement, *(one.limit for one in limits)))


def needed(
    goals: Goals,
    look: int,
    collected: Collected | None = None,
    limits: Sequence[Constraint] = (),
    looked_at: int = 0,
) -> int:
    """About so many samples before look number ``look`` is taken, by how many of those collected make a unit of each limit.

    Where none does yet: as many as are needed even if each is a unit of its own. ``looked_at``: samples at the last look.
    """
    least = max(LEAST, units_needed(goals, look, limits), math.ceil(GROWTH * looked_at))
    if collected is not None and collected.units:
        delta, about = delta_of(goals.delta, look), _units_about(collected, limits)
        each = [samples_needed(one.limit, delta) / n for one, n in zip(limits, about, strict=True) if n]
        least = max([least, *(math.ceil(min(MOST_NEEDED, share * collected.seen)) for share in each)])
    return min(MOST_NEEDED, least)


def kept(goals: Goals) -> int:
    """How many samples of a place to keep: limits of a class need samples of that class, which may be rare."""
    return MOST_KEPT if goals.classes else min(MOST_KEPT, max(KEPT, 2 * KEPT_OF_UNIT * _units_stated(goals)))


def kept_of_unit(goals: Goals) -> int:
    """How many samples of one unit to keep: fewer where the goals need many units."""
    return min(KEPT_OF_UNIT, max(1, MOST_KEPT // (2 * _units_stated(goals))))


def is_due(collected: Collected, goals: Goals, limits: Sequence[Constraint], looks: int, looked_at: int) -> bool:
    """Whether to look for a threshold now, after so many looks, the last at ``looked_at`` samples: each limit has its units."""
    if collected.seen < max(LEAST, GROWTH * looked_at, collected.not_before):
        return False
    delta = delta_of(goals.delta, looks + 1)
    wanted = [samples_needed(one.limit, delta) for one in limits]
    lacking = max([0, *wanted]) - collected.units
    if lacking <= 0:
        lacking = max(n - has for n, has in zip(wanted, _units_about(collected, limits), strict=True))
    # A sample is of one unit, so as many more must come; until then there is nothing to count.
    collected.not_before = collected.seen + max(0, lacking)
    return lacking <= 0


def look_for(collected: Collected, goals: Goals, limits: Sequence[Constraint], look: int) -> Look:
    """A threshold that keeps the limits, if the samples allow one.

    Args:
        collected: of the place.
        goals: in force.
        limits: of the place.
        look: which one it is, from 1.
    """
    rows = collected.rows()
    missing = int((rows["whole"] == UNKNOWN).sum())
    choice = choose(
        rows["ease"],
        rows["said"].astype(np.int64),
        rows["whole"].astype(np.int64),
        limits,
        delta=delta_of(goals.delta, look),
        groups=rows["unit"],
        seed=look,
    )
    notes = [f"{missing} of them without an answer of the tail and counted as wrong"] if missing else []
    if len(rows) and (last := int(rows["exit"].max())) > 0:
        notes.append(f"measured at exit {last}, the one before the link")
    units = f"{collected.units} units, each {UNIT_S:g} s of one camera"
    why = f"from {len(rows)} samples since the drift ({', '.join([units, f'look {look}', *notes])}): {choice.reason}"
    why = why.replace("calibration samples", "of these samples")
    if choice.accepted and choice.coverage < LEAST_COVERAGE and not collected.full:
        waits = f"everything goes on escalating until {LEAST_COVERAGE:.0%} exit or {kept(goals)} samples are kept"
        return Look(None, f"{why}; {waits}")
    return Look(choice.threshold if choice.accepted else None, why)


def waits_for(collected: Collected, goals: Goals, limits: Sequence[Constraint], look: int) -> str:
    """What samples are waited for but those of any class, or why those that are kept cannot be enough; empty: for neither."""
    delta, room = delta_of(goals.delta, look), kept(goals) // kept_of_unit(goals)
    for one, has in zip(limits, _units_about(collected, limits), strict=True):
        wanted, (about, _) = samples_needed(one.limit, delta), one.words()
        units = f"{wanted} units of samples{about}, each {UNIT_S:g} s of one camera,"
        if wanted > (has if collected.full else room):
            return f"{units} would be needed and fewer are kept: it escalates until somebody resolves it or states other goals"
        if about and wanted > has:
            return f"everything goes on escalating until {units} are collected; there are {has}"
    return ""


def _units_about(collected: Collected, limits: Sequence[Constraint]) -> list[int]:
    """Of each limit: units with a sample that it is about."""
    rows = collected.rows()
    said, whole = rows["said"].astype(np.int64)[:, None], rows["whole"].astype(np.int64)
    return [len(np.unique(rows["unit"][one.judge(said, whole)[0]])) for one in limits]


def _units_stated(goals: Goals) -> int:
    """For a few looks, by the strictest limit that is stated."""
    of_classes = (share for one in goals.classes for share in (one.max_missed, one.max_false_alarms) if share)
    return samples_needed(min([goals.max_disagreement, *of_classes]), delta_of(goals.delta, 4))


def _numbers(goals: Goals) -> list[str]:
    """Names of classes that have none: their numbers, up to the largest that is limited."""
    limited = [int(one.label) for one in goals.classes if one.label.isdecimal() and len(one.label) < 5]
    return [str(number) for number in range(max([*limited, 0], default=0) + 1)]
