"""When a free thread waits for company, and when a frame goes at once. Times are made up; nothing sleeps."""

from __future__ import annotations

from splitmesh.kernel.company import PROBE, Company
from tests.support.held import known_times

MS = 1e-3


def company(max_delay_s: float = 20 * MS, **seconds: float) -> Company:
    return Company(known_times(**(seconds or {"b1": 10 * MS, "b8": 12 * MS})), 8, max_delay_s)


def until(rule: Company, now: float, *, waiting: int = 1, arriving: int = 0, oldest: float | None = None) -> float:
    return rule.until(now, waiting=waiting, arriving=arriving, oldest=now if oldest is None else oldest, earliest=1e9)


def burst(rule: Company, now: float, frames: int) -> None:
    """So many at once, computed together."""
    for present in range(1, frames + 1):
        rule.arrived(present, now)
    rule.taken(frames)


def test_a_lone_client_never_waits() -> None:
    rule = company()
    for turn in range(3 * PROBE):
        now = turn * 0.001
        rule.arrived(1, now)
        assert until(rule, now) <= now
        rule.taken(1)


def test_where_several_are_usually_there_the_first_waits_as_long_as_company_saves() -> None:
    rule = company()
    burst(rule, 0.0, 8)
    rule.arrived(1, 1.0)
    saved = 10 * MS + 10 * MS - (10 * MS + 2 * MS / 7)
    assert abs(until(rule, 1.0) - (1.0 + saved)) < 1e-9


def test_the_wait_is_renewed_by_each_that_comes_up_to_the_longest_delay() -> None:
    rule = company(max_delay_s=15 * MS)
    burst(rule, 0.0, 8)
    rule.arrived(1, 1.0)
    first = until(rule, 1.0)
    rule.arrived(2, 1.008)
    second = until(rule, 1.008, waiting=2, oldest=1.0)
    assert first < second == 1.0 + 15 * MS


def test_a_full_batch_and_a_delay_of_nothing_go_at_once() -> None:
    rule = company()
    burst(rule, 0.0, 8)
    assert until(rule, 1.0, waiting=8) <= 1.0
    rule = company(max_delay_s=0.0)
    burst(rule, 0.0, 8)
    assert until(rule, 1.0) <= 1.0


def test_where_company_saves_nothing_nobody_waits_for_it() -> None:
    rule = company(b1=10 * MS, b8=80 * MS)
    burst(rule, 0.0, 8)
    rule.arrived(1, 1.0)
    assert until(rule, 1.0) <= 1.0 + 1e-9


def test_a_frame_that_is_being_unpacked_is_waited_for_by_a_lone_one() -> None:
    rule = company()
    rule.arrived(1, 1.0)
    assert until(rule, 1.0) <= 1.0
    assert until(rule, 1.0, arriving=1) > 1.0


def test_a_frame_that_waited_for_compute_does_not_wait_for_company_as_well() -> None:
    rule = company()
    burst(rule, 0.0, 8)
    rule.arrived(1, 1.0)
    assert until(rule, 1.1, oldest=1.0) <= 1.1


def test_the_wait_ends_in_time_for_the_earliest_deadline() -> None:
    rule = company()
    burst(rule, 0.0, 8)
    rule.arrived(1, 1.0)
    found = rule.until(1.0, waiting=1, arriving=0, oldest=1.0, earliest=1.012)
    assert 1.0 < found < 1.002


def test_waits_that_bring_nobody_stop_and_begin_again_when_they_bring_somebody() -> None:
    rule = company()

    def waits(now: float, *, brings: int) -> bool:
        rule.arrived(2, now)
        found = until(rule, now) > now
        rule.taken(1 + brings * found)
        return found

    fruitless = [waits(float(turn), brings=0) for turn in range(2 * PROBE)]
    assert fruitless[:4] == [True] * 4
    assert sum(fruitless[4:]) <= 3
    paying = [waits(1000.0 + turn, brings=3) for turn in range(6 * PROBE)]
    assert all(paying[-PROBE:])
