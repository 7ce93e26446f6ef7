"""What the watches of a line are fed: a changed mix is no drift, a rare class is not asked for what all promise together."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from services.router.drift.blocks import MAX_STANDS_FOR, Blocks
from services.router.drift.events import Place
from services.router.drift.inbox import Inbox
from services.router.drift.line import Line
from services.router.drift.watches import Kind
from services.router.store import Sight
from tests.unit.drifting import GOALS, LABELS, NOW, audit, fed, line_of_eases, report, sight


def new() -> Line:
    return Line("parts", 1, GOALS)


def stream(rng: np.random.Generator, n: int, share: float, means: dict[tuple[str, int], float]) -> list[Sight]:
    """Of two places; ``share`` of the samples are of the second."""
    eases = {place: iter(line_of_eases(rng, n, mean)) for place, mean in means.items()}
    first, second = means
    places = [second if rng.random() < share else first for _ in range(n)]
    return [sight(camera, said, float(next(eases[camera, said]))) for camera, said in places]


def test_a_camera_that_stops_is_no_drift_of_all() -> None:
    rng, line, means = np.random.default_rng(1), new(), {("a", 0): 0.9, ("b", 0): 0.5}
    assert fed(line, stream(rng, 18_000, 0.5, means)) == []
    assert fed(line, stream(rng, 10_000, 0.0, means)) == []


def test_classes_that_come_in_other_shares_are_no_drift_of_their_camera() -> None:
    rng, line, means = np.random.default_rng(2), new(), {("a", 0): 0.9, ("a", 1): 0.5}
    assert fed(line, stream(rng, 18_000, 0.5, means)) == []
    assert fed(line, stream(rng, 10_000, 0.05, means)) == []


def test_all_classes_that_drift_together_are_a_drift_of_their_camera_in_the_words_of_eases() -> None:
    rng, line, means = np.random.default_rng(3), new(), {("a", 0): 0.9, ("a", 1): 0.5}
    fed(line, stream(rng, 18_000, 0.5, means))
    event, *_ = fed(line, stream(rng, 3000, 0.5, {("a", 0): 0.6, ("a", 1): 0.2}))
    assert (event.place, event.kind) == (Place("a"), Kind.EASE)
    assert event.before == pytest.approx(0.7, abs=0.03)
    assert event.now == pytest.approx(0.4, abs=0.1)


def test_a_detector_that_finds_much_by_day_and_little_by_night_has_not_drifted() -> None:
    rng, line = np.random.default_rng(4), new()

    def phase(n: int, found: float) -> list[Sight]:
        eases = line_of_eases(rng, n, 0.9)
        return [sight(said=1, ease=math.nan) if rng.random() < found else sight(ease=float(ease)) for ease in eases]

    for found in (0.6, 0.02, 0.6, 0.02):
        assert fed(line, phase(12_000, found)) == []
    assert [event.place for event in fed(line, [sight(ease=0.5)] * 2000)] == [Place("a")]


def test_an_ease_that_is_no_longer_defined_counts_as_the_hardest() -> None:
    rng, line = np.random.default_rng(5), new()
    fed(line, [sight(ease=float(ease)) for ease in line_of_eases(rng, 9000)])
    event, *_ = fed(line, [sight(ease=math.nan)] * 2000)
    assert (event.kind, event.place) == (Kind.EASE, Place("a"))
    assert event.now < event.before - 0.1


def test_only_a_class_whose_ease_was_once_defined_is_fed_undefined_ones() -> None:
    blocks, never, once = Blocks(9), Place("a", 1), Place("a", 0)
    assert [blocks.ease(never, math.nan, known=False) for _ in range(12)] == [None] * 12
    assert not blocks.others(once)
    blocks.ease(once, 0.8, known=False)
    assert [blocks.ease(once, math.nan, known=False) for _ in range(3)] == [None, None, 0.2]
    assert blocks.over_all(0.5) == (0.5,)
    assert [blocks.ease(Place("b", 0), math.nan, known=True) for _ in range(4)][-1] == 0.0


def test_a_drift_of_the_only_class_of_a_camera_is_the_camera_s_even_before_its_own_watch_has_learned() -> None:
    rng, line = np.random.default_rng(8), new()
    assert fed(line, [sight(ease=float(ease)) for ease in line_of_eases(rng, 3200)]) == []
    event, *_ = fed(line, [sight(ease=float(ease)) for ease in line_of_eases(rng, 1000, 0.6)])
    assert (event.place, event.label) == (Place("a"), "")


def test_a_rare_class_that_always_disagreed_more_has_not_drifted() -> None:
    rng = np.random.default_rng(6)

    def audits(n: int, share: float) -> list[Sight]:
        rare = [bool(one) for one in rng.random(n) < share]
        strange = [bool(one) for one in rng.random(n) < 0.1]
        return [
            replace(audit(said=int(one), wrong=one and bool(rng.random() < 0.4)), unusual=one and odd)
            for one, odd in zip(rare, strange, strict=True)
        ]

    line = new()
    assert fed(line, audits(6000, 0.05)) == []
    assert [event.place for event in fed(line, audits(2000, 0.9))][:1] == [Place("a")]


def test_samples_that_a_head_left_out_count_among_those_that_escalate() -> None:
    rng, alarms = np.random.default_rng(7), []
    for left_out in (950, 0):
        line, inbox = new(), Inbox()
        for _ in range(60):
            audits = [audit(wrong=bool(rng.random() < 0.2)) for _ in range(5)]
            inbox.take(report(*audits, *[sight(ease=0.3, whole=1)] * 50, left_out=left_out), NOW)
        changed = []
        while len(inbox):
            changed += line.fed(inbox.next(), GOALS, LABELS, NOW + timedelta(seconds=1))
        alarms.append({event.kind for event in changed})
    assert alarms == [set(), {Kind.DISAGREEMENT}]


def test_what_a_sample_stands_for_is_bounded() -> None:
    inbox = Inbox()
    inbox.take(report(audit(wrong=False), sight(), left_out=2**63), NOW)
    assert [one.stands_for for one in inbox.next()] == [1.0, 1.0 + 2**63]
    inbox.take(report(audit(wrong=False), left_out=3), NOW)
    assert [one.stands_for for one in inbox.next()] == [1.0]
    assert Blocks(2).right(Place("a", 0), 0.5, 2.0**63) == MAX_STANDS_FOR / 2
