"""One version under watch: what drifts is tightened at once, there and nowhere else, and let go by what came since."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest

from services.router.drift import line as drift_line
from services.router.drift.events import EVERYWHERE, Place, State, overrides
from services.router.drift.line import SETTLING, Line, Seen
from services.router.drift.watches import Kind
from services.router.goals import ClassLimit
from services.router.store import Sight
from splitmesh.routing.gate import ESCALATE_ALL
from tests.unit.drifting import (
    GOALS,
    LATER,
    NOW,
    UNIT,
    audit,
    escalated,
    fed,
    line_of_eases,
    numbered,
    sight,
    true_risk,
)

WRONG = [audit(wrong=True)] * 20
"""Audits that no promise of 0.05 can explain."""


LEARNED = 9_000
"""Samples of a camera and class after which it is known what is usual there."""


def new() -> Line:
    return Line("parts", 1, GOALS)


def mixed(rng: np.random.Generator, n: int, means: dict[tuple[str, int], float]) -> list[Sight]:
    """Sights of several cameras and classes in turn."""
    eases = {place: iter(line_of_eases(rng, n, mean)) for place, mean in means.items()}
    return [sight(camera, said, float(next(eases[camera, said]))) for _ in range(n) for camera, said in means]


def test_nothing_is_tightened_in_twenty_thousand_samples_of_stable_cameras() -> None:
    rng, line = np.random.default_rng(1), new()
    sights = mixed(rng, 10_000, {("a", 0): 0.9, ("b", 0): 0.8})
    for i in range(0, len(sights), 50):
        sights[i] = replace(sights[i], audited=True, tail_class=int(rng.random() < 0.04), unusual=False)
    assert len(sights) == 20_000
    assert fed(line, sights) == []
    assert overrides(line.open.values()) == ()


def test_a_camera_whose_eases_drop_is_tightened_and_no_other() -> None:
    rng, line = np.random.default_rng(2), new()
    usual = {("a", 0): 0.9, ("b", 0): 0.9, ("c", 0): 0.85}
    assert fed(line, mixed(rng, LEARNED, usual)) == []
    (event,) = fed(line, mixed(rng, 2000, usual | {("b", 0): 0.75}))
    assert (event.kind, event.place, event.label, event.state) == (Kind.EASE, Place("b"), "", State.TIGHTENED)
    assert event.before == pytest.approx(0.9, abs=0.03)
    assert event.now < 0.85
    (override,) = overrides(line.open.values())
    assert (override.camera, override.label, override.threshold) == ("b", "", ESCALATE_ALL)
    assert "camera b" in override.why


def test_a_class_that_drifts_among_stable_ones_is_tightened_alone() -> None:
    rng, line = np.random.default_rng(3), new()
    usual = {("a", 0): 0.9, ("a", 1): 0.9, ("a", 2): 0.9, ("b", 0): 0.9}
    assert fed(line, mixed(rng, LEARNED, usual)) == []
    events = fed(line, mixed(rng, 2000, usual | {("a", 1): 0.75}))
    assert [(event.place, event.label) for event in events] == [(Place("a", 1), "NG")]


def test_an_ease_that_rises_tightens_too() -> None:
    rng, line = np.random.default_rng(4), new()
    fed(line, mixed(rng, LEARNED, {("a", 0): 0.7}))
    (event,) = fed(line, mixed(rng, 2000, {("a", 0): 0.9}))
    assert event.now > event.before
    assert event.threshold == ESCALATE_ALL


def test_audits_that_disagree_and_unusual_samples_tighten_within_a_few() -> None:
    (event,) = fed(new(), WRONG)
    assert (event.kind, event.place) == (Kind.DISAGREEMENT, Place("a"))
    (event,) = fed(new(), [sight(unusual=True)] * 200)
    assert (event.kind, event.place) == (Kind.UNUSUAL, Place("a"))


def test_what_is_promised_of_all_samples_is_not_asked_of_the_accepted_ones_alone() -> None:
    rng = np.random.default_rng(12)
    audits = [audit(wrong=bool(rng.random() < 0.15)) for _ in range(500)]
    escalated_too = [one for each in audits for one in (each, *[sight(ease=0.3, whole=1)] * 200)]  # a fifth exits
    assert fed(new(), escalated_too) == []
    event, *_ = fed(new(), audits)
    assert event.kind is Kind.DISAGREEMENT
    too_many = [one for each in audits for one in (each, *[sight(ease=0.3, whole=1)] * 20)]  # seven in ten exit
    event, *_ = fed(new(), too_many)
    assert event.kind is Kind.DISAGREEMENT


def test_samples_without_a_camera_stand_for_all_cameras() -> None:
    (event,) = fed(new(), [audit("", wrong=True)] * 20)
    assert event.place == EVERYWHERE
    assert [(one.camera, one.label) for one in overrides([event])] == [("", "")]


def test_without_names_of_classes_a_class_is_taken_for_its_camera() -> None:
    line = new()
    line.adopt(())
    seen = [Seen(NOW, audit("a", 1, wrong=True)) for _ in range(4)] + [Seen(NOW, audit("a", 0, wrong=False))] * 30
    seen = seen * 1 + [Seen(NOW, audit("a", 1, wrong=True)) for _ in range(20)]
    places = [event.place for event in line.fed(seen, GOALS, None, NOW)]
    assert places == [Place("a")]


def test_several_drifts_of_one_place_are_one_event_until_it_is_let_go() -> None:
    line = new()
    (event,) = fed(line, WRONG)
    again = fed(line, [replace(one, unusual=True) for one in WRONG] * 20)
    assert {one.number for one in again} == {event.number}
    assert "unusual" in again[-1].why
    assert list(line.open) == [Place("a")]


def test_a_drift_over_all_covers_every_place() -> None:
    line = new()
    fed(line, [audit("", wrong=True)] * 20)
    assert fed(line, [audit("b", wrong=True)] * 40 + [audit("c", 1, wrong=True)] * 40) == []
    assert list(line.open) == [EVERYWHERE]


def test_what_is_known_of_one_camera_does_not_tighten_the_others() -> None:
    line = new()
    fed(line, WRONG)
    fed(line, WRONG * 100)
    assert list(line.open) == [Place("a")]


def test_a_place_is_recalibrated_to_a_threshold_that_keeps_the_promise() -> None:
    risks = []
    for seed in range(20):
        line = new()
        (event,) = fed(line, WRONG)
        changed = fed(line, escalated(np.random.default_rng(seed), 3000), at=LATER, every=UNIT)
        (found,) = [one for one in changed if one.state is State.RECALIBRATED]
        assert found.number == event.number
        assert 0 < found.threshold < 1
        assert overrides(line.open.values())[0].threshold == found.threshold
        assert "0.05" in found.why
        risks.append(true_risk(found.threshold))
    assert max(risks) <= GOALS.max_disagreement
    assert np.mean(risks) > 0.2 * GOALS.max_disagreement


def test_an_exit_that_is_wrong_too_often_goes_on_escalating_and_is_looked_at_ever_more_rarely() -> None:
    line = new()
    fed(line, WRONG)
    rng = np.random.default_rng(5)
    wrong = [sight(ease=1.0, whole=int(rng.random() < 0.5)) for _ in range(10_000)]
    changed = fed(line, wrong, at=LATER, every=UNIT)
    event = line.open[Place("a")]
    assert event.state is State.TIGHTENED
    assert event.threshold == ESCALATE_ALL
    assert 5 <= event.looks <= 12
    assert "everything escalates" in event.why
    looked = [one.looked_at for one in changed if one.looks]
    assert all(after >= 1.25 * before for before, after in pairwise(looked))
    assert event.needed >= 200


def test_samples_from_before_the_drift_was_heard_of_are_not_collected() -> None:
    line = new()
    fed(line, WRONG)
    fed(line, escalated(np.random.default_rng(6), 500), at=NOW + SETTLING - timedelta(milliseconds=1))
    assert line.now(line.open[Place("a")]).collected == 0
    fed(
        line,
        escalated(np.random.default_rng(6), 50) + escalated(np.random.default_rng(6), 50, camera="b"),
        at=LATER,
        every=UNIT,
    )
    assert line.now(line.open[Place("a")]).collected == 50


def test_a_drift_after_recalibration_is_another_event_and_the_old_one_is_over() -> None:
    line = new()
    fed(line, WRONG)
    fed(line, escalated(np.random.default_rng(7), 3000), at=LATER, every=UNIT)
    first = line.open[Place("a")]
    assert first.state is State.RECALIBRATED
    over, second = fed(line, WRONG, at=LATER, every=UNIT)
    assert (over.number, over.state) == (first.number, State.RESOLVED)
    assert (second.number, second.state) == (first.number + 1, State.TIGHTENED)
    assert [one.threshold for one in overrides(line.open.values())] == [ESCALATE_ALL]


def test_other_goals_take_back_what_was_found_for_the_old_ones() -> None:
    line = new()
    fed(line, WRONG)
    fed(line, escalated(np.random.default_rng(8), 3000), at=LATER, every=UNIT)
    strict = replace(GOALS, max_disagreement=0.02)
    (event,) = fed(line, [], goals=strict, at=LATER, every=UNIT)
    assert (event.state, event.threshold, event.looks) == (State.TIGHTENED, ESCALATE_ALL, 0)
    assert "other goals" in event.why
    assert fed(line, [], goals=replace(strict, audit_share=0.5), at=LATER, every=UNIT) == []
    later = LATER + timedelta(days=1)
    found = fed(line, escalated(np.random.default_rng(11), 8000), goals=strict, at=later, every=UNIT)
    assert found[-1].state is State.RECALIBRATED
    assert true_risk(found[-1].threshold) <= 0.02


def test_samples_that_escalate_as_unusual_all_the_same_do_not_stand_against_a_threshold() -> None:
    strange = [replace(sight(ease=1.0, whole=1), unusual=True)] * 100
    usual = [replace(one, unusual=False) for one in escalated(np.random.default_rng(13), 900)]
    for escalates, state in ((None, State.RECALIBRATED), (True, State.RECALIBRATED), (False, State.TIGHTENED)):
        goals = replace(GOALS, escalate_unusual=escalates)
        line = Line("parts", 1, goals)
        fed(line, WRONG, goals=goals)
        fed(line, strange + usual, goals=goals, at=LATER, every=UNIT)
        assert line.open[Place("a")].state is state


def test_when_a_drift_over_all_is_let_go_every_place_is_learned_anew() -> None:
    rng, line = np.random.default_rng(14), new()
    fed(line, mixed(rng, LEARNED, {("a", 0): 0.9}))
    (event,) = fed(line, [audit("", wrong=True)] * 20)
    line.adopt([event.resolved("seen to")])
    assert fed(line, mixed(rng, 3000, {("a", 0): 0.7})) == []


def test_a_limit_of_a_class_without_samples_keeps_everything_escalating_and_says_so() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.02),))
    line = Line("parts", 1, goals)
    fed(line, WRONG, goals=goals)
    right = [sight(ease=0.99, whole=0)] * 1000
    fed(line, right, goals=goals, at=LATER, every=UNIT)
    event = line.open[Place("a")]
    assert event.state is State.TIGHTENED
    assert "class NG" in event.why


def test_when_too_many_places_drift_all_are_tightened_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_line, "MAX_OPEN", 3)
    line = new()
    for number in range(8):
        fed(line, [audit(f"c{number}", wrong=True)] * 20)
    assert list(line.open) == [Place("c0"), Place("c1"), Place("c2"), EVERYWHERE]


def test_of_events_that_hold_one_place_the_strictest_counts() -> None:
    line = new()
    (event,) = fed(line, WRONG)
    place = replace(event, number=9, place=Place("a", 1), label="NG", state=State.RECALIBRATED, threshold=0.9)
    held = {(one.camera, one.label): one.threshold for one in overrides([event, place])}
    assert held == {("a", ""): ESCALATE_ALL, ("a", "NG"): ESCALATE_ALL}
    loose = replace(event, state=State.RECALIBRATED, threshold=0.7)
    held = {(one.camera, one.label): one.threshold for one in overrides([loose, place])}
    assert held == {("a", ""): 0.7, ("a", "NG"): 0.9}
    assert overrides([loose.resolved("over")]) == ()
    assert [one.threshold for one in overrides([loose], "other")] == [ESCALATE_ALL]


def test_a_drift_that_is_resolved_is_forgotten_and_its_watches_begin_anew() -> None:
    rng, line = np.random.default_rng(10), new()
    fed(line, mixed(rng, LEARNED, {("a", 0): 0.9}))
    (event,) = fed(line, mixed(rng, 2000, {("a", 0): 0.7}))
    line.adopt([event.resolved("seen to")])
    assert line.open == {}
    assert line.collected == {}
    assert fed(line, mixed(rng, LEARNED, {("a", 0): 0.7})) == []


def test_numbers_are_only_those_of_stored_events() -> None:
    line = new()
    changed = line.fed([Seen(NOW, one) for one in WRONG], GOALS, ("OK", "NG"), NOW)
    assert [event.number for event in changed] == [0]
    (stored,) = numbered(line, changed)
    assert line.open[Place("a")].number == stored.number == 1
