"""What a trainer gets: the right pictures and targets, boxes where the model sees them, and no damaged one unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splitmesh.datasets.divide import Split
from splitmesh.datasets.folder import FolderLimits, PictureFolder
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.loading import Boxes, load
from splitmesh.datasets.manifest import Box, Dataset, Entry
from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import Preprocess
from tests.unit.dataset_items import digest_of, encoded, scene

SMALL = Preprocess(width=12, height=10, mode="L", mean=(0.5,), std=(0.5,))
PICTURES = [encoded(scene(n)) for n in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> PictureFolder:
    return PictureFolder(tmp_path / "site", FolderLimits(min_free_bytes=0))


def classified(folder: PictureFolder) -> Dataset:
    """Eight pictures, six of them to train with, in two classes."""
    splits: list[Split] = ["train", "train", "val", "train", "test", "train", "train", "train"]
    for data in PICTURES:
        folder.add(data)
    return freeze_items(
        [item_of(data, label=("bad", "good")[n % 2], split=splits[n]) for n, data in enumerate(PICTURES)], seed=1
    )


def test_a_splits_pictures_come_in_the_manifests_order_with_their_classes(folder: PictureFolder) -> None:
    dataset = classified(folder)
    found = list(load(dataset, folder, "train", SMALL))
    wanted = [entry for entry in dataset.entries if entry.split == "train"]
    assert [one.entry for one in found] == wanted
    by_digest = {digest_of(data): (data, n % 2) for n, data in enumerate(PICTURES)}
    for one in found:
        data, number = by_digest[one.entry.picture]
        assert one.target == number
        np.testing.assert_array_equal(one.array, SMALL.batch([data])[0])
    assert len(list(load(dataset, folder, None, SMALL))) == 8


def test_targets_are_numbers_of_the_models_classes_in_its_order(folder: PictureFolder) -> None:
    dataset = classified(folder)
    names = ["unsure", "good", "bad"]
    for one in load(dataset, folder, None, SMALL, classes=names):
        assert isinstance(one.target, int)
        assert names[one.target] == one.entry.label


@pytest.mark.parametrize(("split", "classes", "field"), [("held", (), "split"), ("train", ("good", "ugly"), "classes")])
def test_what_does_not_fit_is_refused_before_the_first_picture(
    folder: PictureFolder, split: Any, classes: tuple[str, ...], field: str
) -> None:
    with pytest.raises(MeshError) as error:
        load(classified(folder), folder, split, SMALL, classes=classes)
    assert error.value.fields[0][0] == field


def damage(folder: PictureFolder, tmp_path: Path, how: str) -> str:
    """Hurts one picture of the training; its digest."""
    digest = digest_of(PICTURES[3])
    path = tmp_path / "site" / "pictures" / digest[:2] / digest[2:4] / digest
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(PICTURES[4])
    return digest


@pytest.mark.parametrize(("how", "reason"), [("missing", "ARTIFACT_NOT_FOUND"), ("swapped", "DIGEST_MISMATCH")])
def test_a_picture_that_is_not_what_it_was_is_an_error_that_names_it(
    folder: PictureFolder, tmp_path: Path, how: str, reason: str
) -> None:
    dataset = classified(folder)
    digest = damage(folder, tmp_path, how)
    with pytest.raises(MeshError) as error:
        list(load(dataset, folder, "train", SMALL))
    assert error.value.reason is Reason(reason)
    assert digest in error.value.message
    assert error.value.metadata["sha256"] == digest


@pytest.mark.parametrize("how", ["missing", "swapped"])
def test_on_request_such_a_picture_is_left_out_and_told_of(folder: PictureFolder, tmp_path: Path, how: str) -> None:
    dataset = classified(folder)
    digest = damage(folder, tmp_path, how)
    told: list[Entry] = []
    found = list(load(dataset, folder, "train", SMALL, on_damaged=lambda entry, _: told.append(entry)))
    assert [entry.picture for entry in told] == [digest]
    assert len(found) == 5


def test_a_picture_that_cannot_be_decoded_or_is_too_large_is_named(folder: PictureFolder) -> None:
    dataset = classified(folder)
    with pytest.raises(MeshError) as error:
        list(load(dataset, folder, "train", SMALL, max_pixels=100))
    assert error.value.reason is Reason.IMAGE_TOO_LARGE
    assert any(entry.picture in error.value.message for entry in dataset.entries)


def test_an_error_that_is_not_the_pictures_is_not_left_out(folder: PictureFolder) -> None:
    class Unreachable:
        def read(self, digest: str) -> bytes:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the disk is away")

    with pytest.raises(MeshError, match="the disk is away"):
        list(load(classified(folder), Unreachable(), None, SMALL, on_damaged=lambda entry, error: None))


def test_one_picture_is_read_at_a_time(folder: PictureFolder) -> None:
    dataset = classified(folder)
    read: list[str] = []

    class Counting:
        def read(self, digest: str) -> bytes:
            read.append(digest)
            return folder.read(digest)

    stream = load(dataset, Counting(), None, SMALL)
    assert read == []
    next(stream)
    assert len(read) == 1


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> bytes:
    """Black, with a white box: left, top, right, bottom."""
    image = Image.new("L", (width, height))
    image.paste(255, box)
    return encoded(image)


@pytest.mark.parametrize("resize", ["stretch", "centre_crop"])
@pytest.mark.parametrize(("width", "height"), [(200, 100), (100, 200), (120, 120)])
def test_boxes_are_where_the_model_sees_them(folder: PictureFolder, resize: Any, width: int, height: int) -> None:
    left, top, right, bottom = 40, 60, 80, 90
    data = marked(width, height, (left, top, right, bottom))
    folder.add(data)
    box = Box(label="bolt", x=left, y=top, width=right - left, height=bottom - top)
    dataset = freeze_items([item_of(data, boxes=(box,))], task="detection", seed=1, shares={"train": 1})
    preprocess = Preprocess(width=60, height=50, mode="L", resize=resize)
    ((array, target, _),) = load(dataset, folder, "train", preprocess)
    assert isinstance(target, Boxes)
    assert target.labels.tolist() == [0]
    rows, columns = np.nonzero(array[0] > 0.5)
    seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert target.corners[0] == pytest.approx(seen, abs=1.0)


def test_a_box_that_the_crop_leaves_out_is_left_out_and_one_it_cuts_is_cut(folder: PictureFolder) -> None:
    data = marked(200, 100, (0, 0, 1, 1))
    folder.add(data)
    boxes = tuple(
        Box(label=name, x=x, y=10.0, width=40.0, height=20.0)
        for name, x in (("outside", 0.0), ("quarter", 20.0), ("less", 19.0), ("whole", 80.0))
    )
    dataset = freeze_items([item_of(data, boxes=boxes)], task="detection", seed=1, shares={"train": 1})
    crop = Preprocess(width=100, height=100, mode="L", resize="centre_crop")
    ((_, target, _),) = load(dataset, folder, "train", crop)
    assert isinstance(target, Boxes)
    assert [dataset.classes[number] for number in target.labels] == ["quarter", "whole"]
    assert target.corners.tolist() == [[0, 10, 10, 30], [30, 10, 70, 30]]


def test_a_picture_of_the_background_has_no_boxes(folder: PictureFolder) -> None:
    folder.add(PICTURES[0])
    dataset = freeze_items([item_of(PICTURES[0], boxes=())], task="detection", seed=1, shares={"train": 1})
    ((_, target, _),) = load(dataset, folder, "train", SMALL)
    assert isinstance(target, Boxes)
    assert target.corners.shape == (0, 4)
    assert target.labels.shape == (0,)
