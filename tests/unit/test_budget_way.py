"""What crosses follows what the link and the tails really take, and a link that was idle is not choked."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import mean, quantiles
from typing import Any, cast

from edge.head.config import HeadSettings
from edge.head.uplink.budget import TICK_S, Budget
from edge.head.uplink.link_limit import RELEASED_S
from tests.support.simulated_uplink import Clock, FakeLink, Uplink, active

MBPS = 125_000.0
LARGE = {"solder": (20, 50_000, 5.0), "helmets": (20, 50_000, 5.0), "faces": (10, 20_000, 5.0)}
"""Frames a second, bytes, milliseconds at the tail: 17.6 Mbit/s."""


class World:
    """A budget, its links and the one uplink and tail behind them."""

    def __init__(self, mbps: float, applications: dict[str, tuple[int, int, float]]) -> None:
        self.clock = Clock()
        self.uplink = Uplink(self.clock, mbps * MBPS)
        self.links = {name: FakeLink(self.uplink) for name in applications}
        loaded = [active(name, link) for name, link in self.links.items()]
        settings = HeadSettings(data_dir=Path("/nonexistent"))
        self.budget = Budget(settings, cast(Any, None), lambda: loaded, clock=self.clock)
        self.random, self.applications = Random(5), applications
        self.begun_s = self.clock.now_s
        self.took: list[tuple[float, float]] = []
        """When answers came, in seconds from the beginning, and after how many milliseconds."""
        self.asked, self.refused = 0, 0
        self.link_queue_ms: list[tuple[float, float]] = []
        self.backlog_ms: list[tuple[float, float]] = []

    @property
    def now_s(self) -> float:
        return self.clock.now_s - self.begun_s

    def run(self, until_s: float) -> World:
        due = {name: self.clock.now_s + self.random.expovariate(one[0]) for name, one in self.applications.items()}
        look_s = self.clock.now_s
        while self.now_s < until_s:
            name = min(due, key=due.__getitem__)
            self.uplink.turn(min(due[name], look_s))
            if look_s <= due[name]:
                self.budget.look()
                look_s += TICK_S
                self.link_queue_ms.append((self.now_s, self.uplink.queue_ms()))
                self.backlog_ms.append((self.now_s, self.uplink.tail_backlog_ms()))
            else:
                self.ask(name)
                due[name] += self.random.expovariate(self.applications[name][0])
        return self

    def ask(self, name: str) -> None:
        _, size, tail_ms = self.applications[name]
        sent_s, worth = self.clock.now_s, self.random.random()
        self.asked += 1
        if self.budget.refuses(name, worth, size):
            self.refused += 1
            return
        self.uplink.crossed.append((self.now_s, name, size))

        def answered(cloud_ms: float) -> None:
            self.budget.crossed(name, cloud_ms=cloud_ms)
            self.took.append((self.now_s, (self.clock.now_s - sent_s) * 1e3))

        self.links[name].send(size, tail_ms, answered)

    def mbps(self, from_s: float, to_s: float) -> float:
        """That was let across."""
        sizes = sum(size for at, _, size in self.uplink.crossed if from_s <= at < to_s)
        return sizes / (to_s - from_s) / MBPS

    @property
    def link_limit(self) -> float:
        return self.budget._link.bytes_per_s


def late(figures: list[tuple[float, float]], from_s: float, to_s: float = math.inf) -> list[float]:
    return [value for at, value in figures if from_s <= at < to_s]


def jittery(random: Random, mean_ms: float) -> Callable[[], float]:
    return lambda: random.expovariate(1 / mean_ms)


def test_a_link_with_room_is_no_limit_however_badly_it_is_measured() -> None:
    for size in (2_000, 50_000):
        world = World(1000, {"solder": (50, size, 5.0)})
        world.uplink.jitter_ms = jittery(world.random, 20.0)
        world.run(60)
        told = world.budget._crowding.goodput
        assert told < 200 * MBPS  # it looks far slower than it is
        assert world.refused < 0.01 * world.asked


def test_an_idle_link_is_not_choked_when_much_comes_at_once() -> None:
    world = World(1000, {"solder": (1, 50_000, 2.0)})
    world.uplink.jitter_ms = jittery(world.random, 20.0)
    world.run(60)
    world.applications["solder"] = (200, 50_000, 2.0)
    asked, refused = world.asked, world.refused
    world.run(70)
    assert world.refused - refused < 0.1 * (world.asked - asked)


def test_a_link_that_is_too_slow_is_used_well_and_frames_hardly_wait_for_it() -> None:
    world = World(5, LARGE).run(60)
    assert world.mbps(10, 60) > 0.9 * 5
    waits = late(world.link_queue_ms, 10)
    frame_ms = 50_000 / (5 * MBPS) * 1e3
    assert mean(waits) < 2.5 * frame_ms
    assert quantiles(waits, n=20)[18] < 5 * frame_ms
    assert max(late(world.took, 10), default=0.0) < 1000


def test_a_link_that_carries_everything_refuses_next_to_nothing() -> None:
    world = World(25, LARGE).run(60)
    assert world.refused < 0.03 * world.asked


def test_half_the_goodput_lowers_the_share_within_a_second() -> None:
    world = World(10, LARGE).run(20)
    before = world.link_limit
    assert math.isfinite(before)
    world.uplink.bytes_per_s = 5 * MBPS
    world.run(21)
    assert world.link_limit < 0.7 * before
    world.run(40)
    assert world.mbps(22, 40) < 5
    assert world.mbps(22, 40) > 0.75 * 5
    assert quantiles(late(world.link_queue_ms, 23), n=20)[18] < 400
    world.uplink.bytes_per_s = 10 * MBPS
    world.run(60)
    assert world.mbps(45, 60) > 0.75 * 10


def test_a_link_that_stood_still_is_used_again_soon_after_it_heals() -> None:
    world = World(20, LARGE).run(10)
    world.uplink.cut = True
    world.run(20)
    assert world.mbps(15, 20) < 1.0
    world.uplink.cut = False
    world.run(40)
    assert world.mbps(30, 40) > 10


def test_a_limit_of_the_link_ends_when_little_is_asked_for() -> None:
    world = World(5, dict(LARGE)).run(20)
    assert math.isfinite(world.link_limit)
    world.applications.clear()
    world.applications["faces"] = (1, 20_000, 5.0)
    world.run(20 + RELEASED_S + 8)
    assert world.link_limit == math.inf


def test_tails_that_slow_to_a_third_get_less_within_a_second() -> None:
    world = World(1000, {"solder": (40, 20_000, 15.0), "helmets": (15, 20_000, 15.0)}).run(10)
    world.uplink.slow = 3.0
    world.run(30)
    over = [at for at, ms in world.backlog_ms if at > 10 and ms > 100]
    assert over
    assert max(late(world.backlog_ms, 10)) < 800
    assert not late([(at, ms) for at, ms in world.backlog_ms if ms > 150], over[0] + 1, over[0] + 2)
    assert quantiles(late(world.backlog_ms, 13), n=20)[18] < 200
    assert mean(late(world.took, 13)) < 250
    busy = sum(1 for at, _ in world.took if 15 <= at < 30) * 45 / 15_000
    assert busy > 0.75
    world.uplink.slow = 1.0
    refused, asked = world.refused, world.asked
    world.run(60)
    assert world.refused - refused < 0.5 * (world.asked - asked)


def test_a_head_without_tails_has_no_limit() -> None:
    clock = Clock()
    budget = Budget(
        HeadSettings(data_dir=Path("/nonexistent")), cast(Any, None), lambda: [active("whole", None)], clock=clock
    )
    for _ in range(100):
        clock.now_s += TICK_S
        assert budget.refuses("whole", 0.5, 50_000) == ""
        budget.look()
