"""The error catalogue on the wire: MeshError to google.rpc.Status and back, in one place both ways.

Every error carries one ``google.rpc.ErrorInfo``; bad fields add a ``BadRequest``; a ``RetryInfo`` where retrying helps.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from splitmesh.errors import MeshError, Reason

DOMAIN = "splitmesh"
MAX_MESSAGE_BYTES, MAX_DETAIL_BYTES = 2048, 512
"""Of an error's text and of each of its details. gRPC refuses trailers above 8 KiB, and says then that it was too much instead
of what was wrong; the text crosses twice, and outside of ASCII it grows threefold on the way."""

_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

STATUS_CODES: dict[Reason, grpc.StatusCode] = {
    Reason.FIELD_INVALID: _INVALID,
    Reason.IMAGE_UNDECODABLE: _INVALID,
    Reason.IMAGE_TOO_LARGE: _INVALID,
    Reason.TENSOR_SHAPE_MISMATCH: _INVALID,
    Reason.TENSOR_DTYPE_MISMATCH: _INVALID,
    Reason.TENSOR_SIZE_MISMATCH: _INVALID,
    Reason.TENSOR_NOT_FINITE: _INVALID,
    Reason.CODEC_UNSUPPORTED: _INVALID,
    Reason.PAYLOAD_CORRUPT: _INVALID,
    Reason.CHECKSUM_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.FRAME_TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.PROTOCOL_VIOLATION: _INVALID,
    Reason.MODEL_CORRUPT: _INVALID,
    Reason.MODEL_TOO_LARGE: _INVALID,
    Reason.MODEL_EXTERNAL_DATA: _INVALID,
    Reason.MODEL_OPERATOR_UNSUPPORTED: _INVALID,
    Reason.MODEL_SHAPE_UNKNOWN: _PRECONDITION,
    Reason.MODEL_INCOMPLETE: _PRECONDITION,
    Reason.CUT_INVALID: _INVALID,
    Reason.SPLIT_NOT_EQUAL: _PRECONDITION,
    Reason.PLAN_INFEASIBLE: _PRECONDITION,
    Reason.CALIBRATION_INSUFFICIENT: _PRECONDITION,
    Reason.BUDGET_EXCEEDED: _PRECONDITION,
    Reason.EXTRA_MISSING: _PRECONDITION,
    Reason.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.VERSION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ALIAS_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ARTIFACT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.NODE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.DIGEST_MISMATCH: grpc.StatusCode.DATA_LOSS,
    Reason.UPLOAD_OFFSET_MISMATCH: grpc.StatusCode.OUT_OF_RANGE,
    Reason.UPLOAD_TRUNCATED: grpc.StatusCode.DATA_LOSS,
    Reason.STORAGE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.ALIAS_MOVED: grpc.StatusCode.ABORTED,
    Reason.VERSION_IN_USE: _PRECONDITION,
    Reason.DATASET_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.SIGNATURE_MISSING: _PRECONDITION,
    Reason.SIGNATURE_INVALID: _PRECONDITION,
    Reason.KEY_UNKNOWN: _PRECONDITION,
    Reason.KEY_REVOKED: _PRECONDITION,
    Reason.KEYRING_STALE: grpc.StatusCode.ABORTED,
    Reason.BUDGET_SPENT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.SAMPLE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.CONTENT_NOT_ALLOWED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.DRIFT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.COMPRESSION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.TASK_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.DEPLOYMENT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.DEPLOYMENT_ACTIVE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.DEPLOYMENT_ENDED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NODE_ONLINE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NODE_REPLACED: grpc.StatusCode.ABORTED,
    Reason.HOST_TOO_SMALL: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.DEADLINE_EXPIRED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.NOT_READY: grpc.StatusCode.UNAVAILABLE,
    Reason.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.FRAME_SUPERSEDED: grpc.StatusCode.ABORTED,
    Reason.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}
"""Every reason's gRPC status code (a test holds this table complete)."""

_FALLBACK: dict[grpc.StatusCode, Reason] = {
    grpc.StatusCode.UNAVAILABLE: Reason.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.DEADLINE_EXPIRED,
    grpc.StatusCode.CANCELLED: Reason.CANCELLED,
    grpc.StatusCode.UNIMPLEMENTED: Reason.UNIMPLEMENTED,
    grpc.StatusCode.INVALID_ARGUMENT: Reason.FIELD_INVALID,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: MeshError) -> status_pb2.Status:
    """The error as a google.rpc.Status; texts that quote much of what was sent are cut to what HTTP/2 trailers hold."""
    status = status_pb2.Status(code=STATUS_CODES[error.reason].value[0], message=_clipped(error.message))
    metadata = {name: _clipped(value, MAX_DETAIL_BYTES) for name, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if error.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_clipped(field, MAX_DETAIL_BYTES), description=_clipped(problem, MAX_DETAIL_BYTES)
            )
            for field, problem in error.fields
        ]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _clipped(text: str, most_bytes: int = MAX_MESSAGE_BYTES) -> str:
    encoded = text.encode()
    return text if len(encoded) <= most_bytes else encoded[: most_bytes - 3].decode(errors="ignore") + "..."


def to_grpc(error: MeshError) -> grpc.Status:
    """The error in the form that ``context.abort_with_status`` takes."""
    return rpc_status.to_status(to_status(error))


def from_status(status: status_pb2.Status) -> MeshError:
    """The error a status describes; reasons unknown to this version become INTERNAL with the reason in metadata."""
    reason: Reason | None = None
    metadata: dict[str, str] = {}
    fields: list[tuple[str, str]] = []
    retry_after_s: float | None = None
    for detail in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            metadata = dict(info.metadata)
            if info.reason in Reason.__members__:
                reason = Reason(info.reason)
            else:
                reason, metadata["reason"] = Reason.INTERNAL, info.reason
        elif detail.Unpack(bad):
            fields = [(violation.field, violation.description) for violation in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    if reason is None:
        code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
        reason = _reason_without_info(code, status.message)
        metadata["grpc_status"] = code.name
    return MeshError(reason, status.message, metadata=metadata, fields=fields, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.RpcError) -> MeshError:
    """The error behind a failed call."""
    status = rpc_status.from_call(error)
    if status is None:
        code, details = error.code(), error.details() or ""
        status = status_pb2.Status(code=code.value[0], message=details)
    return from_status(status)


async def ended_stream_error(call: Any, peer: str) -> MeshError:
    """Why a stream that gave EOF has ended."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return MeshError(Reason.SERVICE_UNAVAILABLE, f"{peer} ended the stream")
    return from_rpc_error(
        grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata(), await call.details())
    )


def _reason_without_info(code: grpc.StatusCode, message: str) -> Reason:
    """For statuses that gRPC itself made."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Reason.FRAME_TOO_LARGE if "larger than max" in message else Reason.QUEUE_FULL
    return _FALLBACK.get(code, Reason.INTERNAL)
