"""What batches take, and which size is chosen from it."""

from __future__ import annotations

import pytest

from splitmesh.kernel.batch_times import TRY_LARGEST, BatchTimes
from tests.support.held import known_times

FAR = [1e9] * 16


def test_nothing_is_known_before_the_first_batch_and_all_that_wait_are_computed() -> None:
    times = BatchTimes()
    assert (times.typical_s(3), times.least_s(), times.saved_s(1), times.per_frame_s(4)) == (0.0, 0.0, None, 0.0)
    assert times.choose(FAR[:5]) == 5


def test_between_measured_sizes_times_are_on_a_line_and_above_them_as_the_largest() -> None:
    times = known_times(b2=1.0, b4=3.0)
    assert [times.typical_s(size) for size in (1, 2, 3, 4, 9)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_one_stall_of_the_host_does_not_change_what_is_typical_but_the_best_counts_for_what_is_possible() -> None:
    times = BatchTimes()
    for seconds in (0.010, 0.011, 0.009, 5.0, 0.010):
        times.record(1, seconds)
    assert times.typical_s(1) == 0.010
    assert times.least_s() == 0.009


def test_the_size_with_the_least_time_per_frame_is_chosen_and_of_equally_good_ones_the_smallest() -> None:
    assert known_times(b1=0.010, b16=0.020).choose(FAR) == 16
    assert known_times(b1=0.010, b4=0.012, b16=0.048).choose(FAR) == 4
    assert known_times(b1=0.010, b16=0.160).choose(FAR) == 1


def test_a_size_that_misses_the_earliest_deadline_in_it_is_not_chosen() -> None:
    times = known_times(b1=0.010, b16=0.025)
    assert times.choose([1.0, 1.0, 0.0115, 1.0]) < 3
    assert times.choose([0.001]) == 1
    assert times.choose([1.0] * 8 + [0.011] * 8) == 8


def test_now_and_then_the_largest_is_tried_so_that_a_bad_measure_heals() -> None:
    times = known_times(b1=0.001, b16=10.0)
    chosen = [times.choose(FAR) for _ in range(TRY_LARGEST)]
    assert chosen[-1] == 16
    assert set(chosen[:-1]) == {1}


def test_what_one_more_frame_saves_is_what_a_batch_of_its_own_would_cost_beyond_it() -> None:
    times = known_times(b1=0.010, b2=0.012, b4=0.040)
    assert times.saved_s(1) == pytest.approx(0.008)
    assert times.saved_s(3) == pytest.approx(0.0)
    assert times.per_frame_s(4) == pytest.approx(0.006)
