"""Profiles of a small network: what is measured, what is interpolated, and what the budget changes."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import list_cuts
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.plan import Constraints, Link, Workload, make_plan
from splitmesh.model.profile import MAX_SAMPLES, MIN_REPEATS, profile_cuts
from splitmesh.model.profile_data import FLOAT_CODEC, QUANTISED_CODEC, Profile
from splitmesh.model.split import split_model
from splitmesh.tensor import codecs

STAGES = 6


def _chain(batch: str | int = "n", *, stages: int = STAGES, side: int = 16) -> bytes:
    """Convolution and ReLU, several times, with a pooled classifier behind."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for stage in range(stages):
        inputs = 1 if stage == 0 else 4
        kernel = rng.standard_normal((4, inputs, 3, 3)).astype(np.float32) / 3
        weights.append(numpy_helper.from_array(kernel, f"w{stage}"))
        nodes.append(helper.make_node("Conv", [last, f"w{stage}"], [f"c{stage}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{stage}"], [f"r{stage}"]))
        last = f"r{stage}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], axis=1))
    nodes.append(helper.make_node("Softmax", ["flat"], ["y"], axis=1))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        weights,
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def _ticking(step_s: float = 0.001) -> Callable[[], float]:
    """A clock that moves on by the same step at every look."""
    counter = itertools.count()
    return lambda: next(counter) * step_s


def _profile(**changes: Any) -> Profile:
    return profile_cuts(
        changes.pop("whole", _chain()), **{"repeats": 3, "warmup": 0, "max_points": 4, "clock": _ticking()} | changes
    )


def test_every_cut_has_times_and_wire_sizes() -> None:
    profile = _profile()
    cuts = list_cuts(Graph(load_model(_chain())))
    assert [cut.tensors for cut in profile.cuts] == [cut.tensors for cut in cuts]
    assert [cut.raw_bytes for cut in profile.cuts] == [cut.size_bytes for cut in cuts]
    for cut in profile.cuts:
        assert cut.wire_bytes.keys() == cut.encode_ms.keys() == cut.decode_ms.keys() == {FLOAT_CODEC, QUANTISED_CODEC}
        assert cut.wire_bytes[QUANTISED_CODEC] <= cut.raw_bytes // 4 + 32


def test_the_first_and_the_last_cut_are_always_measured() -> None:
    for points in (2, 3, 5):
        profile = _profile(max_points=points)
        assert sum(cut.measured for cut in profile.cuts) == points
        ends = [cut.position for cut in profile.cuts if cut.measured]
        assert (min(ends), max(ends)) == (profile.cuts[0].position, profile.cuts[-1].position)


def test_measured_cuts_are_spread_over_the_work_of_the_model() -> None:
    positions = sorted(cut.position for cut in _profile(max_points=5).cuts if cut.measured)
    assert max(b - a for a, b in itertools.pairwise(positions)) < 0.45


def test_of_cuts_after_the_same_work_the_smaller_on_the_wire_is_measured() -> None:
    inner = [cut.tensors[0] for cut in _profile(max_points=6).cuts[1:-1] if cut.measured]
    assert len(inner) == 4
    assert all(name.startswith("r") for name in inner)


def test_a_spent_budget_still_measures_the_whole_and_both_ends() -> None:
    profile = _profile(budget_s=0.0, repeats=50, max_points=6)
    assert [cut.measured for cut in profile.cuts].count(True) == 2
    assert profile.whole_ms > 0


def test_a_spent_budget_stops_repeating() -> None:
    def looks(budget_s: float) -> int:
        counter = itertools.count()
        _profile(budget_s=budget_s, repeats=50, max_points=2, clock=lambda: next(counter) * 0.001)
        return next(counter)

    fewest, most = looks(0.0), looks(1000.0)
    sessions = 1 + 2 * 2
    assert most - fewest == 2 * sessions * (50 - MIN_REPEATS)


def test_a_generous_budget_measures_every_point_asked_for() -> None:
    assert sum(cut.measured for cut in _profile(budget_s=1000, max_points=6).cuts) == 6


def test_times_are_medians_of_the_clock() -> None:
    profile = _profile()
    assert profile.whole_ms == pytest.approx(1.0)
    assert profile.whole_p90_ms == pytest.approx(1.0)
    assert all(cut.head_ms == pytest.approx(1.0) for cut in profile.cuts if cut.measured)


def test_interpolated_heads_grow_and_interpolated_tails_fall() -> None:
    random = np.random.default_rng(0)
    now = itertools.accumulate(random.exponential(0.01) for _ in itertools.count())
    cuts = [cut for cut in _profile(max_points=6, clock=lambda: next(now)).cuts if not cut.measured]
    assert len(cuts) > 4
    for before, after in itertools.pairwise(cuts):
        assert before.position <= after.position
        assert before.head_ms <= after.head_ms
        assert before.tail_ms >= after.tail_ms
        assert before.head_p90_ms <= after.head_p90_ms
        assert before.tail_p90_ms >= after.tail_p90_ms


def test_wire_sizes_are_those_of_the_features_and_not_interpolated() -> None:
    feed = {"x": np.zeros((1, 1, 16, 16), np.float32)}
    noise = {cut.tensors: cut.wire_bytes for cut in _profile().cuts}
    blank = {cut.tensors: cut.wire_bytes for cut in _profile(feeds=[feed]).cuts}
    assert blank["r2",][FLOAT_CODEC] == len(codecs.encode("zstd", bytes(4 * 16 * 16 * 4)))
    assert noise["r2",][FLOAT_CODEC] > 20 * blank["r2",][FLOAT_CODEC]
    # half the values behind a ReLU are zero
    assert noise["r2",][FLOAT_CODEC] < noise["c2",][FLOAT_CODEC]


def test_the_profile_says_whether_its_inputs_were_real() -> None:
    feed = {"x": np.ones((3, 1, 16, 16), np.float32)}
    assert (_profile().calibration, _profile().samples) == ("random", 1)
    real = _profile(feeds=[feed, feed])
    assert (real.calibration, real.samples) == ("real", 6)
    assert _profile(feeds=[feed] * 10).samples == MAX_SAMPLES
    rows = [{"x": feed["x"][:1]}] * 3
    assert [cut.wire_bytes for cut in _profile(feeds=[feed]).cuts] == [
        cut.wire_bytes for cut in _profile(feeds=rows).cuts
    ]


def test_a_fixed_batch_is_run_as_it_is() -> None:
    feed = {"x": np.ones((2, 1, 16, 16), np.float32)}
    profile = _profile(whole=_chain(2), feeds=[feed])
    assert profile.samples == 1
    assert next(cut for cut in profile.cuts if cut.tensors == ("r0",)).raw_bytes == 2 * 4 * 16 * 16 * 4
    assert _profile(whole=_chain(2)).samples == 1


def test_head_sizes_are_those_of_real_heads() -> None:
    graph = Graph(load_model(_chain()))
    sizes = {cut.tensors: cut.head_bytes for cut in _profile().cuts}
    for cut in list_cuts(graph):
        real = split_model(graph, cut).head.ByteSize()
        assert sizes[cut.tensors] == pytest.approx(real, abs=1500)
    assert list(sizes.values()) == sorted(sizes.values())


def test_only_the_cuts_asked_for_are_profiled() -> None:
    cuts = list_cuts(Graph(load_model(_chain())))[2:4]
    assert [cut.tensors for cut in _profile(cuts=cuts).cuts] == [cut.tensors for cut in cuts]
    assert all(cut.measured for cut in _profile(cuts=cuts).cuts)


def test_a_model_that_cannot_be_cut_has_a_profile_without_cuts() -> None:
    profile = _profile(cuts=[])
    assert profile.cuts == ()
    assert profile.whole_ms > 0


def test_a_cut_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_first(graph: Graph, cut: Any) -> Any:
        if cut.index == 1:
            raise MeshError(Reason.MODEL_SHAPE_UNKNOWN, "refused")
        return split_model(graph, cut)

    monkeypatch.setattr("splitmesh.model.profile.split_model", refuse_first)
    assert _profile().cuts[0].tensors != ("c0",)


def test_progress_counts_up_to_the_end() -> None:
    seen: list[tuple[int, int, str]] = []
    _profile(on_progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == [0, 1, 2, 3, 4, 5, 6]
    assert {total for _, total, _ in seen} == {6}
    assert (seen[0][2], seen[-1][2]) == ("timing the whole model", "done")


@pytest.mark.parametrize(
    "change",
    [{"budget_s": -1}, {"budget_s": float("nan")}, {"repeats": 0}, {"warmup": -1}, {"threads": 0}, {"max_points": 1}],
)
def test_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as caught:
        _profile(**change)
    assert caught.value.fields[0][0] == next(iter(change))


def test_no_real_inputs_are_refused() -> None:
    for feeds in ([], [{"x": np.ones((0, 1, 16, 16), np.float32)}]):
        with pytest.raises(MeshError) as caught:
            _profile(feeds=feeds)
        assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_inputs_that_do_not_fit_and_bytes_that_are_no_model_are_refused() -> None:
    for arguments, reason in (
        ({"feeds": [{"x": np.ones((1, 3, 16, 16), np.float32)}]}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"whole": b"no model"}, Reason.MODEL_CORRUPT),
    ):
        with pytest.raises(MeshError) as caught:
            _profile(**arguments)
        assert caught.value.reason is reason


def test_a_profile_survives_json() -> None:
    profile = _profile()
    assert Profile.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"whole_ms": -1}, "whole_ms"),
        ({"whole_ms": "NaN"}, "whole_ms"),
        ({"calibration": "guessed"}, "calibration"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_a_profile_that_is_not_valid_names_the_field(change: dict[str, Any], field: str) -> None:
    text = json.dumps(json.loads(_profile(cuts=[]).to_json()) | change)
    with pytest.raises(MeshError) as caught:
        Profile.from_json(text)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field


def test_a_wire_size_of_zero_is_no_profile() -> None:
    content = json.loads(_profile().to_json())
    content["cuts"][0]["wire_bytes"][FLOAT_CODEC] = 0
    with pytest.raises(MeshError) as caught:
        Profile.from_json(json.dumps(content))
    assert caught.value.fields[0][0] == f"cuts.0.wire_bytes.{FLOAT_CODEC}"


def test_text_that_is_no_profile_is_refused() -> None:
    for text in ("", "[]", "{"):
        with pytest.raises(MeshError) as caught:
            Profile.from_json(text)
        assert caught.value.reason is Reason.FIELD_INVALID


def test_a_measured_profile_can_be_planned() -> None:
    plan = make_plan(_profile(), Link(10, 5), Workload({"jpeg": 900}, escalation=0.1), Constraints())
    assert plan.best.feasible
    assert len(plan.options) == 2 + 4 * len(_profile().cuts)
