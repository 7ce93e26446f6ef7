"""Another threshold for a place that has drifted, from what tail and exit said there since. Pure.

While a place is tightened everything there escalates, so the samples since then that the tail has answered are drawn from the new
state whatever the exit thought of them. What ``splitmesh.routing.risk`` promises for calibration samples holds for them too, but
only for samples of this place, as long as it stays as it is, and as far as the samples do not depend on each other: frames of one
part count for less than they seem to. Samples without an answer of the tail (a full queue, a spent budget) are not missing by
chance; they are taken for the worst that they could be.

Looking again with more samples would cheat if every look might be wrong with delta: look k may with delta / (k (k + 1)), which
over all looks is delta (a union bound).

Only the exit that decided tells its ease, the last before the link while all escalate. A threshold holds for every exit as in a
policy; where there are several the reason says which one it was measured at.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.router.class_limits import constraints_of
from services.router.drift.events import Place
from services.router.goals import Goals
from splitmesh.errors import MeshError, field_error
from splitmesh.routing.constraints import Classes, Constraint, FalseAlarm, Mask, Missed
from splitmesh.routing.risk import choose, samples_needed

LEAST = 200
"""Samples before a threshold is looked for, however few the goals need."""
KEPT, MOST_KEPT = 2_000, 10_000
"""Samples of a place that are kept, the newest; more only where the goals need more."""
GROWTH = 1.25
"""The next look is taken when so many times the samples of the last have come."""
UNKNOWN = 1 << 30
"""Stands for the class of a sample that the tail has not answered; no class has this number."""

_ROW = np.dtype([("ease", "<f8"), ("said", "<i4"), ("whole", "<i4"), ("exit", "<i4")])
Rows = NDArray[np.void]


class Collected:
    """The newest samples of one place since it was tightened.

    Args:
        most: that are kept.
    """

    def __init__(self, most: int = KEPT) -> None:
        self._rows: deque[tuple[float, int, int, int]] = deque(maxlen=most)
        self.seen = 0
        """Samples, also those that are no longer kept."""

    def __len__(self) -> int:
        """Samples that are kept."""
        return len(self._rows)

    def add(self, ease: float, said: int, whole: int | None, exit_: int) -> None:
        """One sample: the exit's ease (NaN: it may not answer) and class, the tail's class if it has answered, and which exit."""
        self._rows.append((ease, min(said, UNKNOWN - 1), UNKNOWN if whole is None else min(whole, UNKNOWN - 1), exit_))
        self.seen += 1

    def keep(self, most: int) -> None:
        """From now on so many."""
        if most != self._rows.maxlen:
            self._rows = deque(self._rows, maxlen=most)

    def rows(self) -> Rows:
        """``[n]`` of ease, said, whole, exit; the oldest first."""
        return np.array(list(self._rows), dtype=_ROW)

    def to_bytes(self) -> bytes:
        """To be saved."""
        return np.array([self.seen], dtype="<i8").tobytes() + self.rows().tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, most: int = KEPT) -> Collected:
        """As it was saved; FIELD_INVALID for what never was."""
        if len(data) < 8 or (len(data) - 8) % _ROW.itemsize:
            raise field_error("collected", f"has {len(data)} bytes, which is no number of samples")
        found = cls(most)
        rows = np.frombuffer(data, dtype=_ROW, offset=8)
        if not (np.isnan(rows["ease"]) | ((rows["ease"] >= 0) & (rows["ease"] <= 1))).all() or (rows["said"] < 0).any():
            raise field_error("collected", "has an ease outside 0..1 or a class below 0")
        found._rows.extend(tuple(row) for row in rows.tolist())
        found.seen = max(int(np.frombuffer(data, dtype="<i8", count=1)[0]), len(rows))
        return found


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


def needed(goals: Goals, look: int) -> int:
    """Samples before look number ``look`` can find anything."""
    return max(LEAST, samples_needed(goals.max_disagreement, delta_of(goals.delta, look)))


def kept(goals: Goals) -> int:
    """How many samples of a place to keep: limits of a class need samples of that class, which may be rare."""
    return MOST_KEPT if goals.classes else min(MOST_KEPT, max(KEPT, 2 * needed(goals, 4)))


def is_due(collected: Collected, goals: Goals, looks: int, looked_at: int) -> bool:
    """Whether to look for a threshold now, after so many looks, the last at ``looked_at`` samples."""
    return len(collected) >= needed(goals, looks + 1) and collected.seen >= GROWTH * looked_at


def look_for(rows: Rows, goals: Goals, labels: Sequence[str] | None, place: Place, look: int) -> Look:
    """A threshold for the place that keeps the goals, if the samples allow one.

    Args:
        rows: as ``Collected.rows`` gives them.
        goals: in force.
        labels: the version's classes; empty: they have no names; None: not known.
        place: that the rows are of.
        look: which one it is, from 1.
    """
    missing = int((rows["whole"] == UNKNOWN).sum())
    try:
        constraints = _constraints(goals, labels, place)
    except MeshError as error:
        return Look(None, f"everything goes on escalating: {error.message}")
    choice = choose(
        rows["ease"],
        rows["said"].astype(np.int64),
        rows["whole"].astype(np.int64),
        [AtWorst(constraint) for constraint in constraints],
        delta=delta_of(goals.delta, look),
    )
    notes = [f"{missing} of them without an answer of the tail and counted as wrong"] if missing else []
    if len(rows) and (last := int(rows["exit"].max())) > 0:
        notes.append(f"measured at exit {last}, the one before the link")
    why = f"from {len(rows)} samples since the drift ({', '.join([f'look {look}', *notes])}): {choice.reason}"
    why = why.replace("calibration samples", "of these samples")
    return Look(choice.threshold if choice.accepted else None, why)


def falls_short(goals: Goals, look: int) -> str:
    """Why no number of samples that are kept can be enough; empty where it can."""
    wanted, most = needed(goals, look), kept(goals)
    if wanted <= most:
        return ""
    return f"{wanted} samples would be needed and {most} are kept: it escalates until somebody resolves it or states other goals"


def _constraints(goals: Goals, labels: Sequence[str] | None, place: Place) -> list[Constraint]:
    """Without those that nothing of the place can break: of one class that the exit names there, it misses others alone."""
    if goals.classes and labels is None:
        raise field_error("classes", "are limited by name, and the version's names are not known now")
    names = labels or tuple(_numbers(goals))
    found = constraints_of(goals, names)
    if place.number is None:
        return found
    return [
        one
        for one in found
        if not (isinstance(one, Missed) and one.label == place.number)
        and not (isinstance(one, FalseAlarm) and one.label != place.number)
    ]


def _numbers(goals: Goals) -> list[str]:
    """Names of classes that have none: their numbers, up to the largest that is limited."""
    limited = [int(one.label) for one in goals.classes if one.label.isdecimal() and len(one.label) < 5]
    return [str(number) for number in range(max([*limited, 0], default=0) + 1)]
