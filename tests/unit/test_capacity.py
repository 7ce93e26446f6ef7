"""The tails' time is used as far as frames do not wait there too long, by one head or by several."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.capacity import CUT_EVERY_S, LEAST_MS_PER_S, RELEASED_S, Capacity
from splitmesh.routing.meter import Meter

MAX_MS = 100.0
STEP_S = 0.01
TICK_S = 0.05
DELAY_S = 0.02
"""Until a back-log is heard of."""


@dataclass
class Queue:
    """A server with a queue; users that ask for some of its time and keep to their own ``Capacity``."""

    serves: Callable[[float], float]
    """Milliseconds of work per second, by time."""
    asks: list[Callable[[float], float]]
    waiting: float = 0.0
    backlogs: list[float] = field(default_factory=list)
    limits: list[list[float]] = field(default_factory=list)
    taken: list[list[float]] = field(default_factory=list)

    def run(self, seconds: float) -> Queue:
        users = [Capacity(MAX_MS, 0.0) for _ in self.asks]
        meters = [Meter(0.0) for _ in self.asks]
        heard: deque[float] = deque([0.0] * round(DELAY_S / STEP_S), maxlen=round(DELAY_S / STEP_S))
        for step in range(round(seconds / STEP_S)):
            now_s = step * STEP_S
            taken = [min(asks(now_s), user.limit_ms_per_s(now_s)) for asks, user in zip(self.asks, users, strict=True)]
            self.waiting = max(0.0, self.waiting + (sum(taken) - self.serves(now_s)) * STEP_S)
            backlog_ms = self.waiting / self.serves(now_s) * 1e3
            for meter, rate in zip(meters, taken, strict=True):
                meter.add(rate * STEP_S, now_s)
            if step % round(TICK_S / STEP_S) == 0:
                for user, meter in zip(users, meters, strict=True):
                    user.saw(heard[0], meter.per_s(now_s), now_s)
            heard.append(backlog_ms)
            self.backlogs.append(backlog_ms)
            self.limits.append([user.limit_ms_per_s(now_s) for user in users])
            self.taken.append(taken)
        return self

    def first_over_s(self, after_s: float = 0.0) -> float:
        begin = round(after_s / STEP_S)
        return next(step for step in range(begin, len(self.backlogs)) if self.backlogs[step] > MAX_MS) * STEP_S

    def under_again_s(self, from_s: float) -> float:
        begin = round(from_s / STEP_S)
        return next(step for step in range(begin, len(self.backlogs)) if self.backlogs[step] <= MAX_MS) * STEP_S

    def mean_taken(self, from_s: float, user: int = 0) -> float:
        part = [taken[user] for taken in self.taken[round(from_s / STEP_S) :]]
        return sum(part) / len(part)


def always(rate: float) -> Callable[[float], float]:
    return lambda _: rate


def test_nothing_is_limited_while_frames_wait_no_longer_than_allowed() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    for tick in range(100):
        capacity.saw(MAX_MS, 900.0, tick * TICK_S)
        assert capacity.limit_ms_per_s(tick * TICK_S) == math.inf


@pytest.mark.parametrize(("times", "within_s"), [(1.2, 0.5), (3.0, 0.5), (8.0, 1.3)])
@pytest.mark.parametrize("serves", [1000.0, 10_000.0])
def test_an_overloaded_queue_is_soon_under_the_limit_and_stays_near_it(
    times: float, within_s: float, serves: float
) -> None:
    queue = Queue(always(serves), [always(times * serves)]).run(40)
    over_s = queue.first_over_s()
    assert queue.under_again_s(over_s) - over_s < within_s
    late = queue.backlogs[round(10 / STEP_S) :]
    assert max(late) < 1.5 * MAX_MS
    assert sorted(late)[round(0.95 * len(late))] < 1.2 * MAX_MS


@pytest.mark.parametrize("times", [1.2, 3.0, 8.0])
def test_an_overloaded_queue_is_neither_starved_nor_wildly_used(times: float) -> None:
    queue = Queue(always(1000.0), [always(times * 1000)]).run(40)
    assert queue.mean_taken(10) > 950
    assert min(taken[0] for taken in queue.taken[round(10 / STEP_S) :]) > 700


def test_what_is_used_is_halved_within_half_a_second_of_a_bad_wait() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    capacity.saw(0.0, 1000.0, 0.0)
    for tick in range(1, 11):
        capacity.saw(4 * MAX_MS, 1000.0, tick * TICK_S)
    assert capacity.limit_ms_per_s(0.5) <= 500


def test_a_wait_just_above_the_limit_costs_little_and_one_that_goes_away_nothing_more() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    capacity.saw(1.1 * MAX_MS, 1000.0, 0.0)
    assert 850 < capacity.limit_ms_per_s(0.0) < 1000
    bad = Capacity(MAX_MS, 0.0)
    bad.saw(10 * MAX_MS, 1000.0, 0.0)
    first = bad.limit_ms_per_s(0.0)
    for look in range(1, 8):
        bad.saw((10 - look) * MAX_MS, 1000.0, look * CUT_EVERY_S)
    assert bad.limit_ms_per_s(1.0) == first
    bad.saw(10 * MAX_MS, 1000.0, 0.9)
    assert bad.limit_ms_per_s(1.0) <= 0.5 * first


def test_a_server_that_slows_to_a_third_is_followed_and_used_again_when_it_heals() -> None:
    queue = Queue(lambda now_s: 1000.0 if 10 <= now_s < 20 else 3000.0, [always(2500.0)]).run(45)
    assert queue.limits[round(9.9 / STEP_S)] == [math.inf]
    over_s = queue.first_over_s()
    assert over_s >= 10
    assert queue.under_again_s(over_s) - over_s < 1.0
    assert queue.mean_taken(40) == 2500
    assert queue.limits[-1] == [math.inf]


def test_users_that_come_late_get_about_as_much_as_those_before() -> None:
    queue = Queue(always(1000.0), [always(3000.0), lambda now_s: 3000.0 if now_s > 10 else 0.0]).run(150)
    first, second = queue.mean_taken(100, 0), queue.mean_taken(100, 1)
    assert 900 < first + second < 1050
    assert 0.6 < first / second < 1.7


def test_who_uses_nothing_is_not_blamed_for_the_wait() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    for tick in range(100):
        capacity.saw(10 * MAX_MS, 0.0, tick * TICK_S)
    assert capacity.limit_ms_per_s(5.0) == math.inf


def test_a_wait_that_is_others_doing_leaves_a_little() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    for tick in range(400):
        capacity.saw(10 * MAX_MS, min(500.0, capacity.limit_ms_per_s(tick * TICK_S)), tick * TICK_S)
    assert capacity.limit_ms_per_s(20.0) == LEAST_MS_PER_S


def test_a_limit_that_does_not_bind_any_more_is_none() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    capacity.saw(5 * MAX_MS, 1000.0, 0.0)
    assert capacity.limit_ms_per_s(0.0) < 1000
    times = [0.5 * step for step in range(1, 40)]
    limits = []
    for now_s in times:
        capacity.saw(0.0, 100.0, now_s)
        limits.append(capacity.limit_ms_per_s(now_s))
    assert math.isfinite(limits[times.index(RELEASED_S - 0.5)])
    assert limits[times.index(RELEASED_S)] == math.inf


def test_a_limit_of_which_nothing_is_heard_any_more_is_none() -> None:
    capacity = Capacity(MAX_MS, 0.0)
    capacity.saw(5 * MAX_MS, 1000.0, 0.0)
    assert math.isfinite(capacity.limit_ms_per_s(RELEASED_S - 0.1))
    assert capacity.limit_ms_per_s(RELEASED_S) == math.inf


def test_a_clock_that_is_set_back_changes_nothing() -> None:
    capacity = Capacity(MAX_MS, 1000.0)
    capacity.saw(5 * MAX_MS, 1000.0, 1000.0)
    before = capacity.limit_ms_per_s(1000.0)
    capacity.saw(0.0, before, 10.0)
    assert capacity.limit_ms_per_s(10.0) == before


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Capacity(0.0, 0.0), "max_backlog_ms"),
        (lambda: Capacity(math.inf, 0.0), "max_backlog_ms"),
        (lambda: Capacity(math.nan, 0.0), "max_backlog_ms"),
        (lambda: Capacity(1.0, math.nan), "now_s"),
        (lambda: Capacity(1.0, 0.0).saw(-1.0, 0.0, 0.0), "backlog_ms"),
        (lambda: Capacity(1.0, 0.0).saw(math.nan, 0.0, 0.0), "backlog_ms"),
        (lambda: Capacity(1.0, 0.0).saw(0.0, math.inf, 0.0), "used_ms_per_s"),
        (lambda: Capacity(1.0, 0.0).saw(0.0, 0.0, math.inf), "now_s"),
        (lambda: Meter(0.0, fading_s=0.0), "fading_s"),
        (lambda: Meter(0.0).add(math.nan, 0.0), "amount"),
        (lambda: Meter(0.0).add(-1.0, 0.0), "amount"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], object], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        call()
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field


def test_a_meter_shows_a_steady_flow_as_it_is_and_forgets_one_that_ended() -> None:
    meter = Meter(0.0, fading_s=0.25)
    for step in range(200):
        meter.add(10.0, step * STEP_S)
    assert meter.per_s(2.0) == pytest.approx(1000, rel=0.03)
    assert meter.per_s(3.0) == pytest.approx(1000 * math.exp(-4), rel=0.03)
