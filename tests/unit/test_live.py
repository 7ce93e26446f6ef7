"""A profile corrected by what its node takes in production."""

import hashlib
import json
from typing import Any

import pytest

from splitmesh.client.profiles import profile_from_message, profile_to_message
from splitmesh.model.live import FACTORS, MIN_LIVE_RUNS, Side, corrected
from splitmesh.model.profile_data import CutProfile, NodeProfile, Profile, ProfileKey

CUT = CutProfile(
    tensors=("b", "a"),
    position=0.5,
    head_ms=4.0,
    head_p90_ms=5.0,
    tail_ms=8.0,
    tail_p90_ms=9.0,
    measured=True,
    head_bytes=1,
    raw_bytes=1,
    wire_bytes={"c": 1},
    encode_ms={"c": 1.0},
    decode_ms={"c": 2.0},
)
PROFILE = Profile(
    key=ProfileKey(node="n", backend="CPUExecutionProvider", threads=1),
    whole_ms=12.0,
    whole_p90_ms=13.0,
    whole_bytes=1,
    cuts=(CUT,),
    nodes=(NodeProfile(name="a", sources=(-1,), head_ms=4.0, tail_ms=3.0, weight_bytes=0, wire_bytes={}),),
    repeats=1,
    samples=1,
    calibration="real",
    host="h",
)


def _corrected(side: Side = "head", cut: tuple[str, ...] = ("a", "b"), ms: float = 8.0, runs: int = 100) -> Any:
    return corrected(PROFILE, side, frozenset(cut), ms, runs)


@pytest.mark.parametrize(("side", "ms"), [("head", 8.0), ("tail", 16.0), ("whole", 24.0)])
def test_every_time_of_the_node_is_scaled(side: Side, ms: float) -> None:
    better = _corrected(side, ms=ms)
    (cut,) = better.cuts
    assert (cut.head_ms, cut.head_p90_ms, cut.tail_ms, cut.tail_p90_ms, cut.live_runs) == (8, 10, 16, 18, 100)
    assert (better.whole_ms, better.whole_p90_ms) == (24, 26)
    assert (better.nodes[0].head_ms, better.nodes[0].tail_ms) == (8, 6)
    assert (cut.encode_ms, cut.wire_bytes, better.key) == (CUT.encode_ms, CUT.wire_bytes, PROFILE.key)


@pytest.mark.parametrize(("ms", "factor"), [(4000.0, FACTORS[1]), (0.0, FACTORS[0])])
def test_a_correction_is_bounded(ms: float, factor: float) -> None:
    assert _corrected(ms=ms).whole_ms == pytest.approx(12 * factor)


def test_few_runs_small_differences_and_unknown_cuts_change_nothing() -> None:
    assert _corrected(runs=MIN_LIVE_RUNS - 1) is None
    assert _corrected(ms=4.1) is None
    assert _corrected(cut=("a",)) is None


def test_a_correction_is_not_applied_twice() -> None:
    assert corrected(_corrected(), "head", frozenset(("a", "b")), 8.0, 200) is None


def test_the_worst_times_are_scaled_too_and_stay_unknown_where_they_are() -> None:
    noted = PROFILE.model_copy(
        update={"whole_p99_ms": 20.0, "cuts": (PROFILE.cuts[0].model_copy(update={"head_p99_ms": 6.0}),)}
    )
    better = corrected(noted, "whole", frozenset(), noted.whole_ms * 2, 100)
    assert better is not None
    assert (better.whole_p99_ms, better.cuts[0].head_p99_ms, better.cuts[0].tail_p99_ms) == (40.0, 12.0, None)
    assert profile_from_message(profile_to_message(better)) == better


def test_a_profile_without_worst_times_keeps_the_name_it_had() -> None:
    told = PROFILE.model_dump(mode="json")
    for entry in (told, *told["cuts"]):
        for name in [name for name in entry if name.endswith("_p99_ms")]:
            del entry[name]
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    assert PROFILE.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert PROFILE.model_copy(update={"whole_p99_ms": 1.0}).sha256 != PROFILE.sha256
