"""When a frame is late, and how many may be sent twice."""

from __future__ import annotations

import math

import pytest

from splitmesh.client.hedging import BURST, FACTOR, FEWEST, LEAST_MS, WINDOW, Hedging


def _seasoned(budget: float = 0.05, took_ms: float = 20.0, frames: int = 1000) -> Hedging:
    hedging = Hedging(budget)
    for _ in range(frames):
        hedging.sent()
        hedging.answered(took_ms)
    return hedging


def test_nothing_is_late_before_enough_is_known() -> None:
    hedging = Hedging(0.05)
    for _ in range(FEWEST - 1):
        hedging.answered(20.0)
        assert hedging.late_ms == math.inf
    hedging.answered(20.0)
    assert hedging.late_ms == FACTOR * 20.0


def test_late_follows_the_ninety_fifth_percentile_of_recent_frames() -> None:
    hedging = Hedging(0.05)
    for index in range(WINDOW):
        hedging.answered(100.0 if index % 10 == 0 else 20.0)
    assert hedging.late_ms == pytest.approx(FACTOR * 100)
    for index in range(2 * WINDOW):
        hedging.answered(100.0 if index % 40 == 0 else 20.0)
    assert hedging.late_ms == pytest.approx(FACTOR * 20)


def test_no_frame_is_late_within_the_reach_of_timers() -> None:
    assert _seasoned(took_ms=0.5).late_ms == LEAST_MS


def test_without_a_budget_nothing_is_ever_late() -> None:
    hedging = _seasoned(budget=0.0)
    assert hedging.late_ms == math.inf
    assert not hedging.take(age_ms=32, left_ms=1000, backlog_ms=0)


def test_extra_frames_stay_within_their_share_and_a_handful() -> None:
    hedging, hedged = _seasoned(frames=5000), 0
    for _ in range(2000):
        hedging.sent()
        hedged += hedging.take(age_ms=32, left_ms=1000, backlog_ms=0)
    assert 0.05 * 2000 - 1 <= hedged <= 0.05 * 2000 + BURST


def test_a_new_link_has_no_credit() -> None:
    hedging = Hedging(0.05)
    hedging.sent()
    assert not hedging.take(age_ms=32, left_ms=1000, backlog_ms=0)


def test_no_second_copy_where_tails_have_queues() -> None:
    hedging = _seasoned()
    assert not hedging.take(age_ms=32, left_ms=1000, backlog_ms=8.1)
    assert hedging.take(age_ms=40, left_ms=1000, backlog_ms=8.0)
    assert hedging.take(age_ms=1, left_ms=1000, backlog_ms=5.0)


def test_no_second_copy_when_it_could_not_be_in_time() -> None:
    hedging = _seasoned()
    assert not hedging.take(age_ms=32, left_ms=20.0, backlog_ms=0.0)
    assert hedging.take(age_ms=32, left_ms=20.1, backlog_ms=0.0)
