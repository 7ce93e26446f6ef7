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
from splitmesh.model.points import Pace, Point, Times
from splitmesh.model.profile import next_cut, profile_cuts
from splitmesh.model.profile_data import FLOAT_CODEC, QUANTISED_CODEC, Profile
from splitmesh.model.shares import non_decreasing
from splitmesh.model.split import split_model
from splitmesh.model.survey import MAX_SAMPLES, survey
from splitmesh.runtime.timing import MIN_RUNS
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
    sessions = 1 + 3 * 2
    assert most - fewest == 2 * sessions * (50 - MIN_RUNS)


def test_a_generous_budget_measures_every_point_asked_for() -> None:
    assert sum(cut.measured for cut in _profile(budget_s=1000, max_points=6).cuts) == 6


def test_a_busy_moment_changes_neither_the_whole_nor_a_cut() -> None:
    pace = Pace(Times(25.0, 30.0))
    assert pace.whole == Times(25.0, 30.0)
    pace.add(("a",), Point(Times(4.0, 5.0), Times(6.0, 7.0)), Times(10.0, 11.0))
    pace.add(("b",), Point(Times(12.0, 16.0), Times(8.0, 8.0), 0.9), Times(20.0, 26.0))
    pace.add(("c",), Point(Times(9.0, 9.0), Times(1.0, 1.0)), Times(9.0, 9.0))
    assert pace.whole == Times(10.0, 11.0)
    points = pace.points({("z",): Point(Times(1.0, 1.0), Times(2.0, 2.0))})
    assert points["a",] == Point(Times(4.0, 5.0), Times(6.0, 7.0))
    assert points["b",] == Point(Times(6.0, 8.0), Times(4.0, 4.0), 0.9)
    assert points["z",].tail.median_ms == 2.0
    going_on = Pace(Times(5.0, 5.0), continued=True)
    going_on.add(("b",), Point(Times(12.0, 16.0), Times(8.0, 8.0)), Times(20.0, 26.0))
    assert going_on.whole == Times(5.0, 5.0)
    assert going_on.points({})["b",].head == Times(3.0, 4.0)


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
    assert (seen[0][2], seen[1][2], seen[-1][2]) == ("measuring wire sizes", "timing the whole model", "done")


@pytest.mark.parametrize(
    "change",
    [
        {"budget_s": -1},
        {"budget_s": float("nan")},
        {"repeats": 0},
        {"warmup": -1},
        {"threads": 0},
        {"batch": 0},
        {"max_points": 1},
    ],
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


def _uneven(step_s: float = 0.01) -> Callable[[], float]:
    """A clock whose steps vary at random."""
    random = np.random.default_rng(3)
    now = itertools.accumulate(random.exponential(step_s) for _ in itertools.count())
    return lambda: next(now)


def test_operators_of_a_head_add_up_to_its_time_and_those_of_a_tail_to_its_own() -> None:
    profile = _profile(max_points=6, clock=_uneven(), repeats=9)
    graph = Graph(load_model(_chain()))
    names = [node.name for node in profile.nodes]
    assert names == [node.output[0] for node in graph.nodes]
    heads = non_decreasing([cut.head_ms for cut in profile.cuts if cut.measured])
    tails = non_decreasing([cut.tail_ms for cut in reversed(profile.cuts) if cut.measured])[::-1]
    for cut, head_ms, tail_ms in zip((cut for cut in profile.cuts if cut.measured), heads, tails, strict=True):
        size = names.index(cut.tensors[0]) + 1
        assert sum(node.head_ms for node in profile.nodes[:size]) == pytest.approx(head_ms)
        assert sum(node.tail_ms for node in profile.nodes[size:]) == pytest.approx(tail_ms)


def test_a_cut_that_was_not_timed_takes_what_its_operators_take() -> None:
    profile = _profile(max_points=4, clock=_uneven())
    names = [node.name for node in profile.nodes]
    guessed = [cut for cut in profile.cuts if not cut.measured]
    assert guessed
    for cut in guessed:
        size = names.index(cut.tensors[0]) + 1
        assert cut.head_ms == pytest.approx(sum(node.head_ms for node in profile.nodes[:size]))
        assert cut.tail_ms == pytest.approx(sum(node.tail_ms for node in profile.nodes[size:]))


def test_operators_know_their_sources_weights_and_sizes() -> None:
    nodes = {node.name: node for node in _profile().nodes}
    assert nodes["c0"].sources == (-1,)
    assert nodes["r0"].sources == (0,)
    assert nodes["c1"].weight_bytes > 4 * 4 * 4 * 9
    assert nodes["r1"].weight_bytes == 0
    sizes = {cut.tensors[0]: cut.wire_bytes for cut in _profile().cuts}
    assert nodes["r2"].wire_bytes == sizes["r2"]
    assert nodes["y"].wire_bytes == {}
    assert [nodes[name].operator for name in ("c0", "r0", "y")] == ["Conv", "Relu", "Softmax"]


def test_a_measurement_goes_on_where_an_earlier_one_ended() -> None:
    first = _profile(budget_s=0.0, max_points=6)
    assert not first.complete
    second = _profile(budget_s=1000.0, max_points=6, known=first, clock=_ticking(0.003))
    assert second.complete
    before = {cut.tensors: cut for cut in first.cuts if cut.measured}
    after = {cut.tensors: cut for cut in second.cuts if cut.measured}
    assert len(before) == 2
    assert len(after) == 6
    assert all(after[tensors].head_ms == cut.head_ms for tensors, cut in before.items())
    assert [cut.wire_bytes for cut in second.cuts] == [cut.wire_bytes for cut in first.cuts]


def test_sizes_from_noise_are_measured_again_when_there_are_real_inputs() -> None:
    noise = _profile()
    blank = _profile(known=noise, feeds=[{"x": np.zeros((1, 1, 16, 16), np.float32)}])
    assert blank.calibration == "real"
    assert all(
        a.wire_bytes[FLOAT_CODEC] < b.wire_bytes[FLOAT_CODEC] for a, b in zip(blank.cuts, noise.cuts, strict=True)
    )


def test_times_of_a_batch_are_those_of_one_sample() -> None:
    profile = _profile(batch=4)
    assert profile.whole_ms == pytest.approx(0.25)
    assert all(cut.head_ms == pytest.approx(0.25) for cut in profile.cuts if cut.measured)
    assert profile.key.batch == 4
    with pytest.raises(MeshError) as caught:
        _profile(whole=_chain(2), batch=4)
    assert caught.value.fields[0][0] == "batch"


def test_gaps_where_times_change_most_are_timed_first() -> None:
    graph = Graph(load_model(_chain()))
    found = survey(_chain(), graph)
    cuts = found.cuts
    flat, steep = Times(1.0, 1.0), Times(9.0, 9.0)
    middle = next(cut for cut in cuts if cut.tensors == ("r2",))
    points = {
        cuts[0].tensors: Point(flat, steep),
        middle.tensors: Point(flat, steep),
        cuts[-1].tensors: Point(steep, flat),
    }
    wanted = next_cut(found, points, ())
    assert wanted is not None
    index = {cut.tensors: cut.index for cut in cuts}
    assert index[wanted] > middle.index
    mirrored = points | {middle.tensors: Point(steep, flat)}
    wanted = next_cut(found, mirrored, ())
    assert wanted is not None
    assert index[wanted] < middle.index


def test_every_cut_is_timed_once_and_refused_ones_never() -> None:
    found = survey(_chain(), Graph(load_model(_chain())))
    points: dict[tuple[str, ...], Point] = {}
    refused = {found.cuts[3].tensors}
    while (tensors := next_cut(found, points, refused, most=100)) is not None:
        assert tensors not in points
        points[tensors] = Point(Times(1.0, 1.0), Times(1.0, 1.0))
    assert points.keys() == {cut.tensors for cut in found.cuts} - refused
