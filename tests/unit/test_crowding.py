"""What links tell is put together: the best goodput, the worst wait, and what frames take by how many are out."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from edge.head.uplink.crowding import FREE, SILENT_MS, WINDOW_S, Sojourn, crowding
from edge.head.uplink.link_limit import PROBE_S, RELEASED_S, SHARE, WAITS_MS, LinkLimit
from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.model.alternatives import LinkState


def active(model: str, mbps: float, *, backlog: float = 0.0, rtt: float = 0.0, wait: float = 0.0, out: int = 0) -> Any:
    load = routing_pb2.UplinkLoad(backlog_ms=backlog, goodput_mbps=mbps, rtt_ms=rtt, tails=2)
    way = LinkState(max(mbps, 1.0) * 125, rtt, queue_ms=7.0, wait_ms=wait)
    link = SimpleNamespace(load=lambda: load, way=lambda: way, in_flight=out)
    return SimpleNamespace(info=SimpleNamespace(model=model), link=link)


def test_without_links_nothing_is_known() -> None:
    unsplit = SimpleNamespace(info=SimpleNamespace(model="a"), link=None)
    assert crowding([unsplit], {"a": 1000.0}) == FREE  # type: ignore[list-item]


def test_the_best_goodput_and_the_worst_wait_count() -> None:
    loaded = [
        active("a", 4.0, backlog=5.0, rtt=20.0, wait=3.0, out=1),
        active("b", 8.0, backlog=30.0, wait=50.0, out=2),
        active("old", 100.0, wait=900.0),
    ]
    seen = crowding(loaded, {"a": 1000.0, "b": 1000.0})
    assert seen.goodput == pytest.approx(1e6)
    assert seen.waits_ms == 50.0
    assert (seen.load.backlog_ms, seen.load.rtt_ms, seen.load.tails) == (30.0, 20.0, 2)
    assert seen.load.goodput_mbps == pytest.approx(8.0)
    assert (seen.in_flight, seen.tail_ms) == (3, 7.0)


def test_a_link_of_which_nothing_is_known_tells_no_goodput() -> None:
    seen = crowding([active("a", 0.0, wait=500.0)], {"a": 1000.0})
    assert (seen.goodput, seen.waits_ms, seen.load.goodput_mbps) == (0.0, 0.0, 0.0)


def test_frames_that_are_out_for_far_longer_than_they_take_wait() -> None:
    seen = crowding([active("a", 8.0, out=20)], {"a": 50_000.0})  # a second's worth of the link
    assert seen.waits_ms == pytest.approx(1000 - SILENT_MS)


def steady(sojourn: Sojourn, out: int, begin_s: float, end_s: float, *, per_tick: int = 1) -> float:
    beyond = 0.0
    for tick in range(round(begin_s * 20), round(end_s * 20)):
        beyond = sojourn.beyond_ms(out, per_tick, 10.0, tick / 20)
    return beyond


def test_frames_that_take_as_long_as_ever_do_not_wait() -> None:
    sojourn = Sojourn(0.0)
    assert steady(sojourn, 2, 0.0, 20.0) < 5


def test_more_frames_out_for_as_many_back_is_a_wait_until_it_is_usual() -> None:
    sojourn = Sojourn(0.0)
    steady(sojourn, 2, 0.0, 1.0, per_tick=0)  # the first answers are on their way
    steady(sojourn, 2, 1.0, 5.0)
    assert steady(sojourn, 6, 5.0, 8.0) == pytest.approx(200, rel=0.05)
    assert steady(sojourn, 6, 8.0, 8.0 + 2 * WINDOW_S) < 5


def test_frames_of_which_none_comes_back_wait_for_ever() -> None:
    sojourn = Sojourn(0.0)
    assert steady(sojourn, 3, 0.0, 1.0, per_tick=0) == math.inf
    assert steady(sojourn, 0, 1.0, 2.0, per_tick=0) == 0


class Link:
    """A limit, told the same again and again."""

    def __init__(self) -> None:
        self.limit, self.now_s = LinkLimit(0.0), 0.0

    def sees(self, seconds: float, **facts: float) -> float:
        told = {
            "goodput": 1e6,
            "waits_ms": 0.0,
            "frame_bytes": 1000.0,
            "asked": 2e6,
            "delivered": 0.0,
            "largest_bytes": 0.0,
        }
        for _ in range(round(seconds * 20)):
            self.now_s += 0.05
            self.limit.saw(**(told | facts), now_s=self.now_s)
        return self.limit.bytes_per_s


def test_a_goodput_alone_limits_nothing() -> None:
    assert Link().sees(60) == math.inf
    assert Link().sees(60, waits_ms=WAITS_MS) == math.inf
    assert Link().sees(60, waits_ms=10 * WAITS_MS, asked=0.4e6) == math.inf
    assert Link().sees(60, waits_ms=10 * WAITS_MS, goodput=0.0) == math.inf


def test_a_wait_limits_to_less_than_is_carried_and_the_longer_the_less() -> None:
    link = Link()
    assert link.sees(0.05, waits_ms=100.0) == pytest.approx(SHARE * 1e6, rel=0.06)
    assert link.sees(1.0, waits_ms=100.0) == pytest.approx(0.5e6)
    assert link.sees(0.05) == pytest.approx(SHARE * 1e6, rel=0.06)


def test_a_wait_of_few_frames_is_none() -> None:
    assert Link().sees(5, waits_ms=150.0, frame_bytes=100_000.0) == math.inf


def test_what_was_delivered_is_carried_whatever_the_goodput_seems_to_be() -> None:
    assert Link().sees(0.05, waits_ms=100.0, delivered=5e6, asked=5e6) > 4e6


def test_a_limit_grows_while_nothing_waits() -> None:
    link = Link()
    first = link.sees(0.05, waits_ms=100.0)
    grown = [link.sees(1.0) for _ in range(6)]
    assert grown == sorted(grown)
    assert 1.05 * first < grown[0] < 1.2 * first
    assert grown[-1] > 2 * first


def test_a_limit_that_nobody_needs_ends() -> None:
    link = Link()
    link.sees(0.05, waits_ms=100.0)
    assert math.isfinite(link.sees(RELEASED_S - 0.5, asked=0.1e6))
    assert link.sees(0.6, asked=0.1e6) == math.inf


def test_one_frame_may_cross_now_and_then_however_bad_the_link() -> None:
    assert Link().sees(1, waits_ms=600.0, goodput=10.0, largest_bytes=60_000.0) == pytest.approx(60_000 / PROBE_S)
