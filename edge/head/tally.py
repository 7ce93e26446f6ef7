"""What became of one version's samples since it was last asked: counts, sights, and what is urgent about them. No network."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge.head.sights import Seen, Sights
from splitmesh.client.routing import Outcomes, Sight
from splitmesh.routing.audit import Counts, Stratum

NOTHING = Outcomes()


@dataclass(slots=True)
class Numbers:
    """Counts, by what became of a sample; :class:`splitmesh.client.routing.Outcomes` says what each means."""

    edge_exit: int = 0
    edge_whole: int = 0
    cloud_tail: int = 0
    tail_disagreed: int = 0
    fallback: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    hard: Counter[str] = field(default_factory=Counter)

    def counts(self) -> Outcomes:
        """As the router takes them."""
        return Outcomes(
            edge_exit=self.edge_exit,
            edge_whole=self.edge_whole,
            cloud_tail=self.cloud_tail,
            edge_fallback=dict(self.fallback),
            tail_disagreed=self.tail_disagreed,
            refused=dict(self.refused),
            hard=dict(self.hard),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What is told the router once; sent again, it says the same, but that its sights have aged."""

    sequence: int
    model: str
    version: int
    counts: Outcomes
    seen: tuple[Seen, ...]
    left_out: int
    """Frames that there was no room for in ``seen``."""
    audits: Mapping[Stratum, Counts]

    def sights(self, now: float) -> list[Sight]:
        """``seen``, told at ``now`` on the clock of its times."""
        return [seen.sight(now) for seen in self.seen]


class Tally:
    """Of one version."""

    def __init__(self, random_: random.Random, now: float) -> None:
        """``random_`` draws which frames are told; there is room for them from ``now`` on."""
        self.numbers = Numbers()
        self.sights = Sights(random_, now)
        self._short, self._was_short = False, False

    def short_of_budget(self) -> bool:
        """A frame was kept from the tail for want of budget; whether the router has not heard of such a thing lately."""
        news = not (self._short or self._was_short)
        self._short = True
        return news

    def drain(
        self, sequence: int, model: str, version: int, audits: Mapping[Stratum, Counts], now: float
    ) -> Report | None:
        """All since the last time, with the ``audits`` since then; None where there is nothing to tell."""
        counts, self.numbers = self.numbers.counts(), Numbers()
        seen, left_out = self.sights.drain(now)
        self._short, self._was_short = False, self._short
        if counts == NOTHING and not (seen or left_out or audits):
            return None
        return Report(sequence, model, version, counts, seen, left_out, audits)
