"""Alternatives: what they cost on a link, what a head changes to and when."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from edge.head.ways import DWELL_S, HOLD_TICKS, TICK_S, Hysteresis
from splitmesh.errors import MeshError, Reason
from splitmesh.model.alternatives import Alternative, AlternativeSet, LinkState, expected_ms

WHOLE = Alternative(version=0, name="edge only", edge_ms=40.0)
SPLIT = Alternative(
    version=3, name="cut at a", edge_ms=5.0, encode_ms=1.0, uplink_bytes=10_000, cloud_ms=4.0, share=1.0
)


def test_a_crossing_sample_pays_every_stage_once() -> None:
    assert expected_ms(SPLIT, LinkState(1000.0, 20.0, 2.0), 0.0) == pytest.approx(5 + 1 + 10 + 20 + 2 + 4)
    assert expected_ms(SPLIT.model_copy(update={"share": 0.25}), LinkState(1000.0, 20.0, 2.0), 0.0) == pytest.approx(
        5 + 0.25 * 37
    )
    assert expected_ms(WHOLE, LinkState(0.0, 0.0), 0.0) == 40.0
    assert expected_ms(SPLIT, LinkState(0.0, 0.0), 0.0) == math.inf


def test_waiting_grows_with_the_load_of_the_link_and_of_the_edge() -> None:
    link = LinkState(1000.0, 20.0)
    idle, busy, full = (expected_ms(SPLIT, link, rate) for rate in (0.0, 80.0, 120.0))
    assert idle < busy < full
    assert expected_ms(WHOLE, link, 24.0) > expected_ms(WHOLE, link, 5.0)
    assert expected_ms(WHOLE, link, 24.0, edge_workers=4) < expected_ms(WHOLE, link, 24.0)
    assert expected_ms(WHOLE, link, 100.0) > expected_ms(WHOLE, link, 50.0), "overloaded ways still compare"


def test_a_list_is_read_back_and_nonsense_is_refused() -> None:
    listed = AlternativeSet(alternatives=(WHOLE, SPLIT), uplink_mbps=20, rtt_ms=20)
    assert AlternativeSet.from_json(listed.to_json()) == listed
    twice = listed.to_json().replace('"version": 3', '"version": 0')
    negative = listed.to_json().replace('"uplink_mbps": 20', '"uplink_mbps": 0')
    free = listed.to_json().replace('"uplink_bytes": 10000', '"uplink_bytes": 0')
    for text in ("{}", twice, negative, free, "not json"):
        with pytest.raises(MeshError) as caught:
            AlternativeSet.from_json(text)
        assert caught.value.reason is Reason.MODEL_CORRUPT


def _run(costs_over_time: list[list[float]]) -> list[int]:
    chooser, index, path = Hysteresis(), 0, []
    for tick, costs in enumerate(costs_over_time):
        index = chooser.choose(index, costs, tick * TICK_S)
        path.append(index)
    return path


def test_a_lasting_gain_changes_the_way_within_a_few_ticks() -> None:
    path = _run([[50.0, 20.0]] * 5)
    assert path == [0] * (HOLD_TICKS - 1) + [1] * (6 - HOLD_TICKS)


def test_one_late_frame_and_small_gains_change_nothing() -> None:
    assert set(_run([[20.0, 30.0], [50.0, 30.0], [20.0, 30.0], [50.0, 30.0], [20.0, 30.0]])) == {0}
    assert set(_run([[20.0, 18.0]] * 50)) == {0}
    assert set(_run([[1.0, 0.5]] * 50)) == {0}, "half a millisecond is not worth a change"


def test_costs_that_swing_do_not_make_it_flap() -> None:
    swinging = [[30.0, 20.0] if tick // 5 % 2 == 0 else [20.0, 30.0] for tick in range(300)]
    path = _run(swinging)
    changes = sum(a != b for a, b in pairwise(path))
    assert 1 <= changes <= 300 * TICK_S / DWELL_S + 1


def test_a_way_that_broke_is_left_at_once_even_just_after_a_change() -> None:
    path = _run([[50.0, 20.0]] * HOLD_TICKS + [[50.0, math.inf]] * HOLD_TICKS)
    assert path[HOLD_TICKS - 1] == 1
    assert path[-1] == 0


def test_nothing_better_than_nothing() -> None:
    assert set(_run([[math.inf, math.inf]] * 5)) == {0}
