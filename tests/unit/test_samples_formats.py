"""Samples exported for labelling tools and trainers."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitmesh.compress.sample_files import find_pictures
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.formats import COLUMNS, Exported, export_coco, export_folder
from splitmesh.samples.kept import Added
from splitmesh.samples.labelling import Index, labels_of
from splitmesh.samples.record import SampleRecord
from splitmesh.samples.store import SampleStore
from tests.unit.sample_records import NOW, ROOMY, add, picture, sample, spread

EXPORTS = pytest.mark.parametrize("export", [export_coco, export_folder])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two labelled samples, one without a label, one without a picture, and one that shows what the first shows."""
    with SampleStore(tmp_path_factory.mktemp("store"), ROOMY) as made:
        add(made, 1, tail_label="bad", tail_confidence=0.75, ease=0.125, why='a "reason", and more')
        assert isinstance(made.add(sample(2, version=4), picture(spread(1))), Added)
        add(made, 3)
        add(made, 4)
        made.add(sample(5))
        made.label_all({sample(1).id: "bad", sample(3).id: "good"}, "ana", NOW)
        yield made


def records(store: SampleStore) -> list[SampleRecord]:
    return [one.record for one in store.list().samples]


def by_minute(store: SampleStore, n: int) -> SampleRecord:
    return store.get(sample(n).id).record


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_coco_has_each_picture_once_and_an_annotation_over_the_whole_of_each_labelled_one(
    store: SampleStore, tmp_path: Path
) -> None:
    assert export_coco(records(store), store.picture, tmp_path / "out") == Exported(3, 2, 1)
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert document["categories"] == [
        {"id": 1, "name": "bad", "supercategory": ""},
        {"id": 2, "name": "good", "supercategory": ""},
    ]
    images = {image["id"]: image for image in document["images"]}
    assert [image["file_name"] for image in images.values()] == sorted(
        f"images/{by_minute(store, n).picture}.png" for n in (1, 3, 4)
    )
    said = {images[entry["image_id"]]["sample"]: entry for entry in document["annotations"]}
    assert {key: entry["category_id"] for key, entry in said.items()} == {sample(1).id: 1, sample(3).id: 2}
    assert all((entry["bbox"], entry["area"], entry["iscrowd"]) == ([0, 0, 9, 8], 72, 0) for entry in said.values())
    assert all((image["width"], image["height"]) == (9, 8) for image in images.values())
    for image in images.values():
        assert (tmp_path / "out" / image["file_name"]).read_bytes() == store.picture(image["sample"])


def test_class_folders_hold_the_pictures_and_the_table_tells_the_rest(store: SampleStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_folder(records(store), store.picture, out, classes=["bad", "good", "unsure"]) == Exported(3, 2, 1)
    assert sorted(path.name for path in out.iterdir()) == ["_unlabelled", "bad", "good", "labels.csv", "unsure"]
    with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    first = by_minute(store, 1)
    row = rows[first.id]
    assert tuple(row) == COLUMNS
    assert row["image"] == f"bad/{first.picture}.png"
    assert (row["label"], row["group"], row["ease"]) == ("bad", "lyon/line-1/2025-03-04T10", "0.125")
    assert (row["why"], row["captured_at"]) == ('a "reason", and more', "2025-03-04T10:01:00+00:00")
    assert rows[sample(4).id]["image"].startswith("_unlabelled/")
    for sample_id, row in rows.items():
        assert (out / row["image"]).read_bytes() == store.picture(sample_id)


@EXPORTS
def test_what_is_exported_can_be_compressed_with(store: SampleStore, tmp_path: Path, export: Any) -> None:
    export(records(store), store.picture, tmp_path / "out")
    found = find_pictures(tmp_path / "out", ["bad", "good"])
    assert {(one.path.stem, one.label) for one in found} == {
        (by_minute(store, 1).picture, "bad"),
        (by_minute(store, 3).picture, "good"),
        (by_minute(store, 4).picture, ""),
    }


@EXPORTS
def test_the_same_samples_in_any_order_give_the_same_bytes(store: SampleStore, tmp_path: Path, export: Any) -> None:
    export(records(store), store.picture, tmp_path / "one")
    export(records(store)[::-1], store.picture, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_categories_follow_the_models_classes(store: SampleStore, tmp_path: Path) -> None:
    export_coco(records(store), store.picture, tmp_path / "out", classes=["good", "bad", "unsure"])
    document = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [(one["id"], one["name"]) for one in document["categories"]] == [(1, "good"), (2, "bad"), (3, "unsure")]
    assert sorted(entry["category_id"] for entry in document["annotations"]) == [1, 2]


@EXPORTS
@pytest.mark.parametrize(
    ("change", "classes", "told"),
    [
        ({"label": "good", "labelled_by": "bo", "labelled_at": NOW}, (), "shows what"),
        ({}, ("good",), "none of the classes"),
    ],
)
def test_labels_that_contradict_are_told_and_nothing_is_written(
    store: SampleStore, tmp_path: Path, export: Any, change: dict[str, Any], classes: tuple[str, ...], told: str
) -> None:
    given = [replace(one, **change) if one.id == sample(2).id else one for one in records(store)]
    with pytest.raises(MeshError, match=told) as error:
        export(given, store.picture, tmp_path / "out", classes=classes)
    assert error.value.reason is Reason.FIELD_INVALID
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", ".hidden", "_unlabelled", "labels.csv", "é" * 128])
def test_a_label_that_can_name_no_folder_is_refused(store: SampleStore, tmp_path: Path, name: str) -> None:
    given = [replace(by_minute(store, 1), label=name)]
    with pytest.raises(MeshError, match="folder") as error:
        export_folder(given, store.picture, tmp_path / "out")
    assert error.value.fields[0][0] == name
    assert list(tmp_path.iterdir()) == []
    assert export_coco(given, store.picture, tmp_path / "out").labelled == 1


@EXPORTS
def test_an_export_that_fails_leaves_nothing(store: SampleStore, tmp_path: Path, export: Any) -> None:
    def fails(sample_id: str) -> bytes:
        if sample_id == sample(3).id:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the disk is broken")
        return store.picture(sample_id)

    with pytest.raises(MeshError, match="broken"):
        export(records(store), fails, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@EXPORTS
@pytest.mark.parametrize(
    ("reason", "lost"),
    [
        (Reason.SAMPLE_NOT_FOUND, (1, 0)),
        (Reason.ARTIFACT_NOT_FOUND, (1, 0)),
        (Reason.DIGEST_MISMATCH, (0, 1)),
    ],
)
def test_a_picture_that_was_let_go_of_meanwhile_or_is_damaged_is_left_out(
    store: SampleStore, tmp_path: Path, export: Any, reason: Reason, lost: tuple[int, int]
) -> None:
    def gone(sample_id: str) -> bytes:
        if sample_id == sample(3).id:
            raise MeshError(reason, "gone")
        return store.picture(sample_id)

    whole = export(records(store), store.picture, tmp_path / "whole")
    told = export(records(store), gone, tmp_path / "out")
    assert (told.pictures, told.gone, told.damaged) == (whole.pictures - 1, *lost)
    pictures = {path.name for path in (tmp_path / "whole").rglob("*.png")}
    left = {path.name for path in (tmp_path / "out").rglob("*.png")}
    assert pictures - left == {f"{store.get(sample(3).id).record.picture}.png"}
    for table in (tmp_path / "out").glob("*.[cj]s*"):
        assert (store.get(sample(3).id).record.picture or "") not in table.read_text()


@EXPORTS
def test_a_folder_that_holds_something_is_not_touched(store: SampleStore, tmp_path: Path, export: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out, target_is_directory=True)
    with pytest.raises(MeshError, match="folder"):
        export(records(store), store.picture, tmp_path / "link")
    export(records(store), store.picture, out)
    before = contents(out)
    with pytest.raises(MeshError, match="folder"):
        export(records(store), store.picture, out)
    assert contents(out) == before


@EXPORTS
def test_of_no_samples_there_is_an_empty_export(tmp_path: Path, export: Any) -> None:
    assert export([], lambda _: b"", tmp_path / "out") == Exported(0, 0, 0)
    assert (tmp_path / "out").is_dir()


@EXPORTS
def test_the_folder_one_works_in_is_refused_by_name_and_one_below_it_is_not(
    store: SampleStore, tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for folder in (Path(), here):
        with pytest.raises(MeshError, match=str(here)) as error:
            export(records(store), store.picture, folder)
        assert error.value.reason is Reason.FIELD_INVALID
    assert [path.name for path in tmp_path.rglob("*")] == ["here"]
    export(records(store), store.picture, Path("out"))
    assert (here / "out").is_dir()


def test_no_cell_of_the_table_is_a_formula_and_labels_come_back_as_they_were(tmp_path: Path) -> None:
    labels = ["=1+1", "-1", "+", "@x", "'=y"]
    with SampleStore(tmp_path / "store", ROOMY) as made:
        for n, label in enumerate(labels):
            add(made, n, camera="=cmd|' /C calc'!A0", site="-lyon", tail_label=label)
            made.label(sample(n).id, label, "ana", NOW)
        out = tmp_path / "out"
        export_folder(records(made), made.picture, out)
        with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row if cell]
        assert "'=cmd|' /C calc'!A0" in cells
        assert {cell[0] for cell in cells}.isdisjoint("=+-@\t")
        given = {sample(n).id: label for n, label in enumerate(labels)}
        assert labels_of(out, Index(records(made)), form="csv") == given
    found = find_pictures(out, labels)
    assert {one.label for one in found} == set(labels)
    assert {one.group for one in found} == {"-lyon/=cmd|' /C calc'!A0/2025-03-04T10"}
    assert all(one.path.is_file() for one in found)
