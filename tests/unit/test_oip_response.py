"""Answers of the Open Inference Protocol: raw, in the order asked for, as classes; what models are and what requests took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.api.oip.v2 import model_config_pb2 as config_pb
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import Manifest, SegmentInfo, TensorInfo
from splitmesh.model.preprocess import Preprocess
from splitmesh.oip.backend import Batch, Served, Spent
from splitmesh.oip.describe import model_config, model_metadata, takes_batches
from splitmesh.oip.request import WantedOutput
from splitmesh.oip.response import bytes_tensor, check_wanted, response_to_message
from splitmesh.oip.statistics import MAX_RECENT_BATCHES, MAX_VERSIONS, Statistics
from splitmesh.tensor.spec import Array
from tests.support.oip import arrays, said

OUTPUTS: Mapping[str, Array] = {
    "scores": np.array([[0.25, 2.5, -1.0], [3.0, 3.0, np.nan]], np.float32),
    "boxes": np.arange(8, dtype=np.int64).reshape(2, 4),
}


def answer(*wanted: WantedOutput, labels: Mapping[str, Sequence[str]] | None = None) -> pb.ModelInferResponse:
    message, raw = response_to_message(
        model="m",
        version="3",
        request_id="id-1",
        outputs=OUTPUTS,
        wanted=wanted,
        labels=labels or {},
        parameters={"answered_by": "EDGE_EXIT", "sure": True, "bytes": 7, "ms": 0.5},
    )
    message.raw_output_contents.extend(map(bytes, raw))
    return message


def test_an_answer_holds_every_output_raw_in_the_models_order() -> None:
    response = answer()
    assert [one.name for one in response.outputs] == ["scores", "boxes"]
    assert [one.datatype for one in response.outputs] == ["FP32", "INT64"]
    assert all(not one.HasField("contents") for one in response.outputs)
    for name, array in arrays(response).items():
        assert np.array_equal(array, OUTPUTS[name], equal_nan=True)
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "id-1")
    assert said(response) == {"answered_by": "EDGE_EXIT", "sure": True, "bytes": 7, "ms": 0.5}


def test_outputs_come_in_the_order_in_which_they_were_asked_for() -> None:
    response = answer(WantedOutput("boxes"), WantedOutput("scores"))
    assert list(arrays(response)) == ["boxes", "scores"]
    assert list(arrays(answer(WantedOutput("boxes")))) == ["boxes"]


def test_an_output_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(MeshError, match="no output 'x'; it has scores, boxes") as caught:
        check_wanted([WantedOutput("scores"), WantedOutput("x")], list(OUTPUTS))
    assert caught.value.reason is Reason.FIELD_INVALID


def test_classes_are_the_largest_scores_with_their_labels() -> None:
    response = answer(WantedOutput("scores", 2), labels={"scores": ("cat", "dog", "cow")})
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 2])
    texts = [b"2.500000:1:dog", b"0.250000:0:cat", b"3.000000:0:cat", b"3.000000:1:dog"]
    assert response.raw_output_contents == [bytes_tensor(texts)]


def test_classes_without_labels_and_more_than_there_are() -> None:
    response = answer(WantedOutput("scores", 9))
    assert list(response.outputs[0].shape) == [2, 3]
    assert response.raw_output_contents[0].startswith(bytes_tensor([b"2.500000:1", b"0.250000:0", b"-1.000000:2"]))


def served(
    version: int = 3, *, batches: bool = True, picture: bool = True, max_batch: int = 8, model: str = "m"
) -> Served:
    first = -1 if batches else 1
    manifest = Manifest(
        task="classification",
        labels=("cat", "dog"),
        preprocess=Preprocess(width=4, height=4) if picture else None,
        whole=SegmentInfo(
            artifact="model.onnx",
            inputs=(TensorInfo(name="image", dtype="float32", shape=(first, 3, 4, 4)),),
            outputs=(
                TensorInfo(name="logits", dtype="float32", shape=(first, 2)),
                TensorInfo(name="where", dtype="int64", shape=(first, -1)),
            ),
        ),
    )
    return Served(model, version, manifest, max_batch if batches else 0, "CPU", 5, 2000, 10**6, 10, {"node": "n"})


def test_metadata_names_tensors_with_their_batch() -> None:
    message = model_metadata(served())
    assert (message.name, list(message.versions), message.platform) == ("m", ["3"], "onnx")
    assert [(one.name, one.datatype, list(one.shape)) for one in (*message.inputs, *message.outputs)] == [
        ("image", "FP32", [-1, 3, 4, 4]),
        ("logits", "FP32", [-1, 2]),
        ("where", "INT64", [-1, -1]),
    ]


def test_a_configuration_leaves_the_batch_out_of_dimensions_where_there_is_one() -> None:
    config = model_config(served())
    assert config.max_batch_size == 8
    assert [list(one.dims) for one in (*config.input, *config.output)] == [[3, 4, 4], [2], [-1]]
    assert [one.label_filename for one in config.output] == ["labels", ""]
    assert config.input[0].data_type == config_pb.TYPE_FP32
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert not config.model_transaction_policy.decoupled
    fixed = model_config(served(batches=False))
    assert fixed.max_batch_size == 0
    assert list(fixed.input[0].dims) == [1, 3, 4, 4]


def test_a_configuration_says_how_pictures_are_sent_where_they_are_taken() -> None:
    assert Preprocess.model_validate_json(model_config(served()).parameters["preprocess"].string_value).width == 4
    assert set(model_config(served(picture=False)).parameters) == {"node"}


def test_a_model_takes_batches_when_every_tensor_has_an_open_first_dimension() -> None:
    assert takes_batches(served().manifest)
    assert not takes_batches(served(batches=False).manifest)


def counted(statistics: Statistics, one: Served, *batches: Batch, samples: int = 1) -> None:
    statistics.answered(one, samples=samples, total_ns=100, spent=Spent(10, 20, 30), output_ns=5, batches=batches)


def test_counts_of_requests_samples_and_computations() -> None:
    statistics, one = Statistics(), served()
    counted(statistics, one, Batch(1, 2, 40), Batch(1, 2, 40), samples=2)
    counted(statistics, one, Batch(2, 2, 40))
    counted(statistics, one, Batch(2, 2, 40))
    counted(statistics, one, Batch(3, 1, 8))
    statistics.refused(one, 7)
    (found,) = statistics.messages()
    stats = found.inference_stats
    assert (found.inference_count, found.execution_count) == (5, 3)
    assert found.last_inference > 1_700_000_000_000
    assert [(one.count, one.ns) for one in (stats.success, stats.fail, stats.queue)] == [(4, 400), (1, 7), (4, 40)]
    assert [one.ns for one in (stats.compute_input, stats.compute_infer, stats.compute_output)] == [80, 120, 20]
    assert [(one.batch_size, one.compute_infer.count, one.compute_infer.ns) for one in found.batch_stats] == [
        (1, 1, 8),
        (2, 2, 80),
    ]


def test_counts_are_told_by_model_and_version() -> None:
    statistics = Statistics()
    for model, version in (("b", 1), ("a", 2), ("a", 1)):
        counted(statistics, served(version, model=model))
    named = [(one.name, one.version) for one in statistics.messages()]
    assert named == [("a", "1"), ("a", "2"), ("b", "1")]
    assert [one.version for one in statistics.messages(model="a", version="2")] == ["2"]
    assert [one.name for one in statistics.messages(model="c")] == []
    (fresh,) = statistics.messages([served(9, model="c")], model="c")
    assert (fresh.version, fresh.inference_count, fresh.last_inference) == ("9", 0, 0)


def test_versions_and_computations_remembered_are_bounded() -> None:
    statistics = Statistics()
    for version in range(1, MAX_VERSIONS + 10):
        counted(statistics, served(version))
    versions = {int(one.version) for one in statistics.messages()}
    assert len(versions) == MAX_VERSIONS
    assert min(versions) == 10
    for number in range(MAX_RECENT_BATCHES + 100):
        counted(statistics, served(500), Batch(number, 1, 1))
    assert len(statistics._recent) == MAX_RECENT_BATCHES


@pytest.mark.parametrize(("shape", "expected"), [((0, 5), (0, 2)), ((0,), (0, 1)), ((), (1, 1))])
def test_classes_of_an_output_without_rows_or_dimensions(shape: tuple[int, ...], expected: tuple[int, int]) -> None:
    message, _ = response_to_message(
        model="m", version="1", request_id="", outputs={"y": np.zeros(shape, np.float32)},
        wanted=[WantedOutput("y", 2)], labels={}, parameters={},
    )  # fmt: skip
    assert tuple(message.outputs[0].shape) == expected
