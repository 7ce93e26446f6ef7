"""The one catalogue of things that can go wrong, for every layer and every service.

Each failure is a :class:`MeshError` with a :class:`Reason`. This module is pure: it knows no gRPC. The
mapping of reasons to gRPC status codes, and back again on the client, is ``splitmesh.kernel.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable cause of an error; travels as ``google.rpc.ErrorInfo.reason``."""

    # what a caller sent
    FIELD_INVALID = "FIELD_INVALID"
    IMAGE_UNDECODABLE = "IMAGE_UNDECODABLE"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    TENSOR_SHAPE_MISMATCH = "TENSOR_SHAPE_MISMATCH"
    TENSOR_DTYPE_MISMATCH = "TENSOR_DTYPE_MISMATCH"
    TENSOR_SIZE_MISMATCH = "TENSOR_SIZE_MISMATCH"
    TENSOR_NOT_FINITE = "TENSOR_NOT_FINITE"
    CODEC_UNSUPPORTED = "CODEC_UNSUPPORTED"
    PAYLOAD_CORRUPT = "PAYLOAD_CORRUPT"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    FRAME_TOO_LARGE = "FRAME_TOO_LARGE"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    # models and splits
    MODEL_CORRUPT = "MODEL_CORRUPT"
    MODEL_TOO_LARGE = "MODEL_TOO_LARGE"
    MODEL_EXTERNAL_DATA = "MODEL_EXTERNAL_DATA"
    MODEL_OPERATOR_UNSUPPORTED = "MODEL_OPERATOR_UNSUPPORTED"
    MODEL_SHAPE_UNKNOWN = "MODEL_SHAPE_UNKNOWN"
    MODEL_INCOMPLETE = "MODEL_INCOMPLETE"
    CUT_INVALID = "CUT_INVALID"
    SPLIT_NOT_EQUAL = "SPLIT_NOT_EQUAL"
    PLAN_INFEASIBLE = "PLAN_INFEASIBLE"
    CALIBRATION_INSUFFICIENT = "CALIBRATION_INSUFFICIENT"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    EXTRA_MISSING = "EXTRA_MISSING"
    # registry
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    ALIAS_NOT_FOUND = "ALIAS_NOT_FOUND"
    ARTIFACT_NOT_FOUND = "ARTIFACT_NOT_FOUND"
    NODE_NOT_FOUND = "NODE_NOT_FOUND"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    UPLOAD_OFFSET_MISMATCH = "UPLOAD_OFFSET_MISMATCH"
    UPLOAD_TRUNCATED = "UPLOAD_TRUNCATED"
    STORAGE_FULL = "STORAGE_FULL"
    ALIAS_MOVED = "ALIAS_MOVED"
    VERSION_IN_USE = "VERSION_IN_USE"
    DATASET_NOT_FOUND = "DATASET_NOT_FOUND"
    # trust
    SIGNATURE_MISSING = "SIGNATURE_MISSING"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    KEY_UNKNOWN = "KEY_UNKNOWN"
    KEY_REVOKED = "KEY_REVOKED"
    KEYRING_STALE = "KEYRING_STALE"
    # routing and samples
    BUDGET_SPENT = "BUDGET_SPENT"
    SAMPLE_NOT_FOUND = "SAMPLE_NOT_FOUND"
    CONTENT_NOT_ALLOWED = "CONTENT_NOT_ALLOWED"
    DRIFT_NOT_FOUND = "DRIFT_NOT_FOUND"
    # long-running work
    COMPRESSION_NOT_FOUND = "COMPRESSION_NOT_FOUND"
    # the fleet
    TASK_NOT_FOUND = "TASK_NOT_FOUND"
    DEPLOYMENT_NOT_FOUND = "DEPLOYMENT_NOT_FOUND"
    DEPLOYMENT_ACTIVE = "DEPLOYMENT_ACTIVE"
    DEPLOYMENT_ENDED = "DEPLOYMENT_ENDED"
    NODE_ONLINE = "NODE_ONLINE"
    NODE_REPLACED = "NODE_REPLACED"
    HOST_TOO_SMALL = "HOST_TOO_SMALL"
    # the mesh itself
    DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
    QUEUE_FULL = "QUEUE_FULL"
    NOT_READY = "NOT_READY"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    CANCELLED = "CANCELLED"
    FRAME_SUPERSEDED = "FRAME_SUPERSEDED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


class MeshError(Exception):
    """An expected failure with a reason a program can act on.

    Attributes:
        reason: the cause, from the catalogue.
        message: one sentence for a person; names what was found and what was expected.
        metadata: details for machines; never tensors, pictures or file paths of the server.
        fields: offending request fields with what is wrong with each.
        retry_after_s: when set, trying again after this many seconds can succeed.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        fields: Sequence[tuple[str, str]] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Callable[..., MeshError], tuple[Reason, str], dict[str, object]]:
        """Copied with everything it knows: the default would call ``__init__`` with the text alone."""
        return type(self), (self.reason, self.message), self.__dict__


def field_error(field: str, problem: str) -> MeshError:
    """A request field is missing or out of range."""
    return MeshError(Reason.FIELD_INVALID, f"{field}: {problem}", fields=[(field, problem)])
