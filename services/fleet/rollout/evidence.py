"""What a trial has counted: the last sums of every source, each counted once, whatever comes twice, late or after a restart.

Heads tell sums since they began, not what is new: hearing the same again adds nothing, and what was missed comes with the next.
Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.routing.paired_test import Pairs

SUMS = (
    "both_right",
    "only_serving_right",
    "only_candidate_right",
    "both_wrong",
    "candidate_failed",
    "serving_failed",
    "not_made",
    "answered_by_serving",
    "answered_by_candidate",
)
"""Fields of ``TrialCounts``, and columns of ``trial_counts``."""
MAX_SOURCES = 100
"""Lives of heads on one host that one trial listens to: a head that starts over and over must not fill the disk."""
MAX_SUM = 10**15

Key = tuple[str, str, str]
"""Trial, host, source."""
Sums = tuple[int, ...]
"""In the order of :data:`SUMS`."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Totals of a deployment's trials."""

    pairs: Pairs = field(default_factory=Pairs)
    candidate_failed: int = 0
    serving_failed: int = 0
    not_made: int = 0
    answered_by_serving: int = 0
    answered_by_candidate: int = 0

    @classmethod
    def of(cls, sums: Sums) -> Tally:
        """From sums."""
        return cls(Pairs(*sums[:4]), *sums[4:])


class Ledger:
    """Of one deployment."""

    def __init__(self, known: dict[Key, Sums] | None = None) -> None:
        self._last = dict(known or {})
        self._total = [0] * len(SUMS)
        for sums in self._last.values():
            self._add(sums)
        self._sources = Counter(node for _, node, _ in self._last)
        self.changed: dict[Key, Sums] = {}
        """Since it was saved."""

    @property
    def tally(self) -> Tally:
        """All that was counted."""
        return Tally.of(tuple(self._total))

    def take(self, node: str, counts: serving_pb2.TrialCounts) -> str:
        """Counts what is new; otherwise says why the host is not believed: nothing of it is counted."""
        key = (counts.trial_id, node, counts.source)
        sums = tuple(int(getattr(counts, name)) for name in SUMS)
        before = self._last.get(key)
        if sums == before:
            return ""
        if max(sums) > MAX_SUM:
            return "its trial counts are impossibly large and were not counted"
        if before is not None and any(new < old for new, old in zip(sums, before, strict=True)):
            return "its trial counts went down and were not counted"
        if before is None:
            if self._sources[node] >= MAX_SOURCES:
                return (
                    f"its heads began anew more than {MAX_SOURCES} times in this trial; later counts were not counted"
                )
            self._sources[node] += 1
        self._add(tuple(new - old for new, old in zip(sums, before or (0,) * len(SUMS), strict=True)))
        self._last[key] = self.changed[key] = sums
        return ""

    def _add(self, sums: Sums) -> None:
        for index, value in enumerate(sums):
            self._total[index] += value
