"""Records of samples: their fields, their identifier and their JSON."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.samples.record import MAX_JSON_BYTES, SampleRecord, new_id
from tests.unit.sample_records import NOW, sample

FULL = sample(
    score="margin",
    ease=0.25,
    exit_label="good",
    exit_confidence=0.5,
    tail_label="bad",
    tail_confidence=0.75,
    trace_id="0af7651916cd43dd8448eb211c80319c",
    picture="a" * 64,
    picture_bytes=10,
    media_type="image/png",
    width=9,
    height=8,
    features="b" * 64,
    features_bytes=4,
    label="bad, scratched",
    labelled_by="ana",
    labelled_at=NOW + timedelta(days=1, microseconds=7),
    split_group="unit-7",
)
moments = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9000, 1, 1), timezones=st.just(UTC))


def refused(field: str, **changes: Any) -> str:
    with pytest.raises(MeshError) as error:
        replace(FULL, **changes)
    assert error.value.reason is Reason.FIELD_INVALID
    assert [name for name, _ in error.value.fields] == [field]
    return error.value.message


def test_a_record_comes_back_from_its_json_as_it_was() -> None:
    assert SampleRecord.from_json(FULL.to_json()) == FULL
    assert SampleRecord.from_json(sample().to_json().encode()) == sample()


def test_the_test_record_sets_every_field() -> None:
    assert all(getattr(FULL, field.name) not in (None, "", 0) for field in fields(FULL))


@given(moments, moments, st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_identifiers_sort_by_the_millisecond_of_capture(one: datetime, other: datetime, a: bytes, b: bytes) -> None:
    first, second = (one.replace(microsecond=one.microsecond // 1000 * 1000) for one in sorted((one, other)))
    assert len(new_id(first, a)) == 26
    assert new_id(first, a) < new_id(second, b) or (
        first == second and (new_id(first, a) < new_id(second, b)) == (a < b)
    )


def test_an_identifier_is_the_published_example_of_a_ulid() -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=1469918176385)
    assert new_id(at, bytes(10)) == "01ARYZ6S41" + "0" * 16
    assert new_id(at, b"\xff" * 10) == "01ARYZ6S41" + "Z" * 16


def test_an_identifier_of_another_time_is_refused() -> None:
    assert "captured_at" in refused("id", id=new_id(NOW + timedelta(milliseconds=1), bytes(10)))
    assert replace(FULL, captured_at=NOW + timedelta(microseconds=999)).id == FULL.id


@pytest.mark.parametrize("bad", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "I" * 26, "0" * 25 + "a", 7, None])
def test_what_is_no_identifier_is_refused(bad: Any) -> None:
    refused("id", id=bad)


def test_new_identifiers_need_ten_bytes_and_a_time_with_a_zone_since_1970() -> None:
    for at, random, field in (
        (NOW, bytes(9), "random"),
        (NOW.replace(tzinfo=None), bytes(10), "captured_at"),
        (datetime(1969, 12, 31, tzinfo=UTC), bytes(10), "captured_at"),
    ):
        with pytest.raises(MeshError) as error:
            new_id(at, random)
        assert error.value.fields[0][0] == field


def test_times_of_any_zone_become_utc() -> None:
    paris = NOW.astimezone(timezone(timedelta(hours=1)))
    assert replace(FULL, captured_at=paris).captured_at.tzinfo is UTC
    assert replace(FULL, captured_at=paris) == FULL
    refused("captured_at", captured_at=NOW.replace(tzinfo=None))
    refused("labelled_at", labelled_at="2025-01-01")


def test_an_undefined_ease_is_none_and_stays_json() -> None:
    record = replace(FULL, ease=math.nan)
    assert record.ease is None
    assert json.loads(record.to_json())["ease"] is None


@pytest.mark.parametrize("name", ["ease", "exit_confidence", "tail_confidence"])
@pytest.mark.parametrize("bad", [-0.01, 1.01, math.inf, True, "0.5"])
def test_shares_are_zero_to_one(name: str, bad: Any) -> None:
    refused(name, **{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("site", ""),
        ("site", "x" * 129),
        ("node", "a\nb"),
        ("camera", None),
        ("camera", "\x00"),
        ("model", " "),
        ("version", 0),
        ("version", True),
        ("version", 1.0),
        ("kind", "easy"),
        ("kind", None),
        ("why", "x" * 201),
        ("score", 5),
        ("label", ""),
        ("label", "a\tb"),
        ("exit_label", "\ud800"),
        ("trace_id", "xyz"),
        ("picture", "A" * 64),
        ("features", "a" * 63),
        ("media_type", "text/html"),
        ("width", -1),
        ("picture_bytes", 1 << 63),
        ("split_group", ""),
    ],
)
def test_a_field_out_of_range_is_named(name: str, bad: Any) -> None:
    refused(name, **{name: bad})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("picture", {"picture": None}),
        ("picture", {"width": 0}),
        ("picture", {"media_type": ""}),
        ("features", {"features_bytes": 0}),
        ("features", {"features": None}),
        ("label", {"label": None}),
        ("label", {"labelled_by": None}),
        ("label", {"labelled_at": None}),
        ("exit_confidence", {"exit_label": None}),
        ("tail_confidence", {"tail_label": None}),
    ],
)
def test_what_belongs_together_is_there_together(name: str, changes: dict[str, Any]) -> None:
    refused(name, **changes)


def test_the_group_is_the_camera_and_hour_unless_one_is_given() -> None:
    assert FULL.group == "unit-7"
    assert sample().group == "lyon/line-1/2025-03-04T10"
    assert sample(59).group == sample().group != sample(60).group


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(FULL.to_json()), **values})


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "record"),
        ("[]", "record"),
        ("{", "record"),
        (b"\xff", "record"),
        ("[" * 50_000, "record"),
        (" " * (MAX_JSON_BYTES + 1), "record"),
        (FULL.to_json().replace("0.25", "NaN"), "record"),
        (FULL.to_json().replace("{", '{"site":"x",', 1), "record"),
        (changed(schema_version=2), "schema_version"),
        (changed(colour="red"), "colour"),
        (changed(captured_at=5), "captured_at"),
        (changed(captured_at="yesterday"), "captured_at"),
        (changed(captured_at="2025-03-04T10:00:00"), "captured_at"),
        (changed(version="3"), "version"),
        (changed(ease="0.5"), "ease"),
        (json.dumps({"schema_version": 1}), "id"),
    ],
)
def test_what_is_no_record_is_refused(text: str | bytes, field: str) -> None:
    with pytest.raises(MeshError) as error:
        SampleRecord.from_json(text)
    assert error.value.reason is Reason.FIELD_INVALID
    assert error.value.fields[0][0] == field


def test_a_record_written_before_a_field_was_added_is_read() -> None:
    values = json.loads(FULL.to_json())
    del values["split_group"]
    assert SampleRecord.from_json(json.dumps(values)) == replace(FULL, split_group=None)
