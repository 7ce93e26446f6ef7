"""Requests of the Open Inference Protocol as values: raw and typed inputs, BYTES, parameters, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason
from splitmesh.oip.datatypes import DATATYPE_OF, DTYPE_OF
from splitmesh.oip.parameters import MAX_DEADLINE_MS, options_from, set_parameter
from splitmesh.oip.request import BytesInput, Call, TensorInput, call_from_message
from splitmesh.tensor.spec import DTYPES, TensorLimits, from_bytes
from tests.support.oip import request

LIMITS = TensorLimits(max_size_bytes=1 << 20)
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def call_of(message: pb.ModelInferRequest, limits: TensorLimits = LIMITS) -> Call:
    return call_from_message(message, tuple(message.raw_input_contents), limits)


def refused(message: pb.ModelInferRequest, limits: TensorLimits = LIMITS) -> MeshError:
    with pytest.raises(MeshError) as caught:
        call_of(message, limits)
    return caught.value


def array_of(tensor: TensorInput | BytesInput) -> np.ndarray:
    assert isinstance(tensor, TensorInput)
    return from_bytes(tensor.spec, tensor.data)


def test_every_element_type_that_may_cross_has_a_name_of_the_protocol() -> None:
    assert set(DTYPE_OF.values()) == set(DTYPES)
    assert {DATATYPE_OF[dtype]: dtype for dtype in DTYPES} == DTYPE_OF


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_raw_input_is_the_array_it_was(dtype: str) -> None:
    sent = np.array([[0, 1], [1, 0], [1, 1]], DTYPES[dtype])
    call = call_of(request("m", {"x": sent}))
    (tensor,) = call.inputs
    assert call.samples == 3
    assert array_of(tensor).dtype == sent.dtype
    assert np.array_equal(array_of(tensor), sent)


def test_one_sample_of_a_batch_is_a_view_of_its_bytes() -> None:
    data = X.tobytes()
    message = request("m", {"x": X})
    (tensor,) = call_from_message(message, (memoryview(data),), LIMITS).inputs
    assert isinstance(tensor, TensorInput)
    row = tensor.row(1)
    assert row.spec.shape == (1, 3)
    assert array_of(row).tolist() == [[3, 4, 5]]
    assert np.shares_memory(np.frombuffer(row.data, np.uint8), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT32", "int_contents", [-5, 5]),
        ("INT64", "int64_contents", [-(2**60), 2**60]),
        ("UINT8", "uint_contents", [0, 255]),
        ("FP32", "fp32_contents", [0.5, -1.5]),
        ("FP64", "fp64_contents", [1e300, 0.1]),
    ],
)
def test_typed_contents_say_the_same_as_raw_ones(datatype: str, field: str, values: list[float]) -> None:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    (found,) = call_of(message).inputs
    assert array_of(found).tolist() == [values]


@pytest.mark.parametrize(
    ("datatype", "field", "values", "reason"),
    [
        ("INT8", "int_contents", [1, 128], Reason.TENSOR_DTYPE_MISMATCH),
        ("UINT8", "uint_contents", [256, 0], Reason.TENSOR_DTYPE_MISMATCH),
        ("FP16", "fp32_contents", [1, 2], Reason.TENSOR_DTYPE_MISMATCH),
        ("FP32", "fp32_contents", [1], Reason.TENSOR_SIZE_MISMATCH),
        ("FP32", "fp64_contents", [1, 2], Reason.TENSOR_SIZE_MISMATCH),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    datatype: str, field: str, values: list[float], reason: Reason
) -> None:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(tensor.contents, field).extend(values)
    assert refused(message).reason is reason


def test_raw_and_typed_contents_are_never_mixed() -> None:
    message = request("m", {"x": X})
    message.inputs[0].contents.fp32_contents.append(1)
    assert refused(message).fields[0][0] == "contents"


def _damaged(what: str) -> pb.ModelInferRequest:
    message = request("m", {"x": X})
    tensor = message.inputs[0]
    match what:
        case "short":
            message.raw_input_contents[0] = X.tobytes()[:-1]
        case "long":
            message.raw_input_contents[0] = X.tobytes() + b"\0"
        case "type":
            tensor.datatype = "BF16"
        case "no type":
            tensor.datatype = ""
        case "zero":
            tensor.shape[:] = [0, 3]
        case "negative":
            tensor.shape[:] = [-2, -3]
        case "no dimension":
            tensor.shape[:] = []
            message.raw_input_contents[0] = b"\0" * 4
        case "huge":
            tensor.shape[:] = [2**40, 3]
        case "many dimensions":
            tensor.shape[:] = [1] * 9
        case "two raw":
            message.raw_input_contents.append(b"")
        case "no input":
            del message.inputs[:]
        case "long id":
            message.id = "x" * 1025
        case "two batches":
            message.MergeFrom(request("m", {"y": X[:1]}))
        case "region":
            tensor.parameters["shared_memory_region"].string_param = "a"
        case "output region":
            message.outputs.add(name="y").parameters["shared_memory_region"].string_param = "a"
        case "output twice":
            message.outputs.add(name="y")
            message.outputs.add(name="y")
    return message


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("short", Reason.TENSOR_SIZE_MISMATCH),
        ("long", Reason.TENSOR_SIZE_MISMATCH),
        ("type", Reason.TENSOR_DTYPE_MISMATCH),
        ("no type", Reason.TENSOR_DTYPE_MISMATCH),
        ("zero", Reason.TENSOR_SHAPE_MISMATCH),
        ("negative", Reason.TENSOR_SHAPE_MISMATCH),
        ("no dimension", Reason.TENSOR_SHAPE_MISMATCH),
        ("huge", Reason.TENSOR_SHAPE_MISMATCH),
        ("many dimensions", Reason.TENSOR_SHAPE_MISMATCH),
        ("two batches", Reason.TENSOR_SHAPE_MISMATCH),
        ("two raw", Reason.FIELD_INVALID),
        ("no input", Reason.FIELD_INVALID),
        ("long id", Reason.FIELD_INVALID),
        ("output twice", Reason.FIELD_INVALID),
        ("region", Reason.UNIMPLEMENTED),
        ("output region", Reason.UNIMPLEMENTED),
    ],
)
def test_a_request_that_does_not_fit_together_is_refused(what: str, reason: Reason) -> None:
    assert refused(_damaged(what)).reason is reason


def test_a_tensor_above_the_limit_is_refused() -> None:
    assert refused(request("m", {"x": X}), TensorLimits(max_size_bytes=23)).reason is Reason.FRAME_TOO_LARGE


def test_elements_of_any_length_stand_after_their_lengths() -> None:
    call = call_of(request("m", {"x": [b"", b"abc", b"\0" * 300]}))
    (found,) = call.inputs
    assert isinstance(found, BytesInput)
    assert [bytes(one) for one in found.elements] == [b"", b"abc", b"\0" * 300]
    assert call.samples == 3


def test_typed_elements_of_any_length_are_taken() -> None:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"abc")
    (found,) = call_of(message).inputs
    assert found == BytesInput("x", (b"abc",))


@pytest.mark.parametrize(
    "raw",
    [b"", b"\3\0\0", b"\3\0\0\0ab", b"\3\0\0\0abcd", b"\1\0\0\0a\1\0\0\0b", b"\xff\xff\xff\xff" + b"a" * 9],
    ids=["none", "half a length", "cut off", "one too many", "two", "a length beyond the end"],
)
def test_elements_whose_lengths_do_not_add_up_are_refused(raw: bytes) -> None:
    message = request("m", {"x": [b"a"]})
    message.raw_input_contents[0] = raw
    assert refused(message).reason is Reason.TENSOR_SIZE_MISMATCH


@pytest.mark.parametrize("shape", [[], [0], [1, 2], [-1]])
def test_bytes_hold_one_element_for_each_sample(shape: list[int]) -> None:
    message = request("m", {"x": [b"a"]})
    message.inputs[0].shape[:] = shape
    assert refused(message).reason is Reason.TENSOR_SHAPE_MISMATCH


def test_elements_above_the_limit_are_refused() -> None:
    message = request("m", {"x": [b"a" * 20, b"b" * 20]})
    assert refused(message, TensorLimits(max_size_bytes=39)).reason is Reason.FRAME_TOO_LARGE


def _parameters(**values: bool | int | float | str) -> dict[str, pb.InferParameter]:
    made = {name: pb.InferParameter() for name in values}
    for name, value in values.items():
        set_parameter(made[name], value)
    return made


@pytest.mark.parametrize(
    ("values", "deadline_ms"),
    [
        ({}, 0),
        ({"timeout": 1}, 1),
        ({"timeout": 1_500_001}, 1501),
        ({"deadline_ms": 40, "timeout": 9_000_000}, 40),
        ({"timeout": "2000"}, 2),
        ({"deadline_ms": 10**12}, MAX_DEADLINE_MS),
    ],
)
def test_a_deadline_is_said_in_milliseconds_or_as_triton_does(values: dict[str, int], deadline_ms: int) -> None:
    assert options_from(_parameters(**values)).deadline_ms == deadline_ms


def test_known_parameters_are_read_and_others_ignored() -> None:
    options = options_from(
        _parameters(camera_id="cam", traceparent="00-1", priority=3, timings=True, sequence_id=7, zoom=1.5)
    )
    assert (options.camera_id, options.traceparent, options.priority, options.timings) == ("cam", "00-1", 3, True)


@pytest.mark.parametrize(
    "values",
    [
        {"deadline_ms": -1},
        {"timeout": 1.5},
        {"timeout": True},
        {"timeout": "soon"},
        {"camera_id": 7},
        {"camera_id": "x" * 257},
        {"timings": 1},
    ],
)
def test_a_known_parameter_of_the_wrong_kind_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(MeshError) as caught:
        options_from(_parameters(**values))
    assert caught.value.fields[0][0] == f"parameters.{next(iter(values))}"


def test_no_request_names_more_than_can_be_looked_at_at_once() -> None:
    many_inputs, many_outputs, many_elements, many_dimensions, many_classes = (
        pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1])])
        for _ in range(5)
    )
    many_inputs.inputs.extend([many_inputs.inputs[0]] * 256)
    many_outputs.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=str(n)) for n in range(257))
    many_elements.inputs[0].datatype = "BYTES"
    many_elements.inputs[0].shape[:] = [1025]
    many_dimensions.inputs[0].shape[:] = [1] * 100_000
    many_classes.outputs.add(name="y").parameters["classification"].int64_param = 10_001
    for message in (many_inputs, many_outputs, many_elements, many_dimensions, many_classes):
        raw = [bytes(4 * 1025) if message is many_elements else bytes(4)] * len(message.inputs)
        with pytest.raises(MeshError, match=r"256|1024|100000 dimensions|10000 classes") as caught:
            call_from_message(message, raw, LIMITS)
        assert len(caught.value.message) < 300
