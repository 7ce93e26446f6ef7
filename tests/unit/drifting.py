"""Streams of sights as heads tell them: lines that stay as they are, that drift, and what the tail says of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from services.router.drift.collected import UNIT_S
from services.router.drift.events import DriftEvent
from services.router.drift.line import Line, Seen
from services.router.goals import Goals
from services.router.store import Counts, Report, Sight
from splitmesh.routing.audit import Counts as AuditCounts
from splitmesh.routing.audit import Stratum

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UNIT = timedelta(seconds=UNIT_S)
"""Samples so far from each other are each a unit."""
LATER = NOW + timedelta(minutes=1)
GOALS = Goals(max_disagreement=0.05, delta=0.05, audit_share=0.02)
LABELS = ("OK", "NG")


def sight(
    camera: str = "a",
    said: int = 0,
    ease: float = 0.9,
    *,
    whole: int | None = None,
    unusual: bool | None = None,
    audited: bool = False,
    exit_: int = 0,
    age_ms: float = 0.0,
) -> Sight:
    """One; the tail was not asked unless ``whole`` says what it answered."""
    return Sight(camera, said, ease, unusual, whole, audited, exit_, age_ms)


def audit(camera: str = "a", said: int = 0, *, wrong: bool) -> Sight:
    """An audited one."""
    return sight(camera, said, 0.95, whole=1 - said if wrong else said, audited=True)


def escalated(
    rng: np.random.Generator,
    n: int,
    *,
    wrong: float = 0.4,
    camera: str = "a",
    said: int = 0,
    every: timedelta = timedelta(0),
) -> list[Sight]:
    """Of a place that is tightened: an ease says how likely the exit is wrong, from 0 at 1 to ``wrong`` at 0."""
    ages = [(n - 1 - i) * every.total_seconds() * 1e3 for i in range(n)]
    return [
        sight(camera, said, float(ease), whole=1 - said if rng.random() < wrong * (1 - ease) else said, age_ms=age)
        for ease, age in zip(rng.beta(3, 1, n), ages, strict=True)
    ]


def true_risk(threshold: float, wrong: float = 0.4) -> float:
    """P(accepted and wrong) of the samples of ``escalated``."""
    x = np.linspace(threshold, 1, 20_001)
    return float(np.trapezoid(3 * x**2 * wrong * (1 - x), x)) if threshold < 1 else 0.0


def line_of_eases(rng: np.random.Generator, n: int, mean: float = 0.9, *, memory: float = 0.9) -> np.ndarray:
    """Each like the one before."""
    noise = rng.standard_normal(n) * math.sqrt(1 - memory**2)
    hidden, state = np.empty(n), rng.standard_normal()
    for i in range(n):
        state = memory * state + noise[i]
        hidden[i] = state
    return np.clip(mean + 0.05 * hidden, 0, 1)


def fed(
    line: Line, sights: list[Sight], *, goals: Goals = GOALS, at: datetime = NOW, every: timedelta = timedelta(0)
) -> list[DriftEvent]:
    """What a thousand at a time lead to, from ``at`` on; events get numbers as if they were stored."""
    found: list[DriftEvent] = []
    for begin in range(0, max(1, len(sights)), 1000):
        seen = [Seen(at + i * every, one) for i, one in enumerate(sights[begin : begin + 1000], begin)]
        found += numbered(line, line.fed(seen, goals, LABELS, at))
    return found


def numbered(line: Line, changed: list[DriftEvent]) -> list[DriftEvent]:
    """Stored, as it were."""
    numbers = itertools.count(1 + max((event.number for event in [*line.open.values(), *changed]), default=0))
    events = [event if event.number else replace(event, number=next(numbers)) for event in changed]
    line.adopt(events)
    return events


def report(
    *sights: Sight,
    model: str = "parts",
    version: int = 1,
    audits: dict[Stratum, AuditCounts] | None = None,
    left_out: int = 0,
) -> Report:
    """Of one head."""
    return Report("mec-1", "b", 1, model, version, Counts(), None, sights, audits or {}, left_out)
