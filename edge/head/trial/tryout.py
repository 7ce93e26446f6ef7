"""The place of the version that is tried beside the one that answers, and the trial that goes on while both are loaded."""

from __future__ import annotations

from collections.abc import Callable

from edge.head.serving.assignments import Assignment
from edge.head.serving.slot import Order, Slot
from edge.head.trial.trial import Counts, Trial


class Tryout:
    """Of one model.

    Args:
        serving: where the version is that answers.
        candidate: where the one is that is tried.
        note: name in the cache under which the candidate's parts stay.
        changed: called when something was counted.
    """

    def __init__(self, serving: Slot, candidate: Slot, note: str, changed: Callable[[], None]) -> None:
        self._serving = serving
        self._candidate = candidate
        self._note = note
        self._changed = changed
        self.trial: Trial | None = None
        """What is tried now; None: nothing, or it is not loaded yet."""
        self.counts: Counts | None = None
        """Of the trial that was ordered."""

    def direct(self, assignment: Assignment | None) -> None:
        """As assigned from now on; a version that is about to answer stays until it is taken over."""
        self._see(assignment)
        wanted = None if assignment is None else assignment.version
        if wanted is not None and _has(self._candidate, wanted) and not _has(self._serving, wanted):
            return
        trial = None if assignment is None else assignment.trial
        generation = 0 if assignment is None else assignment.generation
        self._candidate.want(None if trial is None else Order(trial.candidate, note=self._note, generation=generation))

    def settled(self, assignment: Assignment | None) -> None:
        """Something was loaded or taken over: what was taken over is no candidate any more."""
        self._see(assignment)
        trial = None if assignment is None else assignment.trial
        wanted, asked = (None if trial is None else trial.candidate), self._candidate.wanted
        if (None if asked is None else asked.version) != wanted:
            self.direct(assignment)

    def stop(self) -> None:
        """Nothing is tried any more."""
        self.trial = None

    def _see(self, assignment: Assignment | None) -> None:
        """Whether both are there."""
        order = None if assignment is None else assignment.trial
        self.trial = None
        if assignment is None or order is None:
            self.counts = None
            return
        if self.counts is None or self.counts.trial_id != order.trial_id:
            self.counts = Counts(order.trial_id)
        serving, candidate = self._serving.loaded, self._candidate.loaded
        if serving is None or candidate is None:
            return
        if (serving.info.version, candidate.info.version) == (assignment.version, order.candidate):
            self.trial = Trial(order, candidate.ways, self.counts, self._changed)


def _has(slot: Slot, version: int) -> bool:
    return slot.loaded is not None and slot.loaded.info.version == version
