"""What the router remembers: goals, sites, policy revisions, sums of outcomes, how crowded each head's tails were last. The
port, and the store in memory.

`store_sqlite.py` is the durable one; both pass the same conformance suite. Knows counts and numbers, not gRPC, and
nothing of how a policy is computed or a site's uplink shared: goals and sites are texts here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from splitmesh.routing import audit

MAX_REASONS = 64
"""Distinct reason codes kept per node and version; further ones are counted under OTHER."""
OTHER = "OTHER"
MAX_EARLY = 1024
"""Reports of one boot remembered ahead of a gap. When more arrive, the gap is given up: the missing report, should it
come after all, adds nothing (counts may be low, never double)."""
MAX_BOOTS = 16
"""Boots of one node whose reports are told apart from repetitions; the longest silent one is forgotten."""
MAX_ENTRIES = 10_000
"""Most entries one answer holds; those that reported last."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Decided samples."""

    edge_exit: int = 0
    cloud_tail: int = 0
    tail_disagreed: int = 0
    edge_fallback: Mapping[str, int] = field(default_factory=dict)
    """By reason code."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """By reason code."""
    edge_whole: int = 0
    hard: Mapping[str, int] = field(default_factory=dict)
    """Why samples were hard, by `RouteReason` without its prefix."""

    def plus(self, other: Counts) -> Counts:
        """The sum."""
        return Counts(
            self.edge_exit + other.edge_exit,
            self.cloud_tail + other.cloud_tail,
            self.tail_disagreed + other.tail_disagreed,
            _sum(self.edge_fallback, other.edge_fallback),
            _sum(self.refused, other.refused),
            self.edge_whole + other.edge_whole,
            _sum(self.hard, other.hard),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """How crowded the way to the tails is; the fields are ``splitmesh.api.routing.v1.UplinkLoad``'s."""

    backlog_ms: float = 0.0
    goodput_mbps: float = 0.0
    rtt_ms: float = 0.0
    loss: float = 0.0
    tails: int = 0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of one decided sample, without the sample; the fields are ``splitmesh.api.routing.v1.Sight``'s."""

    camera: str
    exit_class: int
    """Class that the exit named; of a detector's exit 0: nothing, 1: something."""
    ease: float
    """0..1, NaN where it is undefined."""
    unusual: bool | None
    """None: not looked at."""
    tail_class: int | None
    """None: not asked, or it did not answer."""
    audited: bool
    """The exit was sure, and the tail was asked to check it."""
    exit: int
    """Which exit decided, counted from the input."""
    age_ms: float
    """Before the report was made."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one head counted since its last report."""

    node: str
    boot_id: str
    sequence: int
    """From 1 within a boot; with node and boot_id the key by which a repetition is recognised."""
    model: str
    version: int
    counts: Counts
    load: Load | None = None
    """None for a version without tails."""
    sights: tuple[Sight, ...] = ()
    """In the order of time; not stored here."""
    audits: Mapping[audit.Stratum, audit.Counts] = field(default_factory=dict)
    """Since the last report; not stored here."""
    sights_left_out: int = 0
    """That there was no room to tell."""


@dataclass(frozen=True, slots=True)
class NodeOutcomes:
    """Sums of one version on one node."""

    node: str
    version: int
    counts: Counts
    last_report_time: datetime
    """UTC."""
    load: Load | None = None
    """Of the last report."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Which reports of one boot were added: all up to `floor`, and those in `early`, which came ahead of a gap."""

    floor: int = 0
    early: frozenset[int] = frozenset()

    def __contains__(self, sequence: int) -> bool:
        return sequence <= self.floor or sequence in self.early

    def plus(self, sequence: int) -> Seen:
        """With one more; in-order reports leave nothing but the floor."""
        floor, early = self.floor, set(self.early) | {sequence}
        if len(early) > MAX_EARLY:
            floor = min(early) - 1
        while floor + 1 in early:
            floor += 1
            early.remove(floor)
        return Seen(floor, frozenset(early))


class RouterStore(Protocol):
    """Every change is durable when its call returns. MeshError STORAGE_FULL when it cannot be."""

    async def start(self) -> None:
        """Open; ready when it returns."""
        ...

    async def stop(self) -> None:
        """Let go; safe to call after a failed start."""
        ...

    async def goals(self, model: str) -> str | None:
        """What was stated for the model last, as text."""
        ...

    async def set_goals(self, model: str, text: str) -> None:
        """State it."""
        ...

    async def sites(self) -> dict[str, str]:
        """What was stated for each site last, as text, by name."""
        ...

    async def set_site(self, name: str, text: str) -> None:
        """State it."""
        ...

    async def revision(self, model: str, version: int, policy: str) -> int:
        """The revision of this policy text: the last one when the text is the same, else the next; from 1 up."""
        ...

    async def add(self, report: Report, at: datetime) -> bool:
        """Adds the counts unless this report was added before; whether it did."""
        ...

    async def outcomes(self, model: str, version: int | None = None) -> list[NodeOutcomes]:
        """Sums by node and version, sorted by these; of one version, or all."""
        ...


class MemoryStore:
    """A RouterStore that forgets everything at its end, for tests and demonstrations."""

    def __init__(self) -> None:
        self._goals: dict[str, str] = {}
        self._sites: dict[str, str] = {}
        self._policies: dict[tuple[str, int], tuple[int, str]] = {}
        self._seen: dict[str, dict[str, Seen]] = {}
        self._sums: dict[tuple[str, int, str], NodeOutcomes] = {}

    async def start(self) -> None:
        """Nothing to open."""

    async def stop(self) -> None:
        """Nothing to close."""

    async def goals(self, model: str) -> str | None:
        """See RouterStore."""
        return self._goals.get(model)

    async def set_goals(self, model: str, text: str) -> None:
        """See RouterStore."""
        self._goals[model] = text

    async def sites(self) -> dict[str, str]:
        """See RouterStore."""
        return dict(sorted(self._sites.items()))

    async def set_site(self, name: str, text: str) -> None:
        """See RouterStore."""
        self._sites[name] = text

    async def revision(self, model: str, version: int, policy: str) -> int:
        """See RouterStore."""
        number, last = self._policies.get((model, version), (0, None))
        if policy != last:
            number += 1
            self._policies[model, version] = (number, policy)
        return number

    async def add(self, report: Report, at: datetime) -> bool:
        """See RouterStore."""
        boots = self._seen.setdefault(report.node, {})
        seen = boots.pop(report.boot_id, Seen())
        fresh = report.sequence not in seen
        boots[report.boot_id] = seen.plus(report.sequence) if fresh else seen
        while len(boots) > MAX_BOOTS:
            del boots[next(iter(boots))]
        if fresh:
            key = (report.model, report.version, report.node)
            before = self._sums[key].counts if key in self._sums else Counts()
            self._sums[key] = NodeOutcomes(report.node, report.version, before.plus(report.counts), at, report.load)
        return fresh

    async def outcomes(self, model: str, version: int | None = None) -> list[NodeOutcomes]:
        """See RouterStore."""
        found = [sums for (name, _, _), sums in self._sums.items() if name == model and version in (None, sums.version)]
        newest = sorted(found, key=lambda entry: entry.last_report_time, reverse=True)[:MAX_ENTRIES]
        return sorted(newest, key=lambda entry: (entry.node, entry.version))


def _sum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    total = dict(left)
    for reason, count in right.items():
        known = reason in total or len(total) < MAX_REASONS
        key = reason if known else OTHER
        total[key] = total.get(key, 0) + count
    return total
