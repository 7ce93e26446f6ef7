"""A threshold from what came since a drift: what is promised, what missing answers count for, and what looking again costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from services.router.drift.collected import KEPT, KEPT_OF_UNIT, UNKNOWN, Collected, unit_of
from services.router.drift.events import EVERYWHERE, Place
from services.router.drift.recalibrate import (
    LEAST,
    MOST_KEPT,
    MOST_NEEDED,
    AtWorst,
    Look,
    basis,
    delta_of,
    is_due,
    kept,
    kept_of_unit,
    limits_of,
    look_for,
    needed,
    units_needed,
    waits_for,
)
from services.router.goals import ClassLimit, Goals
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.constraints import Constraint, Disagreement, FalseAlarm, Missed

GOALS = Goals(max_disagreement=0.05, delta=0.05, audit_share=0.02)
LABELS = ("OK", "NG")
A = Place("a")


def collected(*rows: tuple[float, int, int | None], times: int = 1, exit_: int = 0, a_unit: int = 1) -> Collected:
    """So many samples a unit."""
    found = Collected(MOST_KEPT)
    for _ in range(times):
        for ease, said, whole in rows:
            found.add(ease, said, whole, exit_, found.seen // a_unit)
    return found


def limits(goals: Goals = GOALS, place: Place = A) -> list[Constraint]:
    return limits_of(goals, LABELS, place)


def looked(samples: Collected, goals: Goals = GOALS, place: Place = A, look: int = 1) -> Look:
    return look_for(samples, goals, limits(goals, place), look)


def test_all_looks_together_may_be_wrong_with_delta_and_no_more() -> None:
    assert sum(delta_of(0.05, look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    assert delta_of(0.05, 1) == 0.025


def test_a_look_is_due_with_enough_samples_and_then_with_a_quarter_more_each_time() -> None:
    strict = replace(GOALS, max_disagreement=0.01)
    assert needed(GOALS, 1) == LEAST
    assert needed(strict, 1) == math.ceil(math.log(0.025) / math.log(0.99))
    assert needed(strict, 2) > needed(strict, 1)
    one = (0.9, 0, 0)
    for times, looks, looked_at, due in (
        (LEAST - 1, 0, 0, False),
        (LEAST, 0, 0, True),
        (499, 3, 400, False),
        (500, 3, 400, True),
    ):
        assert is_due(collected(one, times=times), GOALS, limits(), looks, looked_at) is due


def test_samples_without_an_answer_of_the_tail_are_taken_for_wrong() -> None:
    right, missing = (0.9, 0, 0), (0.9, 0, None)
    alone = looked(collected(right, times=400))
    assert alone.threshold == pytest.approx(0.9)
    few = looked(collected(*[right] * 99, missing, times=4))
    assert few.threshold is not None
    assert "4 of them without an answer" in few.why
    many = looked(collected(*[right] * 9, missing, times=40))
    assert many.threshold is None
    assert "40 of them without an answer" in many.why


def test_a_missing_answer_breaks_whatever_it_might_break() -> None:
    answers, reference = np.array([[0], [1], [1], [0]]), np.array([UNKNOWN, UNKNOWN, 0, 1])
    for constraint, about, broken in (
        (Disagreement(0.1), [True, True, True, True], [True, True, True, True]),
        (Missed(1, 0.1), [True, False, False, True], [True, False, None, True]),
        (FalseAlarm(1, 0.1), [False, True, True, False], [False, True, True, None]),
    ):
        concerned, breaks = AtWorst(constraint).judge(answers, reference)
        assert concerned.tolist() == about
        found = [bool(one) if known else None for one, known in zip(breaks[:, 0], concerned, strict=True)]
        assert found == [one if known else None for one, known in zip(broken, about, strict=True)]
    assert AtWorst(Missed(1, 0.1)).limit == 0.1


def test_samples_that_the_exit_may_not_answer_count_and_are_never_accepted() -> None:
    undefined = (math.nan, 1, 0)
    look = looked(collected(*[undefined] * 2, (0.8, 0, 0), times=200))
    assert look.threshold == pytest.approx(0.8)
    assert "200 of 600" in look.why
    assert looked(collected(undefined, times=600)).threshold is None


def test_limits_of_classes_hold_too_and_need_samples_of_their_class() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.05),))
    right, missed, found = (0.9, 0, 0), (0.9, 0, 1), (0.95, 1, 1)
    too_few = looked(collected(*[right] * 20, found, times=50), goals)
    assert too_few.threshold is None
    assert "class NG" in too_few.why
    assert "too few" in too_few.why
    enough = looked(collected(*[right] * 3, found, times=200), goals)
    assert enough.threshold == pytest.approx(0.9)
    sometimes = looked(collected(*[right] * 30, *[found] * 19, missed, times=40), goals)
    assert sometimes.threshold is not None
    assert sometimes.threshold > 0.9


def test_of_one_class_only_what_its_answers_can_break_is_asked_for() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.05, max_false_alarms=0.05),))
    names_ng = collected((0.9, 1, 1), (0.9, 1, 1), times=300)
    missing = looked(names_ng, goals)
    assert missing.threshold is None
    few_others = looked(collected(*[(0.9, 1, 1)] * 2, (0.4, 1, 0), times=300), goals, Place("a", 1))
    assert few_others.threshold == pytest.approx(0.9)


def test_a_class_that_the_version_does_not_know_or_whose_name_is_not_known_cannot_be_tested() -> None:
    goals = replace(GOALS, classes=(ClassLimit("scratch", max_missed=0.05),))
    for labels, words in ((LABELS, "scratch"), (None, "not known now")):
        with pytest.raises(MeshError, match=words):
            limits_of(goals, labels, EVERYWHERE)
    by_number = replace(GOALS, classes=(ClassLimit("1", max_false_alarms=0.05),))
    found = look_for(collected((0.9, 0, 0), times=400), by_number, limits_of(by_number, (), EVERYWHERE), 1)
    assert found.threshold == pytest.approx(0.9)


def test_the_reason_says_how_many_samples_and_which_exit() -> None:
    rows = collected((0.9, 0, 0), times=400, exit_=2)
    why = looked(rows, look=3).why
    assert "from 400 samples since the drift" in why
    assert "look 3" in why
    assert "exit 2" in why
    assert "at most 0.05 of new samples" in why


def test_the_newest_are_kept_and_more_only_where_the_goals_need_more() -> None:
    found = Collected(3, 1)
    for number in range(5):
        found.add(number / 10, 0, 0, 0, number)
    assert (len(found), found.seen) == (3, 5)
    assert found.rows()["ease"].tolist() == [0.2, 0.3, 0.4]
    assert kept(GOALS) == KEPT
    assert kept(replace(GOALS, max_disagreement=0.003)) > KEPT
    hopeless = replace(GOALS, max_disagreement=1e-4)
    assert kept(hopeless) == MOST_KEPT
    assert "states other goals" in waits_for(Collected(), hopeless, limits(hopeless), 1)
    assert waits_for(Collected(), GOALS, limits(), 1) == ""


def test_samples_are_as_before_after_being_saved_and_nonsense_is_refused() -> None:
    found = collected((0.5, 1, None), (math.nan, 0, 1), times=2, exit_=1)
    again = Collected.from_bytes(found.to_bytes())
    assert again.seen == 4
    assert again.rows().tobytes() == found.rows().tobytes()
    for nonsense in (b"", b"1234567", found.to_bytes()[:-1], found.to_bytes()[:8] + b"\xff" * 28, b"\0" * 16):
        with pytest.raises(MeshError) as caught:
            Collected.from_bytes(nonsense)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_only_what_eases_and_promises_depend_on_makes_other_goals() -> None:
    assert basis(replace(GOALS, audit_share=0.3)) == basis(GOALS)
    others = (
        {"max_disagreement": 0.06},
        {"delta": 0.06},
        {"score": "margin"},
        {"costs": (0.0, 1.0, 9.0, 0.0)},
        {"classes": (ClassLimit("NG", max_missed=0.1),)},
        {"escalate_unusual": False},
    )
    assert len({basis(replace(GOALS, **other)) for other in others} | {basis(GOALS)}) == len(others) + 1


def test_frames_of_one_camera_within_two_seconds_are_one_unit_and_units_are_what_is_counted() -> None:
    assert unit_of("a", 10.1) == unit_of("a", 11.9) != unit_of("a", 12.1)
    assert unit_of("a", 10.1) != unit_of("b", 10.1)
    assert unit_of("a", -5.0) >= 0
    right, wanted = (0.9, 0, 0), units_needed(GOALS, 1)
    alike = collected(right, times=(wanted - 1) * 20, a_unit=20)
    assert not is_due(alike, GOALS, limits(), 0, 0)
    assert looked(alike).threshold is None
    enough = collected(right, times=wanted * 20, a_unit=20)
    assert is_due(enough, GOALS, limits(), 0, 0)
    found = looked(enough)
    assert found.threshold == pytest.approx(0.9)
    assert f"{wanted} units, each 2 s of one camera" in found.why


def test_of_a_unit_a_fair_sample_is_kept_and_the_oldest_units_give_way() -> None:
    found, first = Collected(40, 8), []
    for unit in range(200):
        for number in range(50):
            found.add(number / 50, 0, 0, 0, unit)
        first += found.rows()["ease"][-8:].tolist()
    assert (len(found), found.units, found.seen) == (40, 5, 10_000)
    assert found.full
    assert set(found.rows()["unit"].tolist()) == {195, 196, 197, 198, 199}
    assert np.mean(first) == pytest.approx(0.49, abs=0.03)
    found.keep(16, 8)
    assert found.units == 2


def test_a_look_waits_until_every_limit_has_units_that_it_is_about() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.05),))
    wanted = units_needed(goals, 1, limits(goals))
    samples = collected(*[(0.9, 0, 0)] * 29, (0.9, 1, 1), times=wanted - 1)
    assert is_due(samples, GOALS, limits(), 0, 0)
    assert not is_due(samples, goals, limits(goals), 0, 0)
    words = waits_for(samples, goals, limits(goals), 1)
    assert f"{wanted} units of samples of class" in words
    assert f"there are {wanted - 1}" in words
    estimate = needed(goals, 1, samples, limits(goals))
    assert estimate == pytest.approx(30 * wanted, rel=0.01)
    assert needed(goals, 1, Collected(), limits(goals)) == max(LEAST, wanted)
    samples.add(0.9, 1, 1, 0, 10**6)
    assert is_due(samples, goals, limits(goals), 0, 0)
    assert looked(samples, goals).threshold == pytest.approx(0.9)


def test_a_threshold_at_which_hardly_anything_exits_is_taken_only_when_no_more_samples_can_be_kept() -> None:
    few = [(0.99, 0, 0), *[(0.5, 0, 1)] * 19]
    look = looked(collected(*few, times=30))
    assert look.threshold is None
    assert "until 20% exit or 2000 samples are kept" in look.why
    full = Collected(600, 1)
    for number in range(600):
        full.add(*few[number % 20], 0, number)
    assert full.full
    assert looked(full).threshold == pytest.approx(0.99)
    assert looked(collected(*few[:5], times=30), look=1).threshold == pytest.approx(0.99)


def test_goals_that_no_number_can_meet_are_told_as_the_largest_that_a_message_holds() -> None:
    tiny = replace(GOALS, max_disagreement=1e-12)
    assert needed(tiny, 1) == MOST_NEEDED
    samples = collected((0.9, 0, 0), times=300, a_unit=3)
    assert needed(tiny, 1, samples, limits(tiny)) == MOST_NEEDED
    assert (kept(tiny), kept_of_unit(tiny)) == (MOST_KEPT, 1)
    assert kept_of_unit(GOALS) == KEPT_OF_UNIT
