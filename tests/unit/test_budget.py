"""Hard samples cross within what was granted, the worthiest first; where nothing limits, none is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.head.config import HeadSettings
from edge.head.uplink.budget import AUDIT_DUE, SHARE_EVERY_S, TICK_S, Budget
from edge.head.uplink.limits import BURST_S
from splitmesh.client.shares import ApplicationShare, Grant, Update
from splitmesh.errors import MeshError, Reason
from tests.support.simulated_uplink import Clock, FakeLink, Uplink, active

MBPS_5 = 625_000.0
APPLICATIONS = {
    "solder": (20, 50_000, (0.4, 1.0)),
    "helmets": (20, 50_000, (0.1, 0.7)),
    "faces": (10, 20_000, (0.0, 0.5)),
}
"""Frames a second, bytes, and between what their worth lies."""


def granting(bytes_per_s: float = math.inf, ms_per_s: float = math.inf, **places: tuple[float, float]) -> Grant:
    applications = tuple(ApplicationShare(name, *place) for name, place in places.items())
    return Grant(bytes_per_s, ms_per_s, applications, "the site may use so much")


class World:
    """A budget on a clock turned by hand, without links."""

    def __init__(self, folder: Path = Path("/nonexistent")) -> None:
        self.clock = Clock()
        self.budget = Budget(HeadSettings(data_dir=folder), cast(Any, None), list, clock=self.clock)
        self.random = Random(7)

    def ask(self, seconds: float) -> dict[str, list[tuple[float, float, str]]]:
        """The applications' samples: when, worth and why refused, for each."""
        begun_s, said = self.clock.now_s, {name: list[tuple[float, float, str]]() for name in APPLICATIONS}
        due = {name: begun_s + self.random.expovariate(rate) for name, (rate, _, _) in APPLICATIONS.items()}
        looks = iter(begun_s + TICK_S * tick for tick in range(1, 1 << 30))
        look_s = next(looks)
        while (name := min(due, key=due.__getitem__)) and due[name] < begun_s + seconds:
            while look_s <= due[name]:
                self.clock.now_s = look_s
                self.budget.look()
                look_s = next(looks)
            self.clock.now_s = due[name]
            rate, size, worths = APPLICATIONS[name]
            worth = self.random.uniform(*worths)
            said[name].append((due[name], worth, self.budget.refuses(name, worth, size)))
            due[name] += self.random.expovariate(rate)
        return said


def share_of(samples: list[tuple[float, float, str]]) -> float:
    return sum(not why for _, _, why in samples) / len(samples)


def bytes_of(said: dict[str, list[tuple[float, float, str]]]) -> Iterator[tuple[float, int]]:
    passed = [(at, APPLICATIONS[name][1]) for name, samples in said.items() for at, _, why in samples if not why]
    return iter(sorted(passed))


def test_with_no_limit_nothing_is_refused_and_everything_may_be_spared() -> None:
    world = World()
    said = world.ask(20)
    assert all(share_of(samples) == 1 for samples in said.values())
    assert world.budget.spare("solder", 10**9)
    assert world.budget.refuses("solder", 0.0, 10**9) == ""


def test_three_applications_share_five_megabits_by_value_and_keep_to_them() -> None:
    world = World()
    world.budget.granted(granting(MBPS_5))
    world.ask(10)
    said = world.ask(60)
    passed = list(bytes_of(said))
    # Twelve of the larger samples fit into a second, and no second may hold a thirteenth.
    assert 0.83 * MBPS_5 < sum(size for _, size in passed) / 60 <= MBPS_5
    for end_s, _ in passed:
        assert sum(size for at_s, size in passed if end_s - 1 < at_s <= end_s) <= MBPS_5
    assert share_of(said["solder"]) > 5 * share_of(said["helmets"])  # the same sizes, worth less
    gained = sum(worth for samples in said.values() for _, worth, why in samples if not why)
    everything = sorted(
        ((worth, APPLICATIONS[name][1]) for name, samples in said.items() for _, worth, _ in samples),
        key=lambda entry: -entry[0] / entry[1],
    )
    left, best = 60 * MBPS_5, 0.0
    for worth, size in everything:  # what one who knew all samples before would let cross
        if size <= left:
            left, best = left - size, best + worth
    assert gained > 0.8 * best


def test_every_application_keeps_its_minimum() -> None:
    world = World()
    world.budget.granted(granting(MBPS_5, helmets=(1e-3, 0.3)))
    world.ask(10)
    said = world.ask(60)
    assert share_of(said["helmets"]) > 0.25
    worths = {
        bool(why): [worth for _, worth, said_why in said["helmets"] if bool(said_why) is bool(why)]
        for why in ("", "no")
    }
    assert sum(worths[False]) / len(worths[False]) > sum(worths[True]) / len(worths[True]) + 0.2


def test_a_larger_weight_gets_more() -> None:
    shares = []
    for weight in (1.0, 3.0):
        world = World()
        world.budget.granted(granting(MBPS_5, helmets=(weight, 0.0)))
        world.ask(10)
        shares.append(share_of(world.ask(30)["helmets"]))
    assert shares[1] > shares[0] + 0.2


def test_a_lowered_grant_is_obeyed_by_the_next_frame() -> None:
    world = World()
    world.ask(5)
    world.budget.granted(granting(0.0))
    why = world.budget.refuses("solder", 1.0, 50_000)
    assert "solder" in why
    assert "0 bytes/s" in why
    assert "granted by the router: the site may use so much" in why
    world.budget.granted(granting())
    assert world.budget.refuses("solder", 1.0, 50_000) == ""


def test_the_cloud_limit_binds_like_the_uplink() -> None:
    world = World()
    for _ in range(50):
        world.budget.crossed("solder", cloud_ms=20.0)
        world.budget.crossed("helmets", cloud_ms=20.0)
        world.budget.crossed("faces", cloud_ms=20.0)
    world.budget.granted(granting(ms_per_s=300.0))
    world.ask(10)
    said = world.ask(30)
    crossing = sum(not why for samples in said.values() for _, _, why in samples) / 30
    assert 0.85 * 15 < crossing <= 15 + 1
    refused = [why for _, _, why in said["helmets"] if why]
    assert "300 ms/s of the tails' time granted by the router" in refused[0]


def test_what_is_spared_needs_room_that_nobody_else_asks_for() -> None:
    world = World()
    world.budget.granted(granting(MBPS_5))
    world.ask(5)
    world.clock.now_s += 1  # enough has been saved up, and hard samples will need it
    assert not world.budget.spare("solder", 100)
    idle = World()
    idle.budget.granted(granting(MBPS_5))
    for _ in range(40):
        idle.clock.now_s += TICK_S
        idle.budget.look()
    spared = sum(idle.budget.spare("solder", 10_000) for _ in range(100)) * 10_000
    assert 0 < spared <= BURST_S * MBPS_5 / 2 + 10_000
    assert idle.budget.refuses("solder", 0.5, 50_000) == ""


def test_audits_get_their_small_part_also_where_hard_samples_want_more_than_there_is() -> None:
    world = World()
    world.budget.granted(granting(MBPS_5))
    world.ask(5)
    asked = allowed = 0
    for _ in range(10):
        asked += sum(len(samples) for samples in world.ask(2).values())
        world.clock.now_s += 0.3  # a sample's time, in which nobody asks
        assert not world.budget.spare("solder", 100)
        allowed += sum(world.budget.allows_audit("solder", 10_000) for _ in range(100))
    assert 0 < allowed <= 1 + AUDIT_DUE * asked


def test_a_worth_that_nobody_knows_crosses_before_others() -> None:
    world = World()
    world.budget.granted(granting(MBPS_5))
    world.ask(5)
    world.clock.now_s += 1
    assert world.budget.refuses("helmets", 0.1, 50_000)
    assert world.budget.refuses("helmets", math.nan, 50_000) == ""


def test_a_frame_larger_than_any_before_crosses_once_enough_is_saved_up() -> None:
    world = World()
    world.budget.granted(granting(10_000.0))
    said = []
    for _ in range(13):
        world.clock.now_s += 1
        world.budget.look()
        said.append(world.budget.refuses("solder", math.nan, 50_000))
    assert said.count("") == 2
    assert "50000 bytes are asked for, and the limit of 10000 bytes/s" in said[0]


STEPS = st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 60_000), st.floats(0, 1), st.booleans()), max_size=80)


@given(STEPS, st.floats(0, 200_000))
def test_no_more_than_rate_times_time_and_a_burst_passes_in_any_stretch(
    steps: list[tuple[float, int, float, bool]], rate: float
) -> None:
    world = World()
    world.budget.granted(granting(rate))
    passed: list[tuple[float, int]] = []
    for pause_s, size, worth, look in steps:
        world.clock.now_s += pause_s
        if look:
            world.budget.look()
        if not world.budget.refuses("solder", worth, size):
            passed.append((world.clock.now_s, size))
        if world.budget.spare("helmets", size // 2):
            passed.append((world.clock.now_s, size // 2))
    burst = max([BURST_S * rate, *(size for _, size, _, _ in steps)])
    for first in range(len(passed)):
        total = 0
        for at, size in passed[first:]:
            total += size
            assert total <= rate * (at - passed[first][0]) + burst + 1e-3


@pytest.mark.parametrize(
    "grant",
    [
        granting(math.nan),
        granting(-1.0),
        granting(1.0, math.nan),
        granting(1.0, -1.0),
        granting(1.0, solder=(-1.0, 0.0)),
        granting(1.0, solder=(math.inf, 0.0)),
        granting(1.0, solder=(math.nan, 0.0)),
        granting(1.0, solder=(1.0, 1.5)),
        granting(1.0, solder=(1.0, math.nan)),
        Grant(1.0, 1.0, tuple(ApplicationShare(f"a{number}") for number in range(257)), ""),
    ],
)
def test_a_grant_that_nobody_can_keep_to_is_refused_and_the_last_one_holds(grant: Grant) -> None:
    world = World()
    world.budget.granted(granting(0.0))
    with pytest.raises(MeshError) as caught:
        world.budget.granted(grant)
    assert caught.value.reason is Reason.PROTOCOL_VIOLATION
    assert "0 bytes/s" in world.budget.refuses("solder", 1.0, 1000)


def test_the_router_is_told_what_is_asked_for() -> None:
    world = World()
    world.ask(10)
    for _ in range(50):
        world.budget.crossed("faces", cloud_ms=12.0)
    world.ask(10)
    update = cast(Update, world.budget._uplink._newest)
    told = {demand.application: demand for demand in update.demands}
    assert set(told) == set(APPLICATIONS)
    assert sum(told["solder"].rates) == pytest.approx(20, rel=0.35)
    assert told["faces"].bytes == pytest.approx(20_000)
    assert told["faces"].cloud_ms == pytest.approx(12.0, rel=0.3)
    assert sum(told["faces"].rates[16:]) == 0  # none is worth more than a half
    assert all(demand.deadline_ok for demand in told.values())


def test_answers_that_would_be_late_are_told_and_tried_now_and_then() -> None:
    clock = Clock()
    uplink = Uplink(clock, 1e6)
    link = FakeLink(uplink)
    budget = Budget(
        HeadSettings(default_deadline_ms=100), cast(Any, None), lambda: [active("solder", link)], clock=clock
    )
    budget.granted(granting(1e7))
    said = []
    for frame in range(400):
        clock.now_s += TICK_S
        if frame == 100:
            budget.crossed("solder", cloud_ms=1e6)  # an answer took far too long
        said.append(budget.refuses("solder", 1.0, 1000))
        budget.look()
    assert not any(said[:100])
    late = said[110:]
    assert 3 <= late.count("") <= 6  # in 14.5 s, one in three seconds
    assert "after the deadline" in next(why for why in late if why)
    told = cast(Update, budget._uplink._newest).demands
    assert [demand.deadline_ok for demand in told] == [False]


@pytest.mark.parametrize(("left_s", "in_time"), [(5.0, True), (None, False), (0.1, False)])
def test_in_time_is_what_the_samples_own_deadlines_say(left_s: float | None, in_time: bool) -> None:
    world = World()
    world.budget.granted(granting(MBPS_5))
    for _ in range(100):
        world.clock.now_s += TICK_S
        world.budget.refuses("solder", 1.0, 1000, left_s=left_s)
        world.budget.crossed("solder", cloud_ms=1200.0)  # more than the default deadline
        world.budget.look()
    told = cast(Update, world.budget._uplink._newest).demands
    assert [demand.deadline_ok for demand in told] == [in_time]


def test_a_share_is_as_old_as_a_quarter_of_a_second_at_most() -> None:
    world = World()
    world.budget.granted(granting(MBPS_5))
    world.ask(SHARE_EVERY_S + 2 * TICK_S)
    assert all(asking.shares for asking in world.budget._applications.values())
