"""Large fields beside their messages: what is lifted is what protobuf would have read, and bad bytes are its own business."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.api.tensor.v1 import tensor_pb2
from splitmesh.kernel import wire
from splitmesh.kernel.large_fields import (
    INFER_REQUEST,
    INFER_RESPONSE,
    RUN_REQUEST,
    RUN_RESPONSE,
    STREAM_INFER_REQUEST,
    STREAM_INFER_RESPONSE,
)
from splitmesh.kernel.tensors import tensors_from_messages, with_tensors
from splitmesh.kernel.wire import LargeFields, Lifted
from splitmesh.tensor.spec import ANSWER_LIMITS, Array

LARGE = b"\xab" * wire.LARGE_BYTES
UINT64 = st.integers(0, 2**64 - 1)
SIZED = st.binary(max_size=300)
SPECS = st.builds(
    tensor_pb2.TensorSpec,
    name=st.text(max_size=20),
    data_type=st.integers(0, 9),
    shape=st.lists(st.integers(-1, 2**40), max_size=5),
)
TENSORS = st.builds(tensor_pb2.Tensor, spec=SPECS, data=SIZED)
LISTS = st.builds(tensor_pb2.TensorList, tensors=st.lists(TENSORS, max_size=4))
FACTS: dict[str, Any] = {"model": st.text(max_size=9), "camera_id": st.text(max_size=200), "frame_id": UINT64}
INFERS = st.one_of(
    st.builds(pb.InferRequest, **FACTS, deadline_ms=st.integers(0, 2**32 - 1)),
    st.builds(pb.InferRequest, **FACTS, image=SIZED),
    st.builds(pb.InferRequest, **FACTS, tensor=TENSORS, max_labels=st.integers(0, 9)),
    st.builds(pb.InferRequest, **FACTS, tensors=LISTS, traceparent=st.text(max_size=60)),
)
RESPONSES = st.builds(
    pb.InferResponse, frame_id=UINT64, model=st.text(max_size=9), outputs=st.lists(TENSORS, max_size=4)
)
FRAMES = st.builds(
    segment_pb2.SegmentFrame,
    frame_id=UINT64,
    payload=SIZED,
    deadline_ms=st.integers(0, 2**32 - 1),
    trace_context=SIZED,
    header=st.builds(tensor_pb2.FrameHeader, tensors=st.lists(SPECS, max_size=3), crc32c=st.integers(0, 2**32 - 1)),
)
MESSAGES = st.one_of(
    st.tuples(st.just(INFER_REQUEST), INFERS),
    st.tuples(st.just(INFER_RESPONSE), RESPONSES),
    st.tuples(st.just(STREAM_INFER_REQUEST), st.builds(pb.StreamInferRequest, frame=INFERS)),
    st.tuples(st.just(STREAM_INFER_REQUEST), st.builds(pb.StreamInferRequest, cancel=st.builds(pb.CancelFrame))),
    st.tuples(st.just(STREAM_INFER_RESPONSE), st.builds(pb.StreamInferResponse, result=RESPONSES)),
    st.tuples(st.just(RUN_REQUEST), st.builds(segment_pb2.RunRequest, frame=FRAMES)),
    st.tuples(
        st.just(RUN_REQUEST),
        st.builds(segment_pb2.RunRequest, chunk=st.builds(segment_pb2.Chunk, index=st.integers(0, 9), data=SIZED)),
    ),
    st.tuples(
        st.just(RUN_RESPONSE),
        st.builds(
            segment_pb2.RunResponse,
            result=st.builds(segment_pb2.Result, frame_id=UINT64, outputs=st.lists(TENSORS, max_size=4)),
        ),
    ),
)
_FILE = descriptor_pb2.FileDescriptorProto(name="many.proto", package="test", syntax="proto3")
_MANY = _FILE.message_type.add(name="Many")
_MANY.field.add(name="name", number=1, type="TYPE_STRING", label="LABEL_OPTIONAL")
_MANY.field.add(name="parts", number=7, type="TYPE_BYTES", label="LABEL_REPEATED")
Many: Any = message_factory.GetMessages([_FILE])["test.Many"]
ALL = [INFER_REQUEST, INFER_RESPONSE, STREAM_INFER_REQUEST, STREAM_INFER_RESPONSE, RUN_REQUEST, RUN_RESPONSE]


@pytest.fixture(autouse=True, scope="module")
def small_is_large() -> Any:
    """Every message is lifted, whatever its size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "LARGE_BYTES", 0)
        yield


def by_protobuf(fields: LargeFields[Any], data: bytes) -> tuple[Message, list[bytes]]:
    """As protobuf alone reads it: the message without its large fields, and these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "LARGE_BYTES", len(data) + 1)
        plain = fields.parse(data)
    whole = plain.message.__class__.FromString(data)
    assert plain.message == whole
    return whole, [bytes(blob) for blob in plain.blobs]


def put_back(fields: LargeFields[Any], lifted: Lifted[Any]) -> Message:
    message: Message = lifted.message.__class__.FromString(fields.serialize(lifted))
    return message


@given(MESSAGES)
def test_a_lifted_message_says_what_protobuf_reads(case: tuple[LargeFields[Any], Message]) -> None:
    fields, message = case
    lifted = fields.parse(message.SerializeToString())
    _, blobs = by_protobuf(fields, message.SerializeToString())
    assert all(isinstance(blob, memoryview) for blob in lifted.blobs if len(blob))
    assert [bytes(blob) for blob in lifted.blobs] == blobs
    assert put_back(fields, lifted) == message


@given(MESSAGES)
def test_a_plain_message_is_written_as_protobuf_writes_it(case: tuple[LargeFields[Any], Message]) -> None:
    fields, message = case
    assert fields.serialize(message) == message.SerializeToString()


@settings(max_examples=400)
@given(st.sampled_from(ALL), MESSAGES, st.data())
def test_broken_bytes_are_refused_exactly_when_protobuf_refuses_them(
    fields: LargeFields[Any], case: tuple[LargeFields[Any], Message], data: st.DataObject
) -> None:
    broken = bytearray(case[1].SerializeToString())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(0, len(broken) - 1)))
        broken[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    same_for_both(fields, bytes(broken))


@settings(max_examples=400)
@given(st.sampled_from(ALL), st.binary(max_size=60))
def test_any_bytes_are_read_as_protobuf_reads_them(fields: LargeFields[Any], data: bytes) -> None:
    same_for_both(fields, data)


@given(MESSAGES, MESSAGES)
def test_messages_one_after_the_other_are_merged_as_protobuf_merges_them(
    one: tuple[LargeFields[Any], Message], other: tuple[LargeFields[Any], Message]
) -> None:
    same_for_both(one[0], one[1].SerializeToString() + other[1].SerializeToString())


def same_for_both(fields: LargeFields[Any], data: bytes) -> None:
    try:
        whole, blobs = by_protobuf(fields, data)
    except DecodeError:
        with pytest.raises(DecodeError):
            fields.parse(data)
        return
    lifted = fields.parse(data)
    assert [bytes(blob) for blob in lifted.blobs] == blobs
    if any(isinstance(blob, memoryview) for blob in lifted.blobs):
        assert put_back(fields, lifted) == whole


def test_a_lifted_field_is_a_view_and_no_copy() -> None:
    data = pb.StreamInferRequest(frame=pb.InferRequest(image=LARGE)).SerializeToString()
    (blob,) = STREAM_INFER_REQUEST.parse(data).blobs
    assert isinstance(blob, memoryview)
    assert blob.obj is data


def test_which_input_is_set_can_still_be_asked() -> None:
    data = pb.InferRequest(image=LARGE, frame_id=3).SerializeToString()
    lifted = INFER_REQUEST.parse(data)
    assert (lifted.message.WhichOneof("input"), lifted.message.frame_id, len(lifted.message.image)) == ("image", 3, 0)


def test_more_fields_than_a_sender_needs_are_left_to_protobuf() -> None:
    """In Python a field costs half a microsecond: 32 MiB of them would hold everybody up for seconds."""
    data = pb.InferRequest(image=LARGE).SerializeToString() + b"\x10\x01" * wire.MAX_FIELDS
    (blob,) = INFER_REQUEST.parse(data).blobs
    assert isinstance(blob, bytes)
    assert blob == LARGE


def test_a_number_longer_than_any_is_left_to_protobuf_after_its_first_bytes() -> None:
    """Byte by byte 32 MiB of one would take seconds."""
    endless = b"\x78" + b"\xff" * 10 + b"\x01"
    with pytest.raises(wire._UnusualError):
        list(wire._fields(endless, 0, len(endless)))
    longest = b"\x78" + b"\xff" * 9 + b"\x01"
    assert [number for number, *_ in wire._fields(longest, 0, len(longest))] == [15]
    with pytest.raises(DecodeError):
        INFER_REQUEST.parse(endless)


def test_the_fields_of_all_nested_messages_count_together() -> None:
    tensors = [tensor_pb2.Tensor(data=b"x")] * wire.MAX_FIELDS
    data = pb.InferRequest(tensors=tensor_pb2.TensorList(tensors=tensors)).SerializeToString()
    blobs = INFER_REQUEST.parse(data).blobs
    assert len(blobs) == wire.MAX_FIELDS
    assert all(isinstance(blob, bytes) for blob in blobs)


def test_blobs_beyond_a_messages_places_and_missing_ones_are_errors() -> None:
    response = pb.InferResponse(outputs=[tensor_pb2.Tensor(), tensor_pb2.Tensor()])
    for count in (1, 3):
        with pytest.raises(ValueError, match=r"blobs|places"):
            INFER_RESPONSE.serialize(Lifted(response, (b"x",) * count))


def test_a_large_field_that_is_not_empty_is_not_lost_unseen() -> None:
    response = pb.InferResponse(outputs=[tensor_pb2.Tensor(data=b"mine")])
    with pytest.raises(ValueError, match="not empty"):
        INFER_RESPONSE.serialize(Lifted(response, (b"other",)))


def test_paths_that_cannot_be_told_apart_on_the_wire_are_refused() -> None:
    with pytest.raises(ValueError, match="not a bytes field"):
        LargeFields(pb.InferRequest, "model")
    with pytest.raises(ValueError, match="no message"):
        LargeFields(pb.InferRequest, "model.data")
    with pytest.raises(ValueError, match="do not exclude"):
        LargeFields(segment_pb2.SegmentFrame, "payload", "trace_context")


def test_a_repeated_field_of_the_message_itself_takes_all_blobs() -> None:
    fields = LargeFields(Many, "parts")
    data = Many(name="n", parts=[b"a", b"", b"bc"]).SerializeToString()
    lifted = fields.parse(data)
    assert [bytes(blob) for blob in lifted.blobs] == [b"a", b"", b"bc"]
    assert Many.FromString(fields.serialize(lifted)) == Many.FromString(data)
    assert list(Many.FromString(fields.serialize(Lifted(Many(name="n"), (b"x", b"y")))).parts) == [b"x", b"y"]


def test_large_arrays_go_beside_their_message_and_come_back_as_arrays() -> None:
    arrays: dict[str, Array] = {"a": np.arange(20_000, dtype=np.float32), "b": np.zeros((0, 4), np.int64)}
    response = pb.StreamInferResponse(result=pb.InferResponse(frame_id=5))
    lifted = with_tensors(response, response.result.outputs, arrays)
    assert isinstance(lifted, Lifted)
    again = STREAM_INFER_RESPONSE.parse(STREAM_INFER_RESPONSE.serialize(lifted))
    outputs = again.message.result.outputs
    assert [list(one.spec.shape) for one in outputs] == [[20_000], [0, 4]]
    found = tensors_from_messages(outputs, ANSWER_LIMITS, blobs=again.blobs)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
