"""Heads without a network for tests of the router's sharing: they hear of grants when the test says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from services.router.shares.board import ShareBoard
from services.router.shares.site import Member
from services.router.shares.stated import Site
from services.router.store import Load, MemoryStore
from splitmesh.routing.demand import Demand

INTERVAL_S = 0.25
BINS = 32


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class World:
    """A board whose time stands still until it is told to pass."""

    clock: Clock = field(default_factory=Clock)
    store: MemoryStore = field(default_factory=MemoryStore)
    max_sharers: int = 100

    def __post_init__(self) -> None:
        self.heads: list[Head] = []
        self.board = ShareBoard(
            self.store,
            interval_s=INTERVAL_S,
            max_backlog_ms=100.0,
            max_sharers=self.max_sharers,
            clock=self.clock,
        )

    async def state(self, **fields: object) -> None:
        """A budget, and then a quiet second."""
        await self.board.set_site(Site(**({"name": "line-4"} | fields)))  # type: ignore[arg-type]
        self.go(1.0)

    def head(self, node: str = "mec-1", site: str = "line-4") -> Head:
        head = Head(self.board, self.board.join(node, site))
        self.heads.append(head)
        return head

    def go(self, seconds: float, step_s: float = 0.05) -> None:
        """Time passes; everybody hears at once of what the board says at each step."""
        for _ in range(round(seconds / step_s)):
            self.go_without_delivery(step_s)
            for head in self.heads:
                head.deliver()

    def go_without_delivery(self, seconds: float) -> None:
        """Time passes, and what the board says stays where it is."""
        self.clock.now_s += seconds
        self.board.turn()


class Head:
    """One member, and what is in force there."""

    def __init__(self, board: ShareBoard, member: Member) -> None:
        self._board, self.member = board, member
        self.bytes_per_s = 0.0
        self.cloud_ms_per_s = 0.0
        self.heard = 0
        self.why = ""

    def ask(self, *demands: Demand, load: Load | None = None) -> None:
        self._board.hear(self.member, demands, load)

    def deliver(self) -> None:
        """The stream takes what waits, and the head gets it."""
        grant = self.member.send()
        if grant is not None:
            self._board.taken(self.member)
            self.bytes_per_s = grant.amount.bytes_per_s
            self.cloud_ms_per_s = grant.amount.cloud_ms_per_s
            self.why = grant.why
            self.heard += 1


def asks(
    application: str = "solder", *, per_s: float, size: float = 1000.0, ms: float = 10.0, worth: float = 0.5
) -> Demand:
    """Samples of one worth."""
    rates = np.zeros(BINS)
    rates[min(BINS - 1, int(worth * BINS))] = per_s
    return Demand(application, 1.0, 0.0, rates, np.linspace(0, 1, BINS + 1), size, ms)


def load(backlog_ms: float, *, goodput_mbps: float = 0.0, tails: int = 1) -> Load:
    return Load(backlog_ms=backlog_ms, goodput_mbps=goodput_mbps, tails=tails)


def in_force(heads: list[Head]) -> tuple[float, float]:
    """Of all heads together."""
    return math.fsum(one.bytes_per_s for one in heads), math.fsum(one.cloud_ms_per_s for one in heads)
