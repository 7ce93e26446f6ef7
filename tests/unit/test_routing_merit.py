"""Figures of merit of routers, by hand on a few samples and by chance on many."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.routing_merit import (
    Graded,
    Pool,
    by_unit,
    promise_on_parts,
    promise_on_population,
    read_off,
    resampled,
)


def graded() -> Graded:
    """The exit is wrong where it is least sure, and once where it is sure and the whole model is wrong too."""
    return Graded(
        ease=np.array([0.9, 0.8, 0.8, 0.6, 0.3, math.nan]),
        exit_right=np.array([False, True, True, True, False, True]),
        whole_right=np.array([False, True, True, False, True, True]),
    )


def test_the_curve_has_a_point_for_every_threshold_that_tells_samples_apart_and_none_inside_a_tie() -> None:
    escalated, right = graded().curve()
    assert escalated.tolist() == [6, 5, 3, 2, 1]
    assert right.tolist() == [4, 4, 4, 5, 4]


def test_fewest_escalations_are_those_of_the_cheapest_threshold_that_is_right_often_enough() -> None:
    assert graded().least_escalated(5) == 2
    assert graded().least_escalated(4) == 1
    assert graded().least_escalated(6) == 6


def test_right_answers_at_a_threshold_are_the_exits_above_it_and_the_whole_models_below() -> None:
    assert graded().right_at(0.5) == 5
    assert graded().right_at(2.0) == 4


def test_a_threshold_is_read_off_as_low_as_it_keeps_the_right_answers_and_above_one_where_none_does() -> None:
    assert read_off(graded(), 5) == 0.6
    assert read_off(graded(), 4) == 0.3
    assert read_off(graded(), 6) > 1


def test_draws_repeat_units_whole_and_there_are_as_many() -> None:
    unit = np.array([7, 3, 7, 3, 5])
    for rows in resampled(unit, 20, seed=1):
        counts = np.bincount(rows, minlength=5)
        assert counts[0] == counts[2]
        assert counts[1] == counts[3]
        assert counts[0] + counts[1] + counts[4] == 3


def test_units_count_the_same_however_many_pictures_they_have() -> None:
    assert by_unit(np.array([True, False, False, False, True]), np.array([1, 1, 1, 1, 2])) == pytest.approx(0.625)


def pool(units: int = 40) -> Pool:
    """A quarter of the units is wrong, all of them at the lower ease."""
    unit = np.repeat(np.arange(units), 3)
    wrong = unit % 4 == 0
    return Pool(np.where(wrong, 0.4, 0.9), wrong, unit)


@pytest.mark.parametrize("promise", [promise_on_parts, promise_on_population])
def test_a_promise_that_lets_all_pass_is_broken_and_one_that_stops_the_wrong_is_kept(promise: object) -> None:
    careless = promise(pool(), lambda *_: 0.0, 0.1, 50, 0)  # type: ignore[operator]
    assert careless.kept < 5
    assert careless.coverage == 1
    careful = promise(pool(), lambda *_: 0.5, 0.1, 50, 0)  # type: ignore[operator]
    assert (careful.kept, careful.answering, careful.disagreement) == (50, 50, 0)
    assert careful.coverage == pytest.approx(0.75, abs=0.05)
    closed = promise(pool(), lambda *_: 2.0, 0.1, 50, 0)  # type: ignore[operator]
    assert (closed.kept, closed.answering, closed.coverage) == (50, 0, 0)


def test_halves_share_no_unit_and_a_population_is_tested_whole() -> None:
    seen: list[tuple[int, int]] = []

    def choose(eases: np.ndarray, wrong: np.ndarray, unit: np.ndarray, seed: int) -> float:
        seen.append((len(eases), len(np.unique(unit))))
        return 0.5

    promise_on_parts(pool(), choose, 0.1, 3, 0)
    promise_on_population(pool(), choose, 0.1, 3, 0)
    assert seen == [(60, 20)] * 3 + [(120, 40)] * 3
