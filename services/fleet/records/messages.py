"""Messages about records to values, and back; everything that can be wrong with one is found here. Knows no store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp

from services.fleet.names import check_name, check_text
from services.fleet.records.values import Batch, KeptRecord, Record, Wanted
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error

DEFAULT_TENANT = "default"
MAX_RECORDS = 1000
"""In one call."""
MAX_BYTES = 4 << 20
"""Of the bodies in one call."""
MAX_REASONS = 64
"""For which a head has dropped records."""
MAX_COUNT = 2**63 - 1
"""What the databases can count to."""
_SHA256_BYTES = 32


def to_batch(request: pb.CommitRecordsRequest) -> Batch:
    """Takes tens of milliseconds for the largest one.

    Raises:
        MeshError: FIELD_INVALID; DIGEST_MISMATCH, a body is not what its digest says.
    """
    tenant = request.tenant or DEFAULT_TENANT
    check_name("tenant", tenant)
    check_name("edge", request.edge)
    if len(request.records) > MAX_RECORDS:
        raise field_error("records", f"has {len(request.records)}, at most {MAX_RECORDS} come in one call")
    size_bytes = sum(len(one.body) for one in request.records)
    if size_bytes > MAX_BYTES:
        raise field_error("records", f"have {size_bytes} bytes together, at most {MAX_BYTES} come in one call")
    taken = tuple(_to_record(f"records[{index}]", one) for index, one in enumerate(request.records))
    if request.dropped_life:
        check_name("dropped_life", request.dropped_life)
    return Batch(tenant, request.edge, taken, _to_dropped(request.dropped), request.dropped_life)


def to_wanted(request: pb.ListRecordsRequest) -> Wanted:
    """FIELD_INVALID for a name that is none."""
    tenant = request.tenant or DEFAULT_TENANT
    check_name("tenant", tenant)
    if request.edge:
        check_name("edge", request.edge)
    if request.kind:
        check_name("kind", request.kind)
    return Wanted(tenant, request.edge, request.kind)


def from_kept(kept: KeptRecord) -> pb.KeptRecord:
    """The inverse, as far as a page needs it."""
    record = kept.record
    message = pb.KeptRecord(
        edge=kept.edge,
        record=pb.Record(
            boot_id=record.boot_id,
            sequence=record.sequence,
            kind=record.kind,
            body=record.body,
            sha256=record.sha256,
        ),
    )
    message.record.time.FromDatetime(record.time)
    message.commit_time.FromDatetime(kept.commit_time)
    return message


def _to_record(where: str, message: pb.Record) -> Record:
    check_name(f"{where}.boot_id", message.boot_id)
    if not 1 <= message.sequence <= MAX_COUNT:
        raise field_error(f"{where}.sequence", f"is {message.sequence}, expected 1 to {MAX_COUNT}")
    check_name(f"{where}.kind", message.kind)
    if len(message.sha256) != _SHA256_BYTES:
        raise field_error(f"{where}.sha256", f"has {len(message.sha256)} bytes, expected {_SHA256_BYTES}")
    if hashlib.sha256(message.body).digest() != message.sha256:
        raise MeshError(
            Reason.DIGEST_MISMATCH,
            f"{where}: the body of record {message.sequence} of {message.boot_id} is not what its digest says",
            metadata={"boot_id": message.boot_id, "sequence": str(message.sequence)},
        )
    _check_json(f"{where}.body", message.body)
    if not message.HasField("time"):
        raise field_error(f"{where}.time", "is missing")
    _check_time(f"{where}.time", message.time)
    time = message.time.ToDatetime(UTC)
    return Record(message.boot_id, message.sequence, message.kind, message.body, message.sha256, time)


def _check_json(field: str, body: bytes) -> None:
    try:
        json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise field_error(field, f"is not JSON: {error}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _check_time(field: str, time: Timestamp) -> None:
    try:
        time.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise field_error(field, "is no time between the years 1 and 9999") from error


def _to_dropped(dropped: Mapping[str, int]) -> dict[str, int]:
    if len(dropped) > MAX_REASONS:
        raise field_error("dropped", f"has {len(dropped)} reasons, at most {MAX_REASONS} are kept")
    for reason, records in dropped.items():
        check_text("dropped", reason)
        if not reason:
            raise field_error("dropped", "has a reason without a name")
        if records > MAX_COUNT:
            raise field_error(f"dropped[{reason!r}]", f"is {records}, at most {MAX_COUNT}")
    return dict(dropped)
