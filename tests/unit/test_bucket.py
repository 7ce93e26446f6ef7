"""A token bucket lets through its rate and its burst, whatever its clock does."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.bucket import Bucket
from splitmesh.routing.elapsed import SET_BACK_S, Elapsed

STEPS = st.lists(st.tuples(st.floats(0, 3), st.integers(0, 700)), max_size=60)
JUMPS = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 700)), max_size=60)


def passed(bucket: Bucket, asked: list[tuple[float, int]]) -> int:
    """Bytes let through of (time, size)."""
    return sum(size for now_s, size in asked if bucket.take(size, now_s))


def at_times(steps: list[tuple[float, int]], start_s: float) -> list[tuple[float, int]]:
    times = accumulate((step for step, _ in steps), initial=start_s)
    next(times)
    return [(now_s, size) for now_s, (_, size) in zip(times, steps, strict=True)]


def test_a_full_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    bucket = Bucket(100.0, 500.0, 10.0)
    assert passed(bucket, [(10.0, 100)] * 9) == 500
    assert not bucket.take(1, 10.0)
    assert bucket.take(100, 11.0)
    assert not bucket.take(1, 11.0)


def test_what_is_saved_up_is_never_more_than_the_burst() -> None:
    bucket = Bucket(100.0, 500.0, 0.0)
    assert passed(bucket, [(1e6, 100)] * 9) == 500


def test_what_does_not_fit_takes_nothing() -> None:
    bucket = Bucket(100.0, 500.0, 0.0)
    assert not bucket.take(501, 0.0)
    assert bucket.take(500, 0.0)


@given(STEPS, st.floats(0, 1000), st.floats(0, 1000), st.floats(-1e6, 1e6))
def test_no_more_than_rate_times_time_and_burst_passes_in_any_stretch(
    steps: list[tuple[float, int]], rate: float, burst: float, start_s: float
) -> None:
    bucket = Bucket(rate, burst, start_s)
    asked = at_times(steps, start_s)
    took = [(now_s, size) for now_s, size in asked if bucket.take(size, now_s)]
    for first in range(len(took)):
        total = 0
        for now_s, size in took[first:]:
            total += size
            assert total <= rate * (now_s - took[first][0]) + burst + 1e-6


@given(JUMPS, st.floats(0, 1000), st.floats(0, 1000))
def test_a_clock_that_jumps_gives_no_more_than_it_went_forward(
    jumps: list[tuple[float, int]], rate: float, burst: float
) -> None:
    asked = at_times(jumps, 0.0)
    forward = sum(max(0.0, later - before) for before, later in pairwise([0.0, *(now_s for now_s, _ in asked)]))
    assert passed(Bucket(rate, burst, 0.0), asked) <= rate * forward + burst + 1e-6


@given(st.lists(st.integers(0, 700), max_size=40))
def test_a_clock_that_stands_still_gives_the_burst_and_no_more(sizes: list[int]) -> None:
    assert passed(Bucket(100.0, 500.0, 7.0), [(7.0, size) for size in sizes]) <= 500


def test_callers_that_come_in_the_wrong_order_are_not_paid_twice() -> None:
    bucket = Bucket(100.0, 500.0, 0.0)
    bucket.take(500, 0.0)
    for _ in range(50):
        assert not bucket.take(60, 0.0)
        assert not bucket.take(60, 0.5)
    assert bucket.take(50, 0.5)


def test_a_clock_that_was_set_back_an_hour_stops_nothing() -> None:
    bucket = Bucket(100.0, 500.0, 3600.0)
    bucket.take(500, 3600.0)
    assert not bucket.take(100, 0.0)
    assert bucket.take(100, 1.0)


def test_a_new_rate_counts_from_now_on() -> None:
    bucket = Bucket(100.0, 500.0, 0.0)
    bucket.take(500, 0.0)
    bucket.set_rate(10.0, 1.0)  # 100 bytes were earned at the old one
    assert bucket.take(100, 1.0)
    assert not bucket.take(11, 2.0)
    assert bucket.take(10, 2.0)
    bucket.set_rate(0.0, 3.0)
    assert bucket.take(10, 1e6)
    assert not bucket.take(1, 1e9)


def test_a_smaller_burst_takes_away_what_it_does_not_hold() -> None:
    bucket = Bucket(100.0, 500.0, 0.0)
    bucket.set_rate(100.0, 0.0, burst_bytes=80.0)
    assert passed(bucket, [(0.0, 10)] * 50) == 80
    bucket.set_rate(100.0, 0.0, burst_bytes=500.0)
    assert not bucket.take(1, 0.0)  # a larger one is not filled by being set


def test_an_infinite_rate_lets_everything_through_until_there_is_one() -> None:
    bucket = Bucket(math.inf, 500.0, 0.0)
    assert all(bucket.take(10**9, 0.0) for _ in range(5))
    assert bucket.wait_s(10**9, 5.0) == 0
    bucket.set_rate(100.0, 5.0)
    assert passed(bucket, [(5.0, 100)] * 9) == 500


def test_the_wait_says_when_a_frame_may_pass() -> None:
    bucket = Bucket(100.0, 500.0, 0.0)
    assert bucket.wait_s(500, 0.0) == 0
    bucket.take(500, 0.0)
    assert bucket.wait_s(200, 0.5) == pytest.approx(1.5)
    assert not bucket.take(200, 1.9)
    assert bucket.take(200, 2.0)
    assert bucket.wait_s(501, 2.0) == math.inf
    bucket.set_rate(0.0, 2.0)
    assert bucket.wait_s(200, 2.0) == math.inf


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Bucket(-1.0, 1.0, 0.0), "bytes_per_s"),
        (lambda: Bucket(math.nan, 1.0, 0.0), "bytes_per_s"),
        (lambda: Bucket(1.0, -1.0, 0.0), "burst_bytes"),
        (lambda: Bucket(1.0, math.inf, 0.0), "burst_bytes"),
        (lambda: Bucket(1.0, 1.0, math.nan), "now_s"),
        (lambda: Bucket(1.0, 1.0, 0.0).take(-1, 0.0), "size_bytes"),
        (lambda: Bucket(1.0, 1.0, 0.0).take(math.nan, 0.0), "size_bytes"),
        (lambda: Bucket(1.0, 1.0, 0.0).take(1, math.inf), "now_s"),
        (lambda: Bucket(1.0, 1.0, 0.0).wait_s(-1, 0.0), "size_bytes"),
        (lambda: Bucket(1.0, 1.0, 0.0).set_rate(math.nan, 0.0), "bytes_per_s"),
        (lambda: Bucket(1.0, 1.0, 0.0).set_rate(1.0, 0.0, burst_bytes=-1.0), "burst_bytes"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], object], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        call()
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field


def test_time_that_passed_is_counted_once() -> None:
    elapsed = Elapsed(5.0)
    assert elapsed.since_last(6.0) == 1
    assert elapsed.since_last(6.0) == 0
    assert elapsed.since_last(6.0 - SET_BACK_S / 2) == 0
    assert elapsed.since_last(6.25) == 0.25
    assert elapsed.since_last(6.25 - 2 * SET_BACK_S) == 0
    assert elapsed.since_last(7.25 - 2 * SET_BACK_S) == 1
