"""Datasets written as files of other tools: what comes back is what was there, and a folder appears whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitmesh.datasets.divide import SPLITS
from splitmesh.datasets.files import FORMS, Form, write
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import Item, item_of
from splitmesh.datasets.manifest import Box, Dataset
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_files import found_in, frozen, png

REAL = Path(__file__).parents[3] / "shared" / "data" / "solder_joints"
SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}
DATA = {hashlib.sha256(png(n)).hexdigest(): png(n) for n in range(12)}


def read(digest: str) -> bytes:
    if digest not in DATA:
        raise MeshError(Reason.ARTIFACT_NOT_FOUND, "gone")
    return DATA[digest]


def classification(labels: tuple[str, ...] = ("bad", "good")) -> Dataset:
    return made("classification", lambda n: {"label": labels[n % len(labels)]}, labels)


def detection() -> Dataset:
    def boxes(n: int) -> dict[str, Any]:
        # Sides that are no round shares of the picture; a picture in three has nothing on it.
        found = (
            Box(label="bad", x=round(n / 3, 3), y=0.143, width=6.667, height=9.857),
            Box(label="good", x=0, y=0, width=20, height=10),
        )
        return {"boxes": found[: n % 3]}

    return made("detection", boxes, ("bad", "good"))


def made(task: Any, said: Callable[[int], dict[str, Any]], classes: tuple[str, ...]) -> Dataset:
    def item(n: int) -> Item:
        told: dict[str, Any] = {"site": "lyon", "camera": "=cmd", "group": f"u{n}", "provenance": "test"}
        told["captured_at"] = datetime(2026, 3, 1, 13, n, tzinfo=UTC) if n % 2 else None
        return item_of(png(n), **told, **said(n))

    return freeze_items([item(n) for n in range(12)], task=task, seed=3, shares=SHARES, classes=classes)  # type: ignore[arg-type]


def said(dataset: Dataset, *names: str) -> list[tuple[object, ...]]:
    return [
        tuple(getattr(entry, name) for name in ("picture", "label", "boxes", "split", *names))
        for entry in dataset.entries
    ]


@pytest.mark.parametrize(
    ("form", "make"),
    [
        *(("imagefolder", classification), ("csv", classification), ("coco", classification)),
        *(("csv", detection), ("coco", detection), ("yolo", detection)),
    ],
)
def test_what_is_written_is_read_as_it_was(tmp_path: Path, form: Any, make: Callable[[], Dataset]) -> None:
    dataset = make()
    assert write(dataset, read, tmp_path / "one", form).pictures == 12
    back = frozen(tmp_path / "one", form)
    more = () if form in ("imagefolder", "yolo") else ("group", "site", "camera", "captured_at")
    assert said(back, *more) == said(dataset, *more)
    assert (back.task, back.classes) == (dataset.task, dataset.classes)
    write(back, read, tmp_path / "two", form)
    assert said(frozen(tmp_path / "two", form)) == said(dataset)


def test_class_folders_have_every_class_in_every_split_and_a_table_of_the_rest(tmp_path: Path) -> None:
    dataset = classification(("bad", "good", "never"))
    kept = dataset.model_copy(update={"classes": (*dataset.classes, "empty")})
    write(kept, read, tmp_path / "out", "imagefolder")
    for split in SPLITS:
        assert sorted(path.name for path in (tmp_path / "out" / split).iterdir()) == ["bad", "empty", "good", "never"]
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {f"u{n}" for n in range(12)}
    assert {row["camera"] for row in rows} == {"'=cmd"}
    by_table = frozen(tmp_path / "out", "csv")
    assert said(by_table, "group", "camera") == said(dataset, "group", "camera")


def test_coco_has_a_file_for_each_split_with_all_categories(tmp_path: Path) -> None:
    dataset = detection()
    write(dataset, read, tmp_path / "out", "coco")
    seen = []
    for split in SPLITS:
        document = json.loads((tmp_path / "out" / "annotations" / f"{split}.json").read_text())
        assert [one["name"] for one in document["categories"]] == ["bad", "good"]
        assert len({one["id"] for one in document["annotations"]}) == len(document["annotations"])
        assert all(one["area"] == one["bbox"][2] * one["bbox"][3] for one in document["annotations"])
        seen += [one["file_name"] for one in document["images"]]
    assert sorted(seen) == sorted(f"images/{entry.picture}.png" for entry in dataset.entries)
    assert all((tmp_path / "out" / name).read_bytes() == DATA[Path(name).stem] for name in seen)


def test_yolo_is_laid_out_as_ultralytics_reads_it(tmp_path: Path) -> None:
    dataset = detection()
    write(dataset, read, tmp_path / "out", "yolo")
    config = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert config == {
        **{split: f"images/{split}" for split in config if split != "names"},
        "names": {0: "bad", 1: "good"},
    }
    for entry in dataset.entries:
        assert (tmp_path / "out" / config[entry.split] / f"{entry.picture}.png").is_file()
        lines = (tmp_path / "out" / "labels" / entry.split / f"{entry.picture}.txt").read_text().splitlines()
        assert len(lines) == len(entry.boxes)
        for line, box in zip(lines, entry.boxes, strict=True):
            number, x, _, width, _ = line.split()
            assert dataset.classes[int(number)] == box.label
            assert float(x) * 20 - float(width) * 10 == pytest.approx(box.x, abs=1e-6)


@pytest.mark.parametrize(("form", "make"), [("imagefolder", detection), ("yolo", classification), ("zip", detection)])
def test_a_form_that_cannot_hold_the_task_is_refused(tmp_path: Path, form: Any, make: Callable[[], Dataset]) -> None:
    with pytest.raises(MeshError, match="form"):
        write(make(), read, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["../up", "a/b", ".hidden", "_unlabelled"])
def test_a_class_that_can_name_no_folder_is_refused(tmp_path: Path, label: str) -> None:
    dataset = classification((label, "good"))
    with pytest.raises(MeshError, match="folder") as error:
        write(dataset, read, tmp_path / "out", "imagefolder")
    assert error.value.fields[0][0] == label
    assert list(tmp_path.iterdir()) == []
    write(dataset, read, tmp_path / "out", "csv")
    assert frozen(tmp_path / "out", "csv").classes == tuple(sorted((label, "good")))


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_that_is_not_there_leaves_nothing_unless_it_may_be_left_out(tmp_path: Path, form: Form) -> None:
    dataset = detection() if form == "yolo" else classification()
    lost = dataset.entries[5].picture

    def without(digest: str) -> bytes:
        return read("x" if digest == lost else digest)

    with pytest.raises(MeshError) as error:
        write(dataset, without, tmp_path / "out", form)
    assert error.value.reason is Reason.ARTIFACT_NOT_FOUND
    assert list(tmp_path.iterdir()) == []
    told: list[tuple[int, int]] = []
    done = write(dataset, without, tmp_path / "out", form, skip_missing=True, on_picture=lambda *at: told.append(at))
    assert (done.pictures, done.missing, told[-1]) == (11, 1, (12, 12))
    assert lost not in {entry.picture for entry in frozen(tmp_path / "out", form).entries}


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_whose_pictures_are_all_elsewhere_is_written_and_refused_on_the_way_back(
    tmp_path: Path, form: Form
) -> None:
    dataset = detection() if form == "yolo" else classification()
    done = write(dataset, lambda _: read("x"), tmp_path / "out", form, skip_missing=True)
    assert (done.pictures, done.missing) == (0, 12)
    with pytest.raises(MeshError, match="holds no pictures"):
        found_in(tmp_path / "out", form)


@pytest.mark.skipif(not REAL.is_dir(), reason="the pictures of ../shared/data are not here")
def test_real_pictures_go_through_coco_and_come_back(tmp_path: Path) -> None:
    found = found_in(REAL, "csv")
    paths = {one.item.picture: one.path for one in found.pictures}
    dataset = freeze_items([one.item for one in found.pictures], task=found.task, seed=0, classes=found.classes)
    counts = {split: found.pictures for split, found in dataset.statistics.splits.items()}
    assert counts == {"train": 1214, "val": 401, "test": 401}
    write(dataset, lambda digest: paths[digest].read_bytes(), tmp_path / "out", "coco")
    assert said(frozen(tmp_path / "out", "coco"), "group", "site") == said(dataset, "group", "site")
