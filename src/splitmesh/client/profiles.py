"""Profiles as messages, and back."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from splitmesh.api.profile.v1 import profile_pb2
from splitmesh.model.profile_data import CutProfile, NodeProfile, PictureProfile, Profile, ProfileKey, invalid_profile

_PLAIN_FIELDS = (
    "whole_ms",
    "whole_p90_ms",
    "whole_bytes",
    "repeats",
    "samples",
    "calibration",
    "host",
    "complete",
)


def profile_to_message(profile: Profile) -> profile_pb2.Profile:
    """A profile as a message."""
    return profile_pb2.Profile(
        key=profile_pb2.ProfileKey(**profile.key.model_dump()),
        whole_ms=profile.whole_ms,
        whole_p90_ms=profile.whole_p90_ms,
        whole_p99_ms=profile.whole_p99_ms,
        whole_bytes=profile.whole_bytes,
        cuts=[profile_pb2.CutProfile(**cut.model_dump()) for cut in profile.cuts],
        nodes=[profile_pb2.NodeProfile(**node.model_dump()) for node in profile.nodes],
        pictures={
            codec: profile_pb2.PictureProfile(**picture.model_dump()) for codec, picture in profile.pictures.items()
        },
        repeats=profile.repeats,
        samples=profile.samples,
        calibration=profile.calibration,
        host=profile.host,
        complete=profile.complete,
    )


def profile_from_message(message: profile_pb2.Profile) -> Profile:
    """The profile in a message; MeshError FIELD_INVALID names every wrong field."""
    try:
        return Profile(
            key=ProfileKey(**_fields(message.key)),
            whole_p99_ms=message.whole_p99_ms if message.HasField("whole_p99_ms") else None,
            cuts=tuple(CutProfile(**_fields(cut)) for cut in message.cuts),
            nodes=tuple(NodeProfile(**_fields(node)) for node in message.nodes),
            pictures={codec: PictureProfile(**_fields(entry)) for codec, entry in message.pictures.items()},
            **{name: getattr(message, name) for name in _PLAIN_FIELDS},
        )
    except ValidationError as error:
        raise invalid_profile(error) from error


def _fields(message: Any) -> dict[str, Any]:
    """Every field by name: repeated ones as tuples, maps as dictionaries, unset optional ones as None."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None:
            value = dict(value)
        elif field.is_repeated:
            value = tuple(value)
        elif field.has_presence and not message.HasField(field.name):
            value = None
        values[field.name] = value
    return values
