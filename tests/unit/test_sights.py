"""Which frames are told: bounded by time and number, audited ones first, the others by lot."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from edge.head.sights import MOST, MOST_AWAITED, PER_SECOND, Seen, Sights


def seen(number: int = 0, at: float = 0.0, **differing: object) -> Seen:
    given = {"camera": str(number), "exit_class": 0, "ease": 0.5, "unusual": None, "exit": 0, **differing}
    return Seen(at=at, **given)  # type: ignore[arg-type]


def numbers(told: tuple[Seen, ...]) -> list[int]:
    return [int(one.camera) for one in told]


@pytest.fixture
def sights() -> Sights:
    return Sights(random.Random(1), 0.0)


def test_where_there_is_room_every_frame_is_told_once_in_the_order_of_arrival(sights: Sights) -> None:
    for number in reversed(range(40)):
        sights.add(seen(number, at=number / 40))
    told, left_out = sights.drain(1.0)
    assert (numbers(told), left_out) == (list(range(40)), 0)
    assert sights.drain(2.0) == ((), 0)


@pytest.mark.parametrize(("seconds", "room"), [(0.0, 50), (0.5, 75), (1.0, 100), (60.0, MOST)])
def test_no_more_are_told_than_the_time_and_the_report_have_room_for(sights: Sights, seconds: float, room: int) -> None:
    for number in range(5000):
        sights.add(seen(number, at=number))
    told, left_out = sights.drain(seconds)
    assert (len(told), left_out) == (room, 5000 - room)
    assert numbers(told) == sorted(numbers(told))


def test_no_more_frames_are_kept_than_a_report_may_hold(sights: Sights) -> None:
    for number in range(3 * MOST):
        sights.add(seen(number))
    assert len(sights._kept) == MOST


def test_every_frame_has_the_same_chance_early_or_late_and_answered_by_a_tail_or_not() -> None:
    places: Counter[int] = Counter()
    for seed in range(200):
        sights = Sights(random.Random(seed), 0.0)
        for number in range(2000):
            sights.add(seen(number, tail_class=number % 2 or None))
        places.update(number // 200 for number in numbers(sights.drain(0.0)[0]))
    # 10,000 told frames over ten stretches: 1,000 each, with a standard deviation of 30.
    assert all(850 < places[stretch] < 1150 for stretch in range(10))
    odd = Sights(random.Random(3), 0.0)
    for number in range(20_000):
        odd.add(seen(number, tail_class=1 if number % 2 else None))
    told, _ = odd.drain(100.0)
    assert 0.42 < float(np.mean([number % 2 for number in numbers(told)])) < 0.58


def test_audited_frames_are_told_before_all_others(sights: Sights) -> None:
    for number in range(3000):
        sights.add(seen(number, audited=number % 100 == 0))
    told, _ = sights.drain(0.0)
    assert {number for number in numbers(told) if number % 100 == 0} == set(range(0, 3000, 100))
    assert len(told) == PER_SECOND


def test_audited_frames_that_a_report_has_no_room_for_are_told_in_the_next_one(sights: Sights) -> None:
    for number in range(120):
        sights.add(seen(number, at=number, audited=number < 60))
    first, left_out = sights.drain(0.0)
    assert (len(first), left_out) == (PER_SECOND, 60)
    second, left_out = sights.drain(1.0)
    assert (len(second), left_out) == (10, 0)
    assert sorted(numbers(first) + numbers(second)) == list(range(60))


def test_in_the_long_run_no_more_are_told_than_the_rate_allows(sights: Sights) -> None:
    told = 0
    for tick in range(100):
        for number in range(100):
            sights.add(seen(number))
        told += len(sights.drain(tick / 10)[0])
    assert told == pytest.approx(PER_SECOND * 9.9 + PER_SECOND, abs=1)


def test_after_a_pause_no_more_than_a_burst_is_told_at_once(sights: Sights) -> None:
    for seconds in (1000.0, 1000.0):
        sights.drain(seconds)
    for number in range(5000):
        sights.add(seen(number))
    assert len(sights.drain(1000.0)[0]) == PER_SECOND


def test_a_frame_that_is_audited_is_told_once_with_what_the_tail_says(sights: Sights) -> None:
    sights.expect("key", seen(7), until=2.5)
    assert sights.drain(1.0) == ((), 0)
    heard = seen(7, tail_class=2, audited=True)
    sights.heard("key", heard)
    assert sights.drain(2.0) == ((heard,), 0)
    assert sights.drain(9.0) == ((), 0)


def test_a_frame_whose_audit_failed_is_told_without(sights: Sights) -> None:
    sights.expect("key", seen(7), until=2.5)
    assert sights.drain(2.4) == ((), 0)
    assert sights.drain(2.6) == ((seen(7),), 0)
    sights.heard("key", seen(7, tail_class=1, audited=True))
    assert sights.drain(3.0) == ((), 0)


def test_no_more_audits_are_awaited_than_there_is_room_for(sights: Sights) -> None:
    for number in range(MOST_AWAITED + 3):
        sights.expect(str(number), seen(number), until=100.0)
    assert numbers(sights.drain(1.0)[0]) == [0, 1, 2]


def test_the_same_seed_tells_the_same_frames() -> None:
    def told(seed: int) -> list[int]:
        sights = Sights(random.Random(seed), 0.0)
        for number in range(500):
            sights.add(seen(number))
        return numbers(sights.drain(1.0)[0])

    assert told(1) == told(1) != told(2)


def test_a_sight_has_the_frames_numbers_and_its_age_when_it_is_told() -> None:
    sight = seen(3, at=10.0, exit_class=2, ease=0.25, unusual=True, exit=1, tail_class=1, audited=True).sight(12.5)
    assert (sight.camera, sight.exit_class, sight.ease, sight.unusual) == ("3", 2, 0.25, True)
    assert (sight.tail_class, sight.audited, sight.exit, sight.age_ms) == (1, True, 1, 2500.0)
    assert seen(3, at=10.0).sight(9.0).age_ms == 0
