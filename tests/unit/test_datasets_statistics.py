"""Figures of a dataset: what is where, what is missing, how uneven it is, and how light its pictures are."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import pytest
from PIL import Image

from splitmesh.datasets.divide import Split
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Dataset
from splitmesh.datasets.statistics import MOST_NAMED, Spread, describe, measure_light
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import NOW, box, boxed, digest_of, encoded, item, scene

SPLITS: tuple[Split, ...] = ("train", "train", "train", "train", "val", "test")


def sorted_out() -> Dataset:
    """Six good pictures and two bad ones; the bad ones are all Paris's, one in train, one in test."""
    items = [
        item(n, label="good", camera="c1", group=f"g{n}", split=SPLITS[n], captured_at=NOW + timedelta(days=n))
        for n in range(6)
    ]
    bad = {"label": "bad", "site": "paris", "camera": "c9", "captured_at": None, "width": 320}
    items += [item(6, group="g0", split="train", **bad), item(7, group="g7", split="test", **bad)]
    return freeze_items(items, seed=1, classes=["good", "bad", "unsure"])


def test_parts_are_counted_by_split_site_and_camera() -> None:
    found = describe(sorted_out())
    assert (found.task, found.all.pictures, found.all.groups) == ("classification", 8, 7)
    assert found.all.picture_bytes == sum(1000 + n for n in range(8))
    assert found.all.labels == {"good": 6, "bad": 2, "unsure": 0}
    assert {split: part.pictures for split, part in found.splits.items()} == {"train": 5, "val": 1, "test": 2}
    assert found.splits["test"].labels == {"good": 1, "bad": 1, "unsure": 0}
    assert {site: (part.pictures, part.groups) for site, part in found.sites.items()} == {
        "lyon": (6, 6),
        "paris": (2, 2),
    }
    assert list(found.cameras) == ["lyon/c1", "paris/c9"]
    assert found.sizes == {"640 x 480": 6, "320 x 480": 2}
    assert found.media_types == {"image/jpeg": 8}
    assert found.group_sizes == Spread(7, 1.0, 1.0, 8 / 7, 2.0)


def test_classes_that_a_split_has_none_of_are_named() -> None:
    dataset = sorted_out()
    missing = {"train": ("unsure",), "val": ("bad", "unsure"), "test": ("unsure",)}
    assert describe(dataset).missing == missing
    whole = freeze_items([item(n) for n in range(9)], seed=1, shares={"train": 1})
    assert describe(whole).missing == {"train": (), "val": (), "test": ()}


def test_captures_are_told_from_first_to_last_and_unknown_ones_counted() -> None:
    found = describe(sorted_out())
    assert found.all.first_capture == "2025-03-04T10:00:00.000000+00:00"
    assert found.all.last_capture == "2025-03-09T10:00:00.000000+00:00"
    assert found.sites["paris"].first_capture == ""
    assert found.unknown_captures == 2


def test_how_uneven_labels_are_is_a_figure_for_classes_and_for_sites() -> None:
    found = describe(sorted_out())
    assert found.imbalance == 3
    assert found.balance == pytest.approx(0.5119, abs=1e-4)  # entropy of 3/4 and 1/4 by that of three equal classes
    assert found.all.skew == 0
    assert found.sites["paris"].skew == pytest.approx(0.75)
    assert found.sites["lyon"].skew == pytest.approx(0.25)
    even = describe(freeze_items([item(n, label="ab"[n % 2]) for n in range(20)], seed=1, shares={"train": 1}))
    assert even.imbalance == 1
    assert even.balance == pytest.approx(1)


def test_a_detection_is_told_by_boxes_and_background() -> None:
    items = [
        boxed(0, box(width=64, height=48), box("nut"), box("nut")),
        boxed(1, box()),
        boxed(2),
        boxed(3),
    ]
    found = describe(freeze_items(items, task="detection", seed=1, shares={"train": 1}))
    assert found.all.background == 2
    assert found.all.labels == {"bolt": 2, "nut": 2}
    assert found.boxes == Spread(4, 0, 0.5, 1.0, 3)
    assert found.box_shares.most == pytest.approx(0.01)
    assert found.box_shares.count == 4


def test_only_the_most_frequent_cameras_and_sizes_are_named() -> None:
    items = [item(n, camera=f"c{n % 150:03}", width=100 + n % 150) for n in range(310)]
    found = describe(freeze_items(items, seed=1, shares={"train": 1}))
    assert (len(found.cameras), found.other_cameras) == (MOST_NAMED, 50)
    assert found.cameras["lyon/c000"].pictures == 3
    assert "lyon/c149" not in found.cameras
    assert sum(found.sizes.values()) + found.other_sizes == 310


def test_figures_are_plain_values() -> None:
    assert asdict(describe(sorted_out()))["splits"]["train"]["labels"]["good"] == 4


def test_light_is_measured_on_the_pictures_that_are_there() -> None:
    pictures = [
        encoded(Image.new("L", (50, 40), 51)),
        encoded(Image.new("L", (50, 40), 204)),
        encoded(scene(1)),
        encoded(scene(2), "JPEG"),
    ]
    items = [item_of(data, label="x", split="val" if n == 3 else "train") for n, data in enumerate(pictures)]
    dataset = freeze_items([*items, item(9, label="x", split="val")], seed=1)
    at_hand = {digest_of(data): data for data in pictures[:3]} | {digest_of(pictures[3]): pictures[3][:-50]}

    def read(digest: str) -> bytes:
        if digest in at_hand:
            return at_hand[digest]
        raise MeshError(Reason.ARTIFACT_NOT_FOUND, "it stayed at its site")

    light = measure_light(dataset, read)
    train = light.brightness["train"]
    assert train.count == 3
    assert [train.least, train.most] == pytest.approx([0.2, 0.8])
    assert light.contrast["train"].least == pytest.approx(0, abs=1e-9)
    assert light.contrast["train"].most > 0.1
    assert light.unreadable == 2
    assert light.brightness["val"] == light.brightness["test"] == Spread(0, 0, 0, 0, 0)


def test_light_of_a_large_dataset_is_measured_on_evenly_chosen_pictures_and_progress_is_told() -> None:
    dataset = freeze_items([item(n) for n in range(100)], seed=1)
    asked: list[str] = []
    told: list[tuple[int, int]] = []

    def read(digest: str) -> bytes:
        asked.append(digest)
        return encoded(Image.new("L", (10, 10), 100))

    measure_light(dataset, read, limit=10, on_progress=lambda *at: told.append(at))
    assert asked == [dataset.entries[10 * n].picture for n in range(10)]
    assert told[-1] == (10, 10)


def test_an_error_that_is_not_the_pictures_is_raised() -> None:
    def read(digest: str) -> bytes:
        raise MeshError(Reason.SERVICE_UNAVAILABLE, "the disk is away")

    with pytest.raises(MeshError, match="the disk is away"):
        measure_light(sorted_out(), read)
