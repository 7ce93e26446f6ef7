"""Versions of datasets: the same samples give the same bytes, groups stay whole, and a manifest is checked when it is read."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.freeze import freeze
from splitmesh.samples.record import SampleRecord
from tests.unit.sample_records import NOW, sample


def labelled(n: int, *, shows: int | None = None, **fields: Any) -> SampleRecord:
    """Sample ``n``, which shows picture ``shows`` (itself, unless told); every ten minutes another one."""
    values = {
        "picture": hashlib.sha256(str(n if shows is None else shows).encode()).hexdigest(),
        "picture_bytes": 100 + n % 7,
        "media_type": "image/png",
        "width": 9,
        "height": 8,
        "label": ("good", "bad")[n % 3 == 0],
        "labelled_by": "ana",
        "labelled_at": NOW,
    }
    return sample(10 * n, **{**values, **fields})


MANY = [labelled(n, camera=f"line-{n % 4}") for n in range(600)]
"""Four cameras and 100 hours: 400 groups of one or two."""


def refusal(*arguments: Any, **named: Any) -> MeshError:
    with pytest.raises(MeshError) as error:
        freeze(*arguments, **named)
    return error.value


def test_the_same_samples_in_any_order_are_the_same_version() -> None:
    shuffled = MANY.copy()
    random.Random(5).shuffle(shuffled)
    one, other = freeze(MANY, seed=1), freeze(shuffled, seed=1)
    assert one.to_json() == other.to_json()
    assert one.id == hashlib.sha256(one.to_json()).hexdigest()
    assert len({one.id, freeze(MANY, seed=2).id, freeze(MANY[1:], seed=1).id}) == 3


def test_an_entry_says_what_was_labelled_and_where_it_comes_from() -> None:
    record = labelled(3, split_group="unit-7")
    (entry,) = freeze([record], seed=1, shares={"train": 1}).entries
    assert entry.model_dump() == {
        "picture": record.picture,
        "picture_bytes": 103,
        "media_type": "image/png",
        "width": 9,
        "height": 8,
        "label": "bad",
        "sample": record.id,
        "site": "lyon",
        "camera": "line-1",
        "captured_at": "2025-03-04T10:30:00.000000+00:00",
        "group": "unit-7",
        "split": "train",
        "boxes": (),
        "labelled_by": "ana",
        "provenance": f"sample {record.id}",
    }


def test_a_manifest_is_read_back_and_its_fields_and_entries_are_sorted() -> None:
    dataset = freeze(MANY, seed=1)
    data = dataset.to_json()
    assert Dataset.from_json(data, sha256=dataset.id) == dataset
    values = json.loads(data)
    assert list(values) == sorted(values)
    assert [entry["picture"] for entry in values["entries"]] == sorted(record.picture or "" for record in MANY)


def test_the_shares_are_about_what_was_asked_for() -> None:
    splits = freeze(MANY, seed=3, shares={"train": 0.5, "val": 0.3, "test": 0.2}).statistics.splits
    assert splits["train"].groups == pytest.approx(200, abs=35)
    assert splits["val"].groups == pytest.approx(120, abs=35)
    assert splits["test"].groups == pytest.approx(80, abs=35)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 40), st.integers(20, 400))
def test_a_group_keeps_its_split_when_the_dataset_grows(seed: int, size: int) -> None:
    small, large = freeze(MANY[:size], seed=seed), freeze(MANY, seed=seed)
    splits = {entry.group: entry.split for entry in large.entries}
    moved = {entry.group for entry in small.entries if splits[entry.group] != entry.split}
    # with few groups one may have had to move into each split that would have been empty
    assert len(moved) <= 2
    assert not moved or min(one.groups for one in small.statistics.splits.values()) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1), st.integers(0, 5), st.integers(0, 1000))
def test_no_group_is_in_two_splits_and_no_split_is_empty(minutes: list[int], cameras: int, seed: int) -> None:
    records = {n: labelled(n, camera=f"line-{n % (cameras + 1)}") for n in minutes}
    groups = {record.group for record in records.values()}
    if len(groups) < 3:
        assert refusal(records.values(), seed=seed).reason is Reason.CALIBRATION_INSUFFICIENT
        return
    dataset = freeze(records.values(), seed=seed)
    splits: dict[str, set[str]] = {}
    for entry in dataset.entries:
        splits.setdefault(entry.group, set()).add(entry.split)
    assert splits.keys() == groups
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "val", "test"}


def test_a_split_without_a_share_gets_nothing() -> None:
    splits = freeze(MANY, seed=1, shares={"train": 0.9, "test": 0.1}).statistics.splits
    assert splits["val"].pictures == 0
    assert splits["test"].pictures > 0


def test_statistics_count_what_is_in_and_what_was_left_out() -> None:
    records = [
        labelled(0, camera="a"),
        labelled(1, camera="b"),
        labelled(6, shows=0, camera="c"),
        replace(labelled(7), label=None, labelled_by=None, labelled_at=None),
        sample(80, label="bad", labelled_by="ana", labelled_at=NOW),
    ]
    dataset = freeze(records, seed=1, shares={"train": 1}, classes=["good", "bad", "unsure"])
    statistics = dataset.statistics
    assert (statistics.unlabelled, statistics.without_picture, statistics.repeated) == (1, 1, 1)
    train = statistics.splits["train"]
    assert (train.pictures, train.groups, train.picture_bytes) == (2, 2, 201)
    assert train.labels == {"good": 1, "bad": 1, "unsure": 0}
    assert train.cameras == {"a": 1, "b": 1}
    assert dataset.classes == ("good", "bad", "unsure")
    assert {entry.sample for entry in dataset.entries} == {records[0].id, records[1].id}


def test_contradicting_labels_of_one_picture_are_told_by_sample() -> None:
    error = refusal([*MANY, labelled(700, shows=0, label="good"), labelled(701, shows=1, label="bad")], seed=1)
    assert error.reason is Reason.FIELD_INVALID
    assert [where for where, _ in error.fields] == [labelled(700).id, labelled(701).id]
    assert labelled(0).id in error.message


def test_a_label_that_is_no_class_is_told() -> None:
    error = refusal(MANY, seed=1, classes=["good"])
    assert "'bad' is none of the classes" in error.message
    assert error.message.endswith("more")


@pytest.mark.parametrize(
    "shares",
    [
        {"train": 0.5},
        {"train": 1.1, "val": -0.1},
        {"train": 0.9, "held": 0.1},
        {"train": float("nan"), "val": 0.5, "test": 0.5},
        {},
    ],
)
def test_shares_that_are_none_are_refused(shares: Any) -> None:
    assert refusal(MANY, seed=1, shares=shares).fields[0][0] == "shares"


def change(work: Callable[[dict[str, Any]], object]) -> bytes:
    values = json.loads(freeze(MANY[:30], seed=1).to_json())
    work(values)
    return json.dumps(values).encode()


def other_split(values: dict[str, Any]) -> None:
    first = values["entries"][0]
    first["split"] = "val" if first["split"] != "val" else "train"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        change(lambda values: values.update(colour="red")),
        change(lambda values: values.update(schema_version=1)),
        change(lambda values: values["entries"].reverse()),
        change(lambda values: values["entries"].append(values["entries"][-1])),
        change(lambda values: values["entries"].pop()),
        change(other_split),
        change(lambda values: values["classes"].remove("bad")),
        change(lambda values: values["entries"][0].update(picture="x")),
        change(lambda values: values["statistics"]["splits"]["train"]["labels"].update(bad=99)),
    ],
)
def test_a_manifest_that_freezing_cannot_have_made_is_refused(data: bytes) -> None:
    with pytest.raises(MeshError) as error:
        Dataset.from_json(data)
    assert error.value.reason is Reason.FIELD_INVALID
    assert error.value.fields[0][0] == "manifest"


def test_a_manifest_of_another_id_is_refused() -> None:
    with pytest.raises(MeshError) as error:
        Dataset.from_json(freeze(MANY, seed=1).to_json(), sha256="0" * 64)
    assert error.value.reason is Reason.DIGEST_MISMATCH
