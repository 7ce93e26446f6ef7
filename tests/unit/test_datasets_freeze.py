"""Items to manifests: splits that are given, pictures that are repeated, boxes, and what is contradictory."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from splitmesh.datasets import freeze, manifest
from splitmesh.datasets.divide import SPLITS, divide
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import Item, items_of
from splitmesh.datasets.manifest import Box, Dataset, Entry
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import NOW, box, boxed, digest_of, item

MANY = [item(n) for n in range(300)]


def frozen(items: Iterable[Item], **named: Any) -> Dataset:
    return freeze_items(items, **{"seed": 1, **named})


def detection(*items: Item, **named: Any) -> Dataset:
    return frozen(items, task="detection", shares={"train": 1}, **named)


def refusal(items: Iterable[Item], **named: Any) -> MeshError:
    with pytest.raises(MeshError) as error:
        frozen(items, **named)
    return error.value


def entry_of(dataset: Dataset, n: int) -> Entry:
    (found,) = (entry for entry in dataset.entries if entry.picture == digest_of(n))
    return found


def test_the_same_items_in_any_order_are_the_same_version() -> None:
    repeated = [*MANY, item(5, name="copy", split="val"), item(9, name="a copy", provenance="imported")]
    shuffled = random.Random(5).sample(repeated, len(repeated))
    assert frozen(repeated).to_json() == frozen(shuffled).to_json()


def test_a_split_that_is_given_is_kept_and_takes_its_group_along() -> None:
    given = [replace(one, split="test" if n < 10 else "val" if n < 20 else "train") for n, one in enumerate(MANY[:40])]
    dataset = frozen([replace(one, group=f"g{n}") for n, one in enumerate(given)])
    assert [entry_of(dataset, n).split for n in range(40)] == [one.split for one in given]
    assert dataset.statistics.given == 40
    drawn = [item(100 + n, group=f"g{n}") for n in range(15)]
    larger = frozen([*[replace(one, group=f"g{n}") for n, one in enumerate(given)], *drawn])
    assert [entry_of(larger, 100 + n).split for n in range(15)] == [one.split for one in given[:15]]


def test_a_group_in_two_given_splits_is_told_with_both_names() -> None:
    error = refusal([item(1, group="unit-7", split="train"), item(2, group="unit-7", split="test"), *MANY[3:]])
    assert error.reason is Reason.FIELD_INVALID
    assert error.fields == (("file-2", "is in test, file-1 of its group 'unit-7' in train"),)


def test_a_picture_in_two_given_splits_is_told() -> None:
    error = refusal([item(1, split="train"), item(1, split="test", name="again"), *MANY[2:]])
    assert error.fields[0][0] == "again"
    assert "in test, there in train" in error.fields[0][1]


def test_a_picture_that_is_there_twice_has_the_split_that_either_was_given() -> None:
    drawn = entry_of(frozen(MANY), 5).split
    other = next(split for split in SPLITS if split != drawn)
    for copy in ("a copy", "z copy"):
        dataset = frozen([*MANY, item(5, name=copy, split=other)])
        assert entry_of(dataset, 5).split == other
        assert dataset.statistics.repeated == 1


def test_a_version_made_of_an_older_one_keeps_every_split() -> None:
    # With three groups one was moved into each split that would have been empty; the next version must not move it back.
    first = frozen([item(n, group=f"g{n}") for n in range(3)], seed=4)
    second = frozen([*items_of(first), *(item(n, group=f"g{n}") for n in range(3, 200))], seed=4)
    assert {entry.picture: entry.split for entry in first.entries}.items() <= {
        entry.picture: entry.split for entry in second.entries
    }.items()
    assert set(first.entries) <= set(second.entries)
    anew = frozen(items_of(second, keep_splits=False), seed=4)
    assert anew.statistics.given == 0
    assert {entry.picture for entry in anew.entries} == {entry.picture for entry in second.entries}


def test_without_a_group_pictures_of_a_cameras_hour_stay_together_and_others_stand_alone() -> None:
    hour = [item(n, camera="line-1") for n in range(6)]
    alone = [item(n, captured_at=None) for n in range(6, 9)]
    assert {one.split_group for one in hour} == {"lyon/line-1/2025-03-04T10"}
    assert len({one.split_group for one in alone}) == 3
    assert entry_of(frozen([*hour, *alone]), 7).captured_at == ""


def test_boxes_are_kept_in_the_order_of_their_place() -> None:
    dataset = detection(boxed(1, box("bolt", x=99), box("nut", x=3, y=470, width=637, height=10)), boxed(2))
    assert entry_of(dataset, 1).boxes == (
        Box(label="nut", x=3.0, y=470.0, width=637.0, height=10.0),
        Box(label="bolt", x=99.0, y=20.0, width=30.0, height=40.0),
    )
    assert dataset.classes == ("bolt", "nut")
    assert entry_of(dataset, 1).label == ""
    assert dataset.statistics.splits["train"].labels == {"bolt": 1, "nut": 1}


def test_a_picture_without_boxes_is_background_and_one_nobody_looked_at_is_left_out() -> None:
    dataset = detection(boxed(1, box()), boxed(2), item(3, label="", boxes=None))
    assert [entry_of(dataset, n).boxes == () for n in (1, 2)] == [False, True]
    assert dataset.statistics.unlabelled == 1
    assert len(dataset.entries) == 2


@pytest.mark.parametrize("wrong", [box(x=700), box(y=470, height=10.001), box(x=0, width=641)])
def test_a_box_that_is_not_in_the_picture_is_told_by_the_items_name(wrong: Box) -> None:
    error = refusal([boxed(1, wrong), boxed(2, box())], task="detection", shares={"train": 1})
    assert error.fields[0][0] == "file-1"
    assert "sticks out" in error.fields[0][1]


def test_what_is_said_twice_of_a_picture_must_be_the_same() -> None:
    same = detection(boxed(1, box(), box("nut")), boxed(1, box("nut"), box(), name="copy"))
    assert same.statistics.repeated == 1
    error = refusal([boxed(1, box()), boxed(1, box("nut"), name="copy")], task="detection", shares={"train": 1})
    assert error.fields == (("copy", "shows what file-1 shows: its boxes are others"),)
    error = refusal([*MANY, item(1, label="bad", name="copy")])
    assert error.fields == (("copy", "shows what file-1 shows: 'bad', there 'good'"),)


def test_a_classification_leaves_boxes_out_and_a_detection_labels() -> None:
    both = [item(n, boxes=(box(),)) for n in range(20)]
    assert all(entry.label and not entry.boxes for entry in frozen(both).entries)
    assert all(entry.boxes and not entry.label for entry in frozen(both, task="detection").entries)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"picture": "../etc/passwd"}, "picture"),
        ({"width": 0}, "width"),
        ({"camera": "line\x1b[2J"}, "cannot be printed"),
        ({"label": "x" * 201}, "label"),
        ({"label": " \u2028"}, "cannot be printed"),
        ({"captured_at": datetime(2025, 1, 1)}, "no time with a zone"),
        ({"group": "g" * 401}, "group"),
        ({"sample": "not a ulid"}, "sample"),
        ({"media_type": "text/html"}, "media_type"),
    ],
)
def test_fields_that_no_manifest_may_hold_are_told_by_the_items_name(fields: dict[str, Any], words: str) -> None:
    error = refusal([item(1, **fields), *MANY[2:]])
    assert error.reason is Reason.FIELD_INVALID
    assert error.fields[0][0] == "file-1"
    assert words in error.fields[0][1]


def test_classes_and_tasks_that_are_none_are_refused() -> None:
    assert refusal(MANY, classes=["good", "bad", "good"]).fields[0][0] == "classes"
    assert refusal(MANY, task="segmentation").fields[0][0] == "task"
    assert frozen(MANY, classes=["unsure", "good", "bad"]).classes == ("unsure", "good", "bad")


def test_given_groups_fill_splits_so_that_no_drawn_one_is_moved() -> None:
    groups = [f"g{n}" for n in range(30)]
    free = divide(groups, 7)
    given = divide([*groups, "v", "t"], 7, given={"v": "val", "t": "test"})
    assert given["v"] == "val"
    assert given["t"] == "test"
    assert sum(free[group] != given[group] for group in groups) == 0


def test_no_drawn_group_is_moved_into_a_split_that_given_ones_fill() -> None:
    train = [group for group, split in divide([f"g{n}" for n in range(30)], 7).items() if split == "train"][:3]
    division = divide([*train, "v", "t"], 7, given={"v": "val", "t": "test"})
    assert [division[group] for group in train] == ["train"] * 3


def test_one_drawn_group_among_given_ones_goes_where_nothing_is() -> None:
    given = {f"g{n}": SPLITS[0] for n in range(9)}
    division = divide([*given, "new"], 1, {"train": 0.5, "val": 0.5}, given)
    assert division["new"] == "val"


def test_a_moment_is_written_in_utc_with_microseconds() -> None:
    (entry,) = frozen([item(1, captured_at=NOW)], shares={"train": 1}).entries
    assert entry.captured_at == "2025-03-04T10:00:00.000000+00:00"


def test_what_makes_too_large_a_manifest_is_refused_when_it_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [item(n) for n in range(4)]
    size_bytes = len(freeze_items(items, seed=1).to_json())
    monkeypatch.setattr(freeze, "MAX_MANIFEST_BYTES", size_bytes)
    freeze_items(items, seed=1)
    monkeypatch.setattr(freeze, "MAX_MANIFEST_BYTES", size_bytes - 1)
    with pytest.raises(MeshError, match="divide them into several datasets") as error:
        freeze_items(items, seed=1)
    assert error.value.reason is Reason.FIELD_INVALID


def test_more_boxes_than_a_manifest_may_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [boxed(n, box("bolt"), box("nut")) for n in range(4)]
    monkeypatch.setattr(manifest, "MAX_ALL_BOXES", 8)
    data = freeze_items(boxes, task="detection", seed=1).to_json()
    monkeypatch.setattr(manifest, "MAX_ALL_BOXES", 7)
    with pytest.raises(MeshError, match="8 boxes, more than 7"):
        freeze_items(boxes, task="detection", seed=1)
    with pytest.raises(MeshError, match="8 boxes, more than 7") as error:
        Dataset.from_json(data)
    assert error.value.reason is Reason.FIELD_INVALID
