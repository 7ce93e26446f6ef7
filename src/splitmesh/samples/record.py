"""What is known of one sample, without its picture.

Knows fields and their ranges, the identifier and the JSON form. Knows no store, no file and no pixel; the clock and the
randomness are the caller's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NoReturn

from splitmesh.errors import field_error

Kind = Literal["audit", "fallback", "hard", "disputed"]
KINDS: tuple[Kind, ...] = ("audit", "fallback", "hard", "disputed")
"""Why a sample was kept, from what is easiest to replace to what is hardest: asked at random, answered by the exit because the
tail could not be, not sure enough for the exit, tail and exit differ."""

SCHEMA_VERSION = 1
MAX_JSON_BYTES = 64 * 1024
"""A longer record is refused unread."""
MAX_TEXT = 128
MAX_WORDS = 200
"""Of a label and of ``why``, in characters."""
ID_CHARS = 26
ID_RANDOM_BYTES = 10

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ID = re.compile(f"[0-7][{_ALPHABET}]{{{ID_CHARS - 1}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRACE = re.compile(r"[0-9a-f]{32}")
_MEDIA_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LATEST_MS = (1 << 48) - 1


def new_id(captured_at: datetime, random: bytes) -> str:
    """A ULID (github.com/ulid/spec): 26 characters whose order is that of the milliseconds of ``captured_at``.

    ``random``: 10 bytes that make it unique. MeshError FIELD_INVALID for a time without a zone or before 1970.
    """
    if len(random) != ID_RANDOM_BYTES:
        raise field_error("random", f"has {len(random)} bytes, expected {ID_RANDOM_BYTES}")
    number = _milliseconds("captured_at", captured_at) << (8 * ID_RANDOM_BYTES) | int.from_bytes(random, "big")
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (ID_CHARS - 1), -1, -5))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """One sample. MeshError FIELD_INVALID names the first field that is wrong; times become UTC, an ease of NaN becomes None."""

    id: str
    """From :func:`new_id`; its time is ``captured_at``'s."""
    site: str
    node: str
    camera: str
    """As the frame named it; may be empty."""
    captured_at: datetime
    model: str
    version: int
    kind: Kind
    why: str
    """A reason code or words; may be empty."""
    score: str = ""
    """Name of the score that gave ``ease``."""
    ease: float | None = None
    """0..1; None where it was undefined."""
    exit_label: str | None = None
    exit_confidence: float | None = None
    tail_label: str | None = None
    """None where the tail was not asked or did not answer."""
    tail_confidence: float | None = None
    trace_id: str = ""
    """32 hexadecimal digits, or empty."""
    picture: str | None = None
    """SHA-256 of the picture as it was sent; the five fields of a picture are all there or none."""
    picture_bytes: int = 0
    media_type: str = ""
    width: int = 0
    """Pixels."""
    height: int = 0
    features: str | None = None
    """SHA-256 of the features that crossed, or would have."""
    features_bytes: int = 0
    label: str | None = None
    """What it shows, by somebody who knows; the three fields of a label are all there or none."""
    labelled_by: str | None = None
    labelled_at: datetime | None = None
    split_group: str | None = None
    """What it must not be parted from when a dataset is split; None: its camera and hour."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if int_of_id(self.id) >> (8 * ID_RANDOM_BYTES) != _milliseconds("captured_at", self.captured_at):
            raise field_error("id", "is not of the time of captured_at")
        for name in ("exit", "tail"):
            if getattr(self, f"{name}_label") is None and getattr(self, f"{name}_confidence") is not None:
                raise field_error(f"{name}_confidence", f"is given without {name}_label")
        _together("picture", self.picture is not None, self.picture_bytes, self.media_type, self.width, self.height)
        _together("features", self.features is not None, self.features_bytes)
        _together("label", self.label is not None, self.labelled_by, self.labelled_at)

    @property
    def group(self) -> str:
        """The split group, or the site, camera and hour (UTC) it stands for."""
        return self.split_group or f"{self.site}/{self.camera}/{self.captured_at:%Y-%m-%dT%H}"

    def to_json(self) -> str:
        """One line; the same text for the same record."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps({"schema_version": SCHEMA_VERSION, **values}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> SampleRecord:
        """The record of :meth:`to_json`. MeshError FIELD_INVALID for anything else; fields with a default may be missing."""
        values = _object(text)
        if values.pop("schema_version", None) != SCHEMA_VERSION:
            raise field_error("schema_version", f"is not {SCHEMA_VERSION}")
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(values.keys() - known.keys()):
            raise field_error(unknown[0][:MAX_TEXT], "is no field of a sample record")
        for name, field in known.items():
            if name not in values and field.default is MISSING:
                raise field_error(name, "is missing")
        for name in ("captured_at", "labelled_at"):
            if values.get(name) is not None:
                values[name] = _time_of(name, values[name])
        return cls(**values)


def int_of_id(sample_id: str) -> int:
    """The number that an identifier writes; MeshError FIELD_INVALID for what is none."""
    if not isinstance(sample_id, str) or not _ID.fullmatch(sample_id):
        raise field_error("id", f"{str(sample_id)[:40]!r} is not {ID_CHARS} characters of a ULID")
    number = 0
    for character in sample_id:
        number = number << 5 | _ALPHABET.index(character)
    return number


def checked_label(field: str, value: object) -> str:
    """A label: 1 to 200 printable characters, nothing but spaces excluded."""
    return _text(field, value, 1, MAX_WORDS)


def utc(field: str, value: object) -> datetime:
    """The time in UTC; MeshError FIELD_INVALID without a zone or before 1970."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise field_error(field, "is no time with a zone")
    moment = value.astimezone(UTC)
    _milliseconds(field, moment)
    return moment


def _milliseconds(field: str, at: datetime) -> int:
    if at.tzinfo is None:
        raise field_error(field, "is no time with a zone")
    count = (at - _EPOCH) // _MILLISECOND
    if not 0 <= count <= _LATEST_MS:
        raise field_error(field, f"is {at.isoformat()}, expected 1970 or later")
    return count


def _text(field: str, value: object, least: int, most: int) -> str:
    if not isinstance(value, str):
        raise field_error(field, "is no text")
    if not least <= len(value) <= most or not value.isprintable() or (least and not value.strip()):
        raise field_error(field, f"{value[:40]!r} is not {least} to {most} printable characters")
    return value


def _words(least: int, most: int) -> Callable[[str, object], str]:
    return lambda field, value: _text(field, value, least, most)


def _share(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise field_error(field, f"is {str(value)[:40]}, expected 0 to 1")
    return float(value)


def _ease(field: str, value: object) -> float | None:
    undefined = value is None or (isinstance(value, float) and math.isnan(value))
    return None if undefined else _share(field, value)


def _whole(least: int) -> Callable[[str, object], int]:
    def check(field: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 63:
            raise field_error(field, f"is {str(value)[:40]}, expected a whole number of at least {least}")
        return value

    return check


def _pattern(pattern: re.Pattern[str], what: str, *, empty: bool = False) -> Callable[[str, object], str]:
    def check(field: str, value: object) -> str:
        if not isinstance(value, str) or not (pattern.fullmatch(value) or (empty and not value)):
            raise field_error(field, f"{str(value)[:40]!r} is not {what}")
        return value

    return check


def _kind(field: str, value: object) -> Kind:
    for kind in KINDS:
        if value == kind:
            return kind
    raise field_error(field, f"{str(value)[:40]!r} is none of {', '.join(KINDS)}")


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, object], Any]:
    return lambda field, value: None if value is None else check(field, value)


_name, _maybe_name, _digest = _words(1, MAX_TEXT), _words(0, MAX_TEXT), _pattern(_SHA256, "a SHA-256")
_size = _whole(0)

_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "id": _pattern(_ID, f"{ID_CHARS} characters of a ULID"),
    "site": _name,
    "node": _name,
    "camera": _maybe_name,
    "captured_at": utc,
    "model": _name,
    "version": _whole(1),
    "kind": _kind,
    "why": _words(0, MAX_WORDS),
    "score": _maybe_name,
    "ease": _ease,
    "exit_label": _optional(checked_label),
    "exit_confidence": _optional(_share),
    "tail_label": _optional(checked_label),
    "tail_confidence": _optional(_share),
    "trace_id": _pattern(_TRACE, "32 hexadecimal digits", empty=True),
    "picture": _optional(_digest),
    "picture_bytes": _size,
    "media_type": _pattern(_MEDIA_TYPE, "a media type of pictures", empty=True),
    "width": _size,
    "height": _size,
    "features": _optional(_digest),
    "features_bytes": _size,
    "label": _optional(checked_label),
    "labelled_by": _optional(_name),
    "labelled_at": _optional(utc),
    "split_group": _optional(_words(1, 2 * MAX_WORDS)),
}


def _together(name: str, there: bool, *others: object) -> None:
    if any(bool(other) != there for other in others):
        raise field_error(name, "is given without all that belongs to it, or is missing from it")


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="microseconds") if isinstance(value, datetime) else value


def _object(text: str | bytes) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        raise field_error("record", f"has {len(text)} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise field_error("record", "is not JSON") from error
    if not isinstance(values, dict):
        raise field_error("record", "is no JSON object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise field_error("record", "names a field twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise field_error("record", f"holds {text}, which is no JSON")


def _time_of(field: str, value: object) -> datetime:
    try:
        return datetime.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise field_error(field, f"{str(value)[:40]!r} is no time in ISO 8601") from error
