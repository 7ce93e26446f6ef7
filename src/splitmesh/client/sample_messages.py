"""Samples as messages, both ways; used by a head, which serves them, and by its client. Knows no calls."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from splitmesh.api.samples.v1 import samples_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples.kept import Filter, LabelEntry
from splitmesh.samples.record import KINDS, Kind, SampleRecord

KIND_TO: Mapping[Kind, pb.SampleKind.ValueType] = {
    kind: pb.SampleKind.Value(f"SAMPLE_KIND_{kind.upper()}") for kind in KINDS
}
KIND_OF: Mapping[pb.SampleKind.ValueType, Kind] = {number: kind for kind, number in KIND_TO.items()}

CONTENTS: Mapping[str, pb.ContentKind.ValueType] = {
    "picture": pb.CONTENT_KIND_PICTURE,
    "thumbnail": pb.CONTENT_KIND_THUMBNAIL,
    "features": pb.CONTENT_KIND_FEATURES,
}
"""What of a sample, by the names that `sample_sharing` has for it."""
CONTENT_OF: Mapping[pb.ContentKind.ValueType, str] = {number: name for name, number in CONTENTS.items()}

FEATURES_MEDIA_TYPE = "application/vnd.safetensors"


def sample_to(record: SampleRecord, duplicates: int) -> pb.Sample:
    """A record as a message; what is None stays unset or empty."""
    message = pb.Sample(
        id=record.id,
        site=record.site,
        node=record.node,
        camera=record.camera,
        capture_time=_stamp(record.captured_at),
        model=record.model,
        version=record.version,
        kind=KIND_TO[record.kind],
        why=record.why,
        score=record.score,
        ease=record.ease,
        exit_label=record.exit_label or "",
        exit_confidence=record.exit_confidence or 0.0,
        tail_label=record.tail_label or "",
        tail_confidence=record.tail_confidence or 0.0,
        trace_id=record.trace_id,
        picture=record.picture or "",
        picture_bytes=record.picture_bytes,
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        features=record.features or "",
        features_bytes=record.features_bytes,
        label=record.label or "",
        labelled_by=record.labelled_by or "",
        split_group=record.split_group or "",
        duplicates=duplicates,
    )
    if record.labelled_at is not None:
        message.label_time.CopyFrom(_stamp(record.labelled_at))
    return message


def record_of(message: pb.Sample) -> SampleRecord:
    """The inverse, to the microsecond. MeshError PROTOCOL_VIOLATION for what is no record."""
    said = {
        name: (getattr(message, f"{name}_label") or None, getattr(message, f"{name}_confidence"))
        for name in ("exit", "tail")
    }
    try:
        return SampleRecord(
            id=message.id,
            site=message.site,
            node=message.node,
            camera=message.camera,
            captured_at=_time(message.capture_time),
            model=message.model,
            version=message.version,
            kind=KIND_OF[message.kind],
            why=message.why,
            score=message.score,
            ease=message.ease if message.HasField("ease") else None,
            exit_label=said["exit"][0],
            exit_confidence=said["exit"][1] if said["exit"][0] else None,
            tail_label=said["tail"][0],
            tail_confidence=said["tail"][1] if said["tail"][0] else None,
            trace_id=message.trace_id,
            picture=message.picture or None,
            picture_bytes=message.picture_bytes,
            media_type=message.media_type,
            width=message.width,
            height=message.height,
            features=message.features or None,
            features_bytes=message.features_bytes,
            label=message.label or None,
            labelled_by=message.labelled_by or None,
            labelled_at=_time(message.label_time) if message.HasField("label_time") else None,
            split_group=message.split_group or None,
        )
    except (MeshError, KeyError) as error:
        detail = f"the head sent the sample {message.id[:40]!r}, which is none: {error}"
        raise MeshError(Reason.PROTOCOL_VIOLATION, detail) from error


def filter_to(wanted: Filter) -> pb.SampleFilter:
    """MeshError FIELD_INVALID for a version: heads are not asked by version."""
    if wanted.version is not None:
        raise field_error("version", "is nothing that a head filters by")
    message = pb.SampleFilter(
        model=wanted.model or "",
        camera=wanted.camera,
        kinds=[KIND_TO[kind] for kind in wanted.kinds],
        labelled=wanted.labelled,
        label=wanted.label,
    )
    for name in ("since", "until"):
        if (at := getattr(wanted, name)) is not None:
            getattr(message, name).CopyFrom(_stamp(at))
    return message


def filter_of(message: pb.SampleFilter) -> Filter:
    """MeshError FIELD_INVALID for a kind or a time that is none."""
    if any(kind not in KIND_OF for kind in message.kinds):
        raise field_error("filter.kinds", "holds a number that is no kind of sample")
    return Filter(
        camera=message.camera if message.HasField("camera") else None,
        kinds=tuple(KIND_OF[kind] for kind in message.kinds),
        labelled=message.labelled if message.HasField("labelled") else None,
        label=message.label if message.HasField("label") else None,
        model=message.model or None,
        since=_asked("filter.since", message.since) if message.HasField("since") else None,
        until=_asked("filter.until", message.until) if message.HasField("until") else None,
    )


def change_to(entry: LabelEntry) -> pb.LabelChange:
    """One step of a label's history."""
    return pb.LabelChange(label=entry.label or "", by=entry.by, time=_stamp(entry.at))


def change_of(message: pb.LabelChange) -> LabelEntry:
    """The inverse."""
    return LabelEntry(message.label or None, message.by, _time(message.time))


def _stamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _asked(field: str, stamp: Timestamp) -> datetime:
    try:
        return _time(stamp)
    except (ValueError, OverflowError) as error:
        raise field_error(field, "is no time") from error
