"""When a threshold is looked for while a place is tightened, which one is settled for, and what is waited for until then."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np

from services.router.drift.events import Place, State
from services.router.drift.line import Line, Seen
from services.router.goals import ClassLimit
from tests.unit.drifting import GOALS, LATER, UNIT, audit, escalated, fed, numbered, sight

WRONG = [audit(wrong=True)] * 20


def test_looks_are_not_spent_while_a_class_lacks_samples_or_nobody_knows_its_name() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.05),))
    line = Line("parts", 1, goals)
    fed(line, WRONG, goals=goals)
    fed(line, [sight(ease=0.99, whole=0)] * 2000, goals=goals, at=LATER, every=UNIT)
    nameless = [Seen(LATER + timedelta(days=1), sight(ease=0.99, whole=0))]
    numbered(line, line.fed(nameless, goals, None, LATER))
    event = line.open[Place("a")]
    assert (event.looks, event.state) == (0, State.TIGHTENED)
    assert "not known now" in event.why
    found = [sight(ease=0.95, said=1, whole=1)] * 100
    *_, event = fed(line, found, goals=goals, at=LATER + timedelta(days=2), every=UNIT)
    assert (event.looks, event.state) == (1, State.RECALIBRATED)


def test_frames_in_a_row_do_not_bring_a_threshold_and_it_is_told_how_many_it_takes() -> None:
    line = Line("parts", 1, GOALS)
    fed(line, WRONG)
    alike = escalated(np.random.default_rng(20), 1000)
    fed(line, alike, at=LATER, every=timedelta(milliseconds=100))
    event = line.now(line.open[Place("a")])
    assert (event.state, event.looks, event.collected) == (State.TIGHTENED, 0, 1000)
    assert 1200 < event.needed < 1700
    *_, event = fed(line, alike * 3, at=LATER + timedelta(minutes=5), every=timedelta(milliseconds=100))
    assert event.state is State.RECALIBRATED


def test_a_threshold_that_lets_hardly_anything_pass_does_not_end_the_search() -> None:
    line = Line("parts", 1, GOALS)
    fed(line, WRONG)
    hard = [sight(ease=0.99, whole=0), *[sight(ease=0.5, whole=1)] * 19] * 40
    changed = fed(line, hard, at=LATER, every=UNIT)
    assert changed[-1].state is State.TIGHTENED
    assert "20% exit" in changed[-1].why
    *_, event = fed(line, [sight(ease=0.99, whole=0)] * 600, at=LATER + timedelta(days=1), every=UNIT)
    assert (event.state, event.looks) == (State.RECALIBRATED, 2)
