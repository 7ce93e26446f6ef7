"""A threshold from what came since a drift: what is promised, what missing answers count for, and what looking again costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from services.router.drift.events import EVERYWHERE, Place
from services.router.drift.recalibrate import (
    KEPT,
    LEAST,
    MOST_KEPT,
    UNKNOWN,
    AtWorst,
    Collected,
    basis,
    delta_of,
    falls_short,
    is_due,
    kept,
    look_for,
    needed,
)
from services.router.goals import ClassLimit, Goals
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.constraints import Disagreement, FalseAlarm, Missed

GOALS = Goals(max_disagreement=0.05, delta=0.05, audit_share=0.02)
LABELS = ("OK", "NG")
A = Place("a")


def collected(*rows: tuple[float, int, int | None], times: int = 1, exit_: int = 0) -> Collected:
    found = Collected(MOST_KEPT)
    for _ in range(times):
        for ease, said, whole in rows:
            found.add(ease, said, whole, exit_)
    return found


def test_all_looks_together_may_be_wrong_with_delta_and_no_more() -> None:
    assert sum(delta_of(0.05, look) for look in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    assert delta_of(0.05, 1) == 0.025


def test_a_look_is_due_with_enough_samples_and_then_with_a_quarter_more_each_time() -> None:
    strict = replace(GOALS, max_disagreement=0.01)
    assert needed(GOALS, 1) == LEAST
    assert needed(strict, 1) == math.ceil(math.log(0.025) / math.log(0.99))
    assert needed(strict, 2) > needed(strict, 1)
    one = (0.9, 0, 0)
    assert not is_due(collected(one, times=LEAST - 1), GOALS, 0, 0)
    assert is_due(collected(one, times=LEAST), GOALS, 0, 0)
    assert not is_due(collected(one, times=499), GOALS, 3, 400)
    assert is_due(collected(one, times=500), GOALS, 3, 400)


def test_samples_without_an_answer_of_the_tail_are_taken_for_wrong() -> None:
    right, missing = (0.9, 0, 0), (0.9, 0, None)
    alone = look_for(collected(right, times=400).rows(), GOALS, LABELS, A, 1)
    assert alone.threshold == pytest.approx(0.9)
    few = look_for(collected(*[right] * 99, missing, times=4).rows(), GOALS, LABELS, A, 1)
    assert few.threshold is not None
    assert "4 of them without an answer" in few.why
    many = look_for(collected(*[right] * 9, missing, times=40).rows(), GOALS, LABELS, A, 1)
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
    look = look_for(collected(*[undefined] * 2, (0.8, 0, 0), times=200).rows(), GOALS, LABELS, A, 1)
    assert look.threshold == pytest.approx(0.8)
    assert "200 of 600" in look.why
    assert look_for(collected(undefined, times=600).rows(), GOALS, LABELS, A, 1).threshold is None


def test_limits_of_classes_hold_too_and_need_samples_of_their_class() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.05),))
    right, missed, found = (0.9, 0, 0), (0.9, 0, 1), (0.95, 1, 1)
    too_few = look_for(collected(*[right] * 20, found, times=50).rows(), goals, LABELS, A, 1)
    assert too_few.threshold is None
    assert "class NG" in too_few.why
    assert "too few" in too_few.why
    enough = look_for(collected(*[right] * 3, found, times=200).rows(), goals, LABELS, A, 1)
    assert enough.threshold == pytest.approx(0.9)
    sometimes = look_for(collected(*[right] * 60, *[found] * 9, missed, times=40).rows(), goals, LABELS, A, 1)
    assert sometimes.threshold is not None
    assert sometimes.threshold > 0.9


def test_of_one_class_only_what_its_answers_can_break_is_asked_for() -> None:
    goals = replace(GOALS, classes=(ClassLimit("NG", max_missed=0.05, max_false_alarms=0.05),))
    names_ng = collected((0.9, 1, 1), (0.9, 1, 1), times=300)
    missing = look_for(names_ng.rows(), goals, LABELS, A, 1)
    assert missing.threshold is None
    few_others = look_for(collected(*[(0.9, 1, 1)] * 2, (0.4, 1, 0), times=300).rows(), goals, LABELS, Place("a", 1), 1)
    assert few_others.threshold == pytest.approx(0.9)


def test_a_class_that_the_version_does_not_know_or_whose_name_is_not_known_promises_nothing() -> None:
    goals = replace(GOALS, classes=(ClassLimit("scratch", max_missed=0.05),))
    rows = collected((0.9, 0, 0), times=400).rows()
    unknown = look_for(rows, goals, LABELS, EVERYWHERE, 1)
    assert unknown.threshold is None
    assert "scratch" in unknown.why
    assert look_for(rows, goals, None, EVERYWHERE, 1).threshold is None
    numbered = replace(GOALS, classes=(ClassLimit("1", max_false_alarms=0.05),))
    assert look_for(rows, numbered, (), EVERYWHERE, 1).threshold == pytest.approx(0.9)


def test_the_reason_says_how_many_samples_and_which_exit() -> None:
    rows = collected((0.9, 0, 0), times=400, exit_=2).rows()
    why = look_for(rows, GOALS, LABELS, A, 3).why
    assert "from 400 samples since the drift" in why
    assert "look 3" in why
    assert "exit 2" in why
    assert "at most 0.05 of new samples" in why


def test_the_newest_are_kept_and_more_only_where_the_goals_need_more() -> None:
    found = Collected(3)
    for number in range(5):
        found.add(number / 10, 0, 0, 0)
    assert (len(found), found.seen) == (3, 5)
    assert found.rows()["ease"].tolist() == [0.2, 0.3, 0.4]
    assert kept(GOALS) == KEPT
    assert kept(replace(GOALS, max_disagreement=0.003)) > KEPT
    hopeless = replace(GOALS, max_disagreement=1e-4)
    assert kept(hopeless) == MOST_KEPT
    assert "states other goals" in falls_short(hopeless, 1)
    assert falls_short(GOALS, 1) == ""


def test_samples_are_as_before_after_being_saved_and_nonsense_is_refused() -> None:
    found = collected((0.5, 1, None), (math.nan, 0, 1), times=2, exit_=1)
    again = Collected.from_bytes(found.to_bytes())
    assert again.seen == 4
    assert again.rows().tobytes() == found.rows().tobytes()
    for nonsense in (b"", b"1234567", found.to_bytes()[:-1], found.to_bytes()[:8] + b"\xff" * 20):
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
