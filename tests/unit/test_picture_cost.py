"""What sending pictures costs, and whether loss, of a codec or of rounding, changes a classifier's answers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitmesh.model.agreement import rounded_agreement
from splitmesh.model.calibration import Calibration, pack_calibration, unpack_calibration
from splitmesh.model.cuts import resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import Manifest, SegmentInfo, TensorInfo
from splitmesh.model.picture_cost import picture_costs
from splitmesh.model.split import split_model
from tests.integration.small_model import CUT, SIDE, small_manifest, small_model, small_pictures

WHOLE = small_model()


def _samples(count: int = 30) -> Calibration:
    return unpack_calibration(pack_calibration(small_pictures(count)), small_manifest())


def test_every_codec_is_measured_on_the_pictures() -> None:
    costs = picture_costs(small_manifest(), _samples(), WHOLE)
    assert set(costs) == {"jpeg q75", "jpeg q90", "webp q80", "png"}
    assert costs["jpeg q75"].wire_bytes < costs["jpeg q90"].wire_bytes
    assert all(cost.encode_ms > 0 and cost.decode_ms > 0 for cost in costs.values())
    assert costs["png"].agreement == 1.0
    assert all(cost.agreement is not None and cost.agreement > 0.5 for cost in costs.values())


def test_agreement_falls_where_a_codec_destroys_what_the_model_looks_at() -> None:
    """Noise one grey level deep decides here, and no lossy codec keeps it."""
    rng = np.random.default_rng(0)
    pixels = (128 + rng.integers(0, 2, (40, SIDE, SIDE, 1))).astype(np.uint8)
    samples = unpack_calibration(pack_calibration(pixels), small_manifest())
    costs = picture_costs(small_manifest(), samples, _parity_model())
    assert costs["png"].agreement == 1.0
    assert costs["jpeg q75"].agreement is not None
    assert costs["jpeg q75"].agreement < 1.0


def _parity_model() -> bytes:
    """Class by the difference of two neighbouring pixels."""
    weights = np.zeros((SIDE * SIDE, 3), dtype=np.float32)
    weights[0], weights[1] = (100, -100, 0), (-100, 100, 0)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "parity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_without_pictures_the_raw_input_counts() -> None:
    assert {c: p.wire_bytes for c, p in picture_costs(small_manifest(), None, WHOLE).items()} == {"raw": SIDE * SIDE}
    whole = SegmentInfo(
        artifact="model.onnx",
        inputs=(TensorInfo(name="x", dtype="float32", shape=(-1, 4)),),
        outputs=(TensorInfo(name="y", dtype="float32", shape=(-1, 4)),),
    )
    assert picture_costs(Manifest(task="raw", whole=whole), None, WHOLE)["raw"].wire_bytes == 16


def test_a_model_without_classes_is_not_run() -> None:
    about = small_manifest().model_copy(update={"task": "raw", "labels": ()})
    costs = picture_costs(about, _samples(), b"never opened")
    assert {cost.agreement for cost in costs.values()} == {None}


def test_a_spent_budget_compares_fewer_pictures() -> None:
    steps = iter(range(10_000))
    costs = picture_costs(small_manifest(), _samples(), WHOLE, budget_s=0.0, clock=lambda: float(next(steps)))
    assert costs["jpeg q90"].agreement is not None
    assert (costs["jpeg q90"].agreement * 8).is_integer()


@pytest.mark.parametrize("cut", [CUT, "flat"])
def test_rounding_a_cut_is_compared_with_the_whole_model(cut: str) -> None:
    graph = Graph(load_model(WHOLE))
    found = resolve_cut(graph, [cut])
    tail = split_model(graph, found).tail.SerializeToString()
    agreement = rounded_agreement(graph, found, tail, _samples(60).batches(16), "logits")
    assert agreement is not None
    assert 0.9 < agreement <= 1


def test_rounding_that_destroys_the_answer_is_seen() -> None:
    """A tail that only looks at differences far below a level of 8 bits."""
    nodes = [
        helper.make_node("Identity", ["x"], ["mid"]),
        helper.make_node("MatMul", ["mid", "w"], ["logits"]),
    ]
    weights = np.array([[0, 0], [1, -1]], dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        "fine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    loaded = Graph(load_model(whole))
    cut = resolve_cut(loaded, ["mid"])
    tail = split_model(loaded, cut).tail.SerializeToString()
    rng = np.random.default_rng(0)
    fine = rng.uniform(-1e-3, 1e-3, 200).astype(np.float32)
    coarse = rng.uniform(-1, 1, 200).astype(np.float32)
    kept = rounded_agreement(loaded, cut, tail, [{"x": np.stack([coarse, fine], axis=1)}], "logits")
    fine[0] = 1.0  # one large value widens the channel's range, and the others' signs are lost
    lost = rounded_agreement(loaded, cut, tail, [{"x": np.stack([coarse, fine], axis=1)}], "logits")
    assert kept is not None
    assert lost is not None
    assert lost < 0.8 < kept


def test_without_samples_or_finite_features_there_is_no_agreement() -> None:
    graph = Graph(load_model(WHOLE))
    cut = resolve_cut(graph, [CUT])
    tail = split_model(graph, cut).tail.SerializeToString()
    assert rounded_agreement(graph, cut, tail, [], "logits") is None
    nan = {"x": np.full((2, 1, SIDE, SIDE), np.nan, dtype=np.float32)}
    assert rounded_agreement(graph, cut, tail, [nan], "logits") is None
