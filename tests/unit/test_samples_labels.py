"""Labels that come back from COCO, class folders and tables: to the right samples, or to none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitmesh.datasets.files import inside
from splitmesh.datasets.problems import MAX_TOLD
from splitmesh.errors import MeshError, Reason
from splitmesh.samples import labelling
from splitmesh.samples.formats import export_coco, export_folder
from splitmesh.samples.kept import Added
from splitmesh.samples.labelling import Imported, import_labels
from splitmesh.samples.store import SampleStore
from tests.unit.sample_records import NOW, ROOMY, add, picture, sample, spread


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    with SampleStore(tmp_path / "store", ROOMY) as made:
        for n in (1, 2, 3):
            add(made, n)
        assert isinstance(made.add(sample(4, version=4), picture(spread(1))), Added)
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def digest(store: SampleStore, n: int) -> str:
    return store.get(sample(n).id).record.picture or ""


def labels(store: SampleStore) -> dict[int, str | None]:
    return {n: store.get(sample(n).id).record.label for n in (1, 2, 3, 4)}


def bring(store: SampleStore, source: Path, form: Any, **options: Any) -> Imported:
    return import_labels(store, source, form=form, by="ana", at=NOW, **options)


def problems(store: SampleStore, source: Path, form: Any, **options: Any) -> dict[str, str]:
    """What an import is refused with; no label may have changed."""
    before = labels(store)
    with pytest.raises(MeshError) as error:
        bring(store, source, form, **options)
    assert error.value.reason is Reason.FIELD_INVALID
    assert labels(store) == before
    return dict(error.value.fields)


def table(source: Path, *rows: str, header: str = "image,label") -> Path:
    (source / "labels.csv").write_text("\n".join([header, *rows]) + "\n")
    return source


def coco(source: Path, images: list[Any], annotations: list[Any], categories: Any = ("bad", "good")) -> Path:
    document = {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [{"image_id": image, "category_id": category} for image, category in annotations],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories)],
    }
    (source / "result.json").write_text(json.dumps(document))
    return source


def move_all(out: Path, name: str) -> None:
    for path in (out / "_unlabelled").iterdir():
        shutil.move(path, out / name / path.name)


def test_pictures_moved_into_a_class_folder_of_an_export_are_labelled(store: SampleStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    records = [one.record for one in store.list().samples]
    export_folder(records, store.picture, out, classes=["bad", "good"])
    shutil.move(out / "_unlabelled" / f"{digest(store, 1)}.png", out / "bad")
    (out / "bad" / "deeper").mkdir()
    shutil.move(out / "_unlabelled" / f"{digest(store, 2)}.png", out / "bad" / "deeper")
    (out / "bad" / ".DS_Store").write_bytes(b"x")
    (out / "bad" / "Thumbs.db").write_bytes(b"x")
    assert bring(store, out, "folder", classes=["bad", "good"]) == Imported(3, 3)
    assert labels(store) == {1: "bad", 2: "bad", 3: None, 4: "bad"}
    kept = store.get(sample(1).id).record
    assert (kept.labelled_by, kept.labelled_at) == ("ana", NOW)
    assert bring(store, out, "folder") == Imported(3, 0)
    assert len(store.history(kept.id)) == 1


def test_annotations_of_an_export_come_back_with_the_letters_that_label_studio_puts_before(
    store: SampleStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    store.label(sample(1).id, "bad", "ana", NOW)
    export_coco([one.record for one in store.list().samples], store.picture, out)
    store.label(sample(1).id, None, "ana", NOW)
    document = json.loads((out / "annotations.json").read_text())
    for image in document["images"]:
        image["file_name"] = image["file_name"].replace("images/", "images/3f2a1b4c-")
    shutil.rmtree(out / "images")
    (out / "annotations.json").write_text(json.dumps(document))
    assert bring(store, out, "coco") == Imported(2, 2)
    assert labels(store) == {1: "bad", 2: None, 3: None, 4: "bad"}


def test_a_table_names_pictures_by_digest_by_sample_and_by_what_lies_beside(store: SampleStore, source: Path) -> None:
    (source / "images").mkdir()
    (source / "images" / "part 7.png").write_bytes(picture(spread(3)))
    rows = f"x/{digest(store, 1)}.jpg,bad", f" {sample(2).id} , good ", "part 7.png,bad", f"{sample(2).id},"
    assert bring(store, table(source, *rows), "csv") == Imported(4, 4)
    assert labels(store) == {1: "bad", 2: "good", 3: "bad", 4: "bad"}


@pytest.mark.parametrize("header", ["path,quality", "other,label,image", "file_name,choice", "filename,class"])
def test_columns_may_be_called_otherwise(store: SampleStore, source: Path, header: str) -> None:
    row = ",".join(
        "bad" if name in ("quality", "label", "choice", "class") else sample(2).id for name in header.split(",")
    )
    assert bring(store, table(source, row, header=header), "csv").samples == 1
    assert labels(store)[2] == "bad"


def test_a_file_is_read_as_well_as_its_folder(store: SampleStore, source: Path) -> None:
    bring(store, table(source, f"{sample(2).id},bad") / "labels.csv", "csv")
    (source / "annotations").mkdir()
    (source / "part.png").write_bytes(picture(spread(3)))
    bring(store, coco(source / "annotations", [(1, "part.png")], [(1, 1)]).parent, "coco")
    assert labels(store) == {1: None, 2: "bad", 3: "good", 4: None}


def test_a_picture_with_equal_annotations_has_one_label_and_one_without_any_has_none(
    store: SampleStore, source: Path
) -> None:
    images = [("a", f"{digest(store, 2)}.png"), ("b", f"{digest(store, 3)}.png")]
    assert bring(store, coco(source, images, [("a", 1), ("a", 1)]), "coco") == Imported(1, 1)


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_imported(store: SampleStore, source: Path) -> None:
    rows = (
        f"{sample(2).id},good",
        "unknown.png,good",
        f"{sample(3).id},ugly",
        f"{sample(2).id}.png,bad",
        f"{digest(store, 1)},good",
        f"{sample(4).id},bad",
        ",good",
    )
    told = problems(store, table(source, *rows), "csv", classes=["good", "bad"])
    assert "no sample" in told["unknown.png"]
    assert "none of the classes" in told[sample(3).id]
    assert "two labels: 'good' and 'bad'" in told[f"{sample(2).id}.png"]
    assert "two labels" in told[sample(4).id]
    assert "has no image" in told["labels.csv, line 8"]
    assert len(told) == 5


def test_only_the_first_of_many_problems_are_told_and_the_rest_counted(store: SampleStore, source: Path) -> None:
    table(source, *(f"unknown {n}.png,good" for n in range(MAX_TOLD + 7)))
    with pytest.raises(MeshError, match="and 7 more") as error:
        bring(store, source, "csv")
    assert len(error.value.fields) == MAX_TOLD


@pytest.mark.parametrize("name", ["../{0}.png", "/tmp/{0}.png", "a/../../{0}.png", "..\\{0}.png", "C:{0}.png"])
@pytest.mark.parametrize("form", ["csv", "coco"])
def test_names_that_lead_out_of_the_folder_are_refused(store: SampleStore, source: Path, form: str, name: str) -> None:
    written = name.format(digest(store, 1))
    if form == "csv":
        table(source, f"{written},bad")
    else:
        coco(source, [(1, written)], [(1, 1)])
    where = "labels.csv, line 2" if form == "csv" else "result.json, image 1"
    assert problems(store, source, form) == {written: f"leads out of the folder ({where})"}


def test_links_are_not_followed(store: SampleStore, source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "bad").mkdir(parents=True)
    (outside / "bad" / "part.png").write_bytes(picture(spread(3)))
    (source / "good").mkdir()
    (source / "good" / "part.png").symlink_to(outside / "bad" / "part.png")
    (source / "bad").symlink_to(outside / "bad", target_is_directory=True)
    told = problems(store, source, "folder")
    assert told == {"bad": "is a symbolic link", "good/part.png": "is a symbolic link"}
    told = problems(store, table(source, "good/part.png,good", "bad/part.png,bad"), "csv")
    assert all("symbolic link" in problem for problem in told.values())
    assert len(told) == 2
    (tmp_path / "link").symlink_to(source, target_is_directory=True)
    assert "source" in problems(store, tmp_path / "link", "csv")
    (source / "labels.csv").unlink()
    (source / "labels.csv").symlink_to(outside / "table.csv")
    (outside / "table.csv").write_text(f"image,label\n{sample(2).id},bad\n")
    assert "source" in problems(store, source, "csv")


def test_what_lies_in_a_folder_and_is_no_labelled_picture_is_told(store: SampleStore, source: Path) -> None:
    (source / "bad").mkdir()
    (source / "bad" / "notes.txt").write_text("x")
    (source / "bad" / "new.png").write_bytes(picture(spread(99)))
    (source / "beside.png").write_bytes(picture(spread(3)))
    (source / "readme.md").write_text("x")
    told = problems(store, source, "folder")
    assert sorted(told) == ["bad/new.png", "bad/notes.txt", "beside.png"]


def test_too_large_files_are_refused_unread(store: SampleStore, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "bad").mkdir()
    (source / "bad" / "part.png").write_bytes(picture(spread(3)))
    table(source, f"{sample(2).id},bad")
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "MAX_PICTURE_BYTES", 50)
        assert "at most 50" in problems(store, source, "folder")["bad/part.png"]
    for limit, form in (("MAX_TEXT_BYTES", "csv"), ("MAX_LISTED", "csv"), ("MAX_LISTED", "folder")):
        with monkeypatch.context() as patch:
            patch.setattr(inside, limit, 0)
            assert "source" in problems(store, source, form)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"image,label\n\xff,bad\n",
        b"picture,label\na,b\n",
        b"image,what\na,b\n",
        b'image,label\n"a,b\n',
        b'image,label\n"a"x,b\n',
    ],
)
def test_what_is_no_table_is_refused(store: SampleStore, source: Path, content: bytes) -> None:
    (source / "labels.csv").write_bytes(content)
    assert "source" in problems(store, source, "csv")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"images": 5, "annotations": []}',
        '{"images": [{"id": [], "file_name": "a"}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": 5}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": {}, "category_id": 1}]}',
        '{"images": [], "annotations": [{"image_id": 1}]}',
    ],
)
def test_what_is_no_coco_file_is_refused(store: SampleStore, source: Path, content: str) -> None:
    (source / "result.json").write_text(content)
    assert "source" in problems(store, source, "coco")


def test_annotations_of_images_or_categories_that_are_not_there_are_told(store: SampleStore, source: Path) -> None:
    coco(source, [(1, f"{digest(store, 2)}.png")], [(7, 0), (1, 9)])
    told = problems(store, source, "coco")
    assert told.keys() == {"image_id 7", f"{digest(store, 2)}.png"}


@pytest.mark.parametrize(
    ("form", "prepare"),
    [
        ("xml", lambda source: None),
        ("csv", lambda source: None),
        ("coco", lambda source: None),
        ("coco", lambda source: [(source / name).write_text("{}") for name in ("a.json", "b.json")]),
        ("csv", lambda source: (source / "labels.csv").mkdir()),
        ("folder", lambda source: (source.rmdir(), source.write_text("x"))),
        ("folder", lambda source: source.rmdir()),
    ],
)
def test_a_source_that_is_not_what_was_said_is_refused(
    store: SampleStore, source: Path, form: str, prepare: Callable[[Path], object]
) -> None:
    prepare(source)
    assert problems(store, source, form)


def test_boxes_in_yolo_label_what_they_are_in_without_the_pictures(store: SampleStore, source: Path) -> None:
    (source / "classes.txt").write_text("bad\ngood\n")
    (source / "labels").mkdir()
    (source / "labels" / f"3f2a1b4c-{digest(store, 2)}.txt").write_text("1 0.5 0.5 0.25 0.25\n1 0.2 0.2 0.1 0.1\n")
    (source / "labels" / f"3f2a1b4c-{digest(store, 3)}.txt").write_text("")
    assert bring(store, source, "yolo") == Imported(1, 1)
    assert labels(store) == {1: None, 2: "good", 3: None, 4: None}
    (source / "labels" / f"{digest(store, 3)}.txt").write_text("0 0.5 0.5 0.25 0.25\n1 0.2 0.2 0.1 0.1\n2 0 0 1 1\n")
    assert "none of 0 to 1" in problems(store, source, "yolo")[f"labels/{digest(store, 3)}.txt:3"]
    assert "two labels" in problems(store, source, "yolo")[f"labels/{digest(store, 3)}.txt"]
