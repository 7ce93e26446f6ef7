"""The catalogue of errors on the wire: every reason has a status, and what is sent is what arrives."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.errors import DOMAIN, STATUS_CODES, from_rpc_error, from_status, to_grpc, to_status

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
errors = st.builds(
    MeshError,
    st.sampled_from(Reason),
    text,
    metadata=st.dictionaries(text.filter(bool), text, max_size=3),
    fields=st.lists(st.tuples(text, text), max_size=3),
    retry_after_s=st.none() | st.integers(0, 10_000_000).map(lambda ms: ms / 1000),
)


def rpc_error(code: grpc.StatusCode, details: str, trailing: Any = None) -> grpc.aio.AioRpcError:
    empty = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, empty, grpc.aio.Metadata(*(trailing or ())), details)


def test_every_reason_has_a_status_and_none_is_left_over() -> None:
    assert set(STATUS_CODES) == set(Reason)
    assert grpc.StatusCode.OK not in STATUS_CODES.values()
    assert grpc.StatusCode.UNKNOWN not in STATUS_CODES.values()


def test_every_reason_is_called_what_it_says() -> None:
    for reason in Reason:
        assert reason.name == reason.value


@given(errors)
def test_an_error_arrives_as_it_was_sent(error: MeshError) -> None:
    status = status_pb2.Status.FromString(to_status(error).SerializeToString())
    back = from_status(status)
    assert status.code == STATUS_CODES[error.reason].value[0]
    for attribute in ("reason", "message", "metadata", "fields"):
        assert getattr(back, attribute) == getattr(error, attribute)
    assert back.retry_after_s == (None if error.retry_after_s is None else pytest.approx(error.retry_after_s))


def test_an_error_arrives_through_grpcs_own_trailing_metadata() -> None:
    sent = to_grpc(MeshError(Reason.QUEUE_FULL, "wait", retry_after_s=0.25))
    back = from_rpc_error(rpc_error(sent.code, sent.details, sent.trailing_metadata))
    assert (back.reason, back.message, back.retry_after_s) == (Reason.QUEUE_FULL, "wait", 0.25)


def test_every_error_carries_exactly_one_error_info() -> None:
    status = to_status(field_error("port", "is odd"))
    infos = [detail for detail in status.details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1
    info = error_details_pb2.ErrorInfo()
    infos[0].Unpack(info)
    assert (info.domain, info.reason) == (DOMAIN, "FIELD_INVALID")


def test_a_reason_of_a_later_version_is_internal_and_kept_for_people() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.ABORTED.value[0], message="m")
    info = error_details_pb2.ErrorInfo(reason="LINE_STOPPED", domain=DOMAIN, metadata={"line": "3"})
    status.details.add().Pack(info)
    back = from_status(status)
    assert (back.reason, back.metadata) == (Reason.INTERNAL, {"line": "3", "reason": "LINE_STOPPED"})


def test_an_error_info_of_somebody_else_is_not_ours() -> None:
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="elsewhere.example"))
    back = from_status(status)
    assert (back.reason, back.metadata) == (Reason.INTERNAL, {"grpc_status": "NOT_FOUND"})


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", Reason.SERVICE_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Reason.DEADLINE_EXPIRED),
        (grpc.StatusCode.CANCELLED, "", Reason.CANCELLED),
        (grpc.StatusCode.UNIMPLEMENTED, "", Reason.UNIMPLEMENTED),
        (grpc.StatusCode.INVALID_ARGUMENT, "", Reason.FIELD_INVALID),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (5 vs. 4)", Reason.FRAME_TOO_LARGE),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", Reason.QUEUE_FULL),
        (grpc.StatusCode.UNKNOWN, "", Reason.INTERNAL),
        (grpc.StatusCode.DATA_LOSS, "", Reason.INTERNAL),
    ],
)
def test_a_status_that_grpc_made_itself_has_the_nearest_reason(
    code: grpc.StatusCode, message: str, reason: Reason
) -> None:
    back = from_rpc_error(rpc_error(code, message))
    assert (back.reason, back.message, back.metadata) == (reason, message, {"grpc_status": code.name})


def test_a_status_number_that_does_not_exist_is_internal() -> None:
    assert from_status(status_pb2.Status(code=4711, message="m")).reason is Reason.INTERNAL


def test_the_text_of_an_error_begins_with_its_reason() -> None:
    assert str(field_error("port", "is odd")) == "FIELD_INVALID: port: is odd"


def test_a_text_that_quotes_too_much_is_cut_to_what_trailers_hold() -> None:
    long = "ä" * 50_000
    status = to_status(MeshError(Reason.FIELD_INVALID, long, fields=[("model_name", long)], metadata={"missing": long}))
    assert len(status.SerializeToString()) < 4000
    found = from_status(status)
    assert found.reason is Reason.FIELD_INVALID
    assert found.message.endswith("ä...")
