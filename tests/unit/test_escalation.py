"""Shares of hard samples on a network whose layers know more and more: nothing, a part, everything."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.escalation import MAX_TRIALS, with_escalation, worth_an_exit
from splitmesh.model.plan import Constraints, Kind, Link, Workload, make_plan
from splitmesh.model.profile_data import QUANTISED_CODEC, CutProfile, Profile, ProfileKey
from splitmesh.tensor.spec import Array

SAMPLES = 600
COUNTED = "counted"
"""A cut through integers, where no exit can sit."""


def _network() -> bytes:
    """Whether the product of two numbers is positive: |a + b| > |a - b|.

    `early` is linear in the inputs, so a linear exit there knows nothing; `middle` knows |a + b| and says much where that
    is large; `late` knows both magnitudes and so the answer.
    """
    weights = {
        "one": np.eye(2),
        "to_middle": np.array([[1, -1, 1], [1, -1, -1]]),
        "lift": np.array([0, 0, 10]),
        "to_late": np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1]]),
        "lower": np.array([0, 0, -10, 10]),
        "to_logits": 30 * np.array([[1, -1], [1, -1], [-1, 1], [-1, 1]]),
        "grid": np.array(1000),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["early"]),
        helper.make_node("Gemm", ["early", "to_middle", "lift"], ["m"]),
        helper.make_node("Relu", ["m"], ["middle"]),
        helper.make_node("Gemm", ["middle", "to_late", "lower"], ["l"]),
        helper.make_node("Relu", ["l"], ["late"]),
        helper.make_node("Mul", ["late", "grid"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], [COUNTED], to=TensorProto.INT32),
        helper.make_node("Cast", [COUNTED], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["back", "grid"], ["magnitudes"]),
        helper.make_node("MatMul", ["magnitudes", "to_logits"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _batches(samples: int = SAMPLES, size: int = 64) -> Iterator[dict[str, Array]]:
    pairs = np.random.default_rng(0).uniform(-1, 1, (samples, 2)).astype(np.float32)
    for start in range(0, samples, size):
        yield {"x": pairs[start : start + size]}


def _cut(name: str, position: float, size: int, **changes: Any) -> CutProfile:
    values: dict[str, Any] = {
        "tensors": (name,),
        "position": position,
        "head_ms": 1.0,
        "head_p90_ms": 1.0,
        "tail_ms": 1.0,
        "tail_p90_ms": 1.0,
        "measured": True,
        "head_bytes": 100,
        "raw_bytes": 4 * size,
        "wire_bytes": {QUANTISED_CODEC: size},
        "encode_ms": {},
        "decode_ms": {},
    }
    return CutProfile(**values | changes)


def _profile(*cuts: CutProfile) -> Profile:
    return Profile(
        whole_ms=2.0,
        whole_p90_ms=2.0,
        whole_bytes=200,
        cuts=cuts,
        key=ProfileKey(node="n", backend="CPUExecutionProvider", threads=1),
        repeats=1,
        samples=1,
        calibration="real",
        host="test",
    )


THREE = _profile(_cut("early", 0.1, 400), _cut("middle", 0.4, 300), _cut("late", 0.7, 200))


def _tried(profile: Profile = THREE, **changes: Any) -> Profile:
    arguments: dict[str, Any] = {
        "batches": _batches(),
        "class_output": "logits",
        "samples": SAMPLES,
        "max_disagreement": 0.05,
        "delta": 0.05,
        "budget_s": 60.0,
    }
    return with_escalation(profile, _network(), **arguments | changes)


def _shares(profile: Profile) -> dict[str, float | None]:
    return {cut.tensors[0]: cut.escalation for cut in profile.cuts}


@pytest.fixture(scope="module")
def tried() -> Profile:
    return _tried()


def test_the_deeper_the_cut_the_fewer_samples_are_hard(tried: Profile) -> None:
    shares = _shares(tried)
    assert shares["early"] == 1.0
    assert shares["middle"] is not None
    assert shares["late"] is not None
    assert shares["late"] < 0.2 < shares["middle"] < 0.95


def test_nothing_else_in_the_profile_changes(tried: Profile) -> None:
    plain = tuple(cut.model_copy(update={"escalation": None}) for cut in tried.cuts)
    assert tried.model_copy(update={"cuts": plain}) == THREE


def test_a_tighter_promise_leaves_more_to_the_tail(tried: Profile) -> None:
    tight, loose = _shares(_tried(max_disagreement=0.02))["middle"], _shares(tried)["middle"]
    assert tight is not None
    assert loose is not None
    assert tight > loose


def test_cuts_without_a_trial_have_no_share() -> None:
    profile = _profile(
        _cut("early", 0.1, 400),
        _cut("m", 0.2, 500),  # larger than an earlier one
        _cut("late", 0.7, 200),
        _cut(COUNTED, 0.8, 100),  # integers
        _cut("elsewhere", 0.9, 50),  # not of this model
    )
    shares = _shares(_tried(profile))
    assert {name for name, share in shares.items() if share is None} == {"m", COUNTED, "elsewhere"}


@pytest.mark.parametrize("samples", [0, 1, 40])
def test_too_few_samples_leave_the_profile_unchanged(samples: int) -> None:
    assert _tried(batches=_batches(samples), samples=samples) == THREE


def test_a_model_that_always_says_the_same_leaves_the_profile_unchanged() -> None:
    same = ({"x": np.full((64, 2), 0.5, dtype=np.float32)} for _ in range(5))
    assert _tried(batches=same, samples=320) == THREE


def test_with_enough_samples_for_a_fit_but_not_for_the_promise_everything_is_hard() -> None:
    shares = _shares(_tried(batches=_batches(100), samples=100, max_disagreement=0.01))
    assert shares == {"early": 1.0, "middle": 1.0, "late": 1.0}


@pytest.mark.parametrize(
    ("budget_s", "tried_cuts"),
    [(0.5, set()), (1.5, {"late"}), (2.5, {"late", "middle"}), (9.0, {"late", "middle", "early"})],
)
def test_no_trial_begins_after_the_budget_and_the_deepest_come_first(budget_s: float, tried_cuts: set[str]) -> None:
    second = itertools.count()
    shares = _shares(_tried(budget_s=budget_s, clock=lambda: float(next(second))))
    assert {name for name, share in shares.items() if share is not None} == tried_cuts


def test_answers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(MeshError) as caught:
        _tried(batches=({"x": np.full((64, 2), math.nan, dtype=np.float32)} for _ in range(5)), samples=320)
    assert caught.value.reason is Reason.TENSOR_NOT_FINITE


def test_shares_become_the_cascades_of_a_plan(tried: Profile) -> None:
    mixed = tried.model_copy(update={"cuts": (*tried.cuts, _cut("logits", 0.95, 150))})
    plan = make_plan(mixed, Link(uplink_mbps=1, rtt_ms=10), Workload(), Constraints())
    cascades = {option.cut[0]: option for option in plan.options if option.kind is Kind.CASCADE}
    assert cascades.keys() == {"early", "middle", "late"}
    for cut in tried.cuts:
        assert cascades[cut.tensors[0]].uplink_bytes == (cut.escalation or 0) * cut.wire_bytes[QUANTISED_CODEC]
    late = cascades["late"]
    assert late.stages.rtt_ms == pytest.approx(10 * (_shares(tried)["late"] or 0))


def test_a_share_the_user_states_replaces_the_measured_ones(tried: Profile) -> None:
    plan = make_plan(tried, Link(1, 10), Workload(escalation=0.5), Constraints())
    sent = {option.cut[0]: option.uplink_bytes for option in plan.options if option.kind is Kind.CASCADE}
    assert sent == {"early": 200, "middle": 150, "late": 100}


def test_only_cuts_that_send_less_than_every_earlier_one_are_worth_an_exit() -> None:
    sizes = [900, 950, 700, 700, 800, 300, 400, 299]
    cuts = [_cut(f"t{index}", index / 10, size) for index, size in enumerate(sizes)]
    front = [cut.tensors[0] for cut in worth_an_exit(cuts)]
    assert front == ["t0", "t2", "t5", "t7"]
    assert [cut.tensors[0] for cut in worth_an_exit(cuts[::-1])] == front


def test_without_a_rounded_size_the_raw_one_counts() -> None:
    cuts = [_cut("a", 0.1, 100), _cut("b", 0.2, 90, wire_bytes={"float32+zstd": 1}), _cut("c", 0.3, 99)]
    assert [cut.tensors[0] for cut in worth_an_exit(cuts)] == ["a", "c"]


@pytest.mark.parametrize("count", [MAX_TRIALS, MAX_TRIALS + 1, 30])
def test_trials_are_spread_from_the_first_cut_to_the_last(count: int) -> None:
    cuts = [_cut(f"t{index}", index / count, 1000 - index) for index in range(count)]
    chosen = worth_an_exit(cuts)
    positions = [cuts.index(cut) for cut in chosen]
    assert len(set(positions)) == MAX_TRIALS
    assert (positions[0], positions[-1]) == (0, count - 1)
    gaps = np.diff(positions)
    assert gaps.max() - gaps.min() <= 1
