"""Class folders and tables of other tools: what is read, and what is refused by name."""

from __future__ import annotations

import hashlib
import io
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from splitmesh.datasets.files import inside, pictures
from tests.unit.dataset_files import boxes_in, found_in, labels_in, lay, png, told


def test_class_folders_label_what_lies_in_them(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "bad/a.png": png(1),
        "good/deep/b.PNG": png(2),
        "_unlabelled/c.png": png(3),
        "readme.md": "x",
    }
    lay(tmp_path, files)
    (tmp_path / "empty").mkdir()
    found = found_in(tmp_path, "imagefolder", site="lyon", camera="line-1", labelled_by="ana")
    assert (found.task, found.classes) == ("classification", ("bad", "empty", "good"))
    assert {one.item.name: one.item.label for one in found.pictures} == {
        **{"bad/a.png": "bad", "good/deep/b.PNG": "good", "_unlabelled/c.png": ""}
    }
    item = next(one.item for one in found.pictures if one.item.name == "bad/a.png")
    assert (item.site, item.camera, item.labelled_by, item.split) == ("lyon", "line-1", "ana", None)
    assert (item.picture, item.picture_bytes) == (hashlib.sha256(png(1)).hexdigest(), len(png(1)))
    assert (item.media_type, item.width, item.height) == ("image/png", 20, 10)
    assert item.provenance == "imported from imagefolder"
    assert all(one.path.read_bytes() for one in found.pictures)


def test_folders_of_splits_keep_their_split(tmp_path: Path) -> None:
    lay(tmp_path, {"train/bad/a.png": png(1), "valid/good/b.png": png(2), "test/bad/c.png": png(3)})
    found = found_in(tmp_path, "imagefolder")
    assert {one.item.name: (one.item.label, one.item.split) for one in found.pictures} == {
        "train/bad/a.png": ("bad", "train"),
        "valid/good/b.png": ("good", "val"),
        "test/bad/c.png": ("bad", "test"),
    }
    forgotten = found_in(tmp_path, "imagefolder", keep_splits=False)
    assert {one.item.split for one in forgotten.pictures} == {None}


def test_classes_that_are_called_like_splits_are_classes_beside_others(tmp_path: Path) -> None:
    lay(tmp_path, {"test/a.png": png(1), "idle/deep/b.png": png(2)})
    assert labels_in(tmp_path, "imagefolder") == {"test/a.png": "test", "idle/deep/b.png": "idle"}


def test_everything_wrong_with_class_folders_is_told_at_once(tmp_path: Path) -> None:
    lay(
        tmp_path, {"bad/cut.png": png(1)[:-60], "bad/text.png": "no picture", "bad/note.txt": "x", "beside.png": png(2)}
    )
    (tmp_path / "bad" / "link.png").symlink_to("/etc/passwd")
    (tmp_path / "linked").symlink_to(tmp_path / "bad", target_is_directory=True)
    os.mkfifo(tmp_path / "bad" / "pipe.png")
    problems = told(tmp_path, "imagefolder")
    assert problems["bad/pipe.png"] == "is no plain file"
    assert "decoded" in problems["bad/cut.png"]
    assert "decoded" in problems["bad/text.png"]
    assert "no picture" in problems["bad/note.txt"]
    assert "no class" in problems["beside.png"]
    assert problems["bad/link.png"] == problems["linked"] == "is a symbolic link"
    assert len(problems) == 7


def test_a_table_says_label_split_group_site_camera_and_moment(tmp_path: Path) -> None:
    rows = [
        "image,label,split,group,site,camera,captured_at,note",
        "a.png,bad,train,u1,lyon,line-1,2026-03-01T14:30+01:00,x",
        "b.png,good,validation,u2,,,,",
        "c.png,,,,,,,",
    ]
    lay(tmp_path, {"labels.csv": "\n".join(rows), "images/a.png": png(1), "b.png": png(2), "c.png": png(3)})
    found = found_in(tmp_path, "csv", site="default")
    one, two, three = (entry.item for entry in found.pictures)
    assert (one.label, one.split, one.group, one.site, one.camera) == ("bad", "train", "u1", "lyon", "line-1")
    assert one.captured_at == datetime(2026, 3, 1, 13, 30, tzinfo=UTC)
    assert (two.label, two.split, two.group, two.site, two.captured_at) == ("good", "val", "u2", "default", None)
    assert (three.label, three.split) == ("", None)
    assert found.classes == ("bad", "good")
    assert found_in(tmp_path, "csv", label_column="note", group_column="camera").pictures[0].item.label == "x"


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,label,x,y,width,height", "a.png,bad,2,3,4.5,5"),
        ("xmin,ymin,xmax,ymax,class,path", "2,3,6.5,8,bad,a.png"),
    ],
)
def test_a_table_has_a_row_for_each_box(tmp_path: Path, header: str, row: str) -> None:
    background = "b.png,,,,," if header.startswith("image") else ",,,,,b.png"
    lay(tmp_path, {"labels.csv": "\n".join([header, row, row, background]), "a.png": png(1), "b.png": png(2)})
    assert boxes_in(tmp_path, "csv") == {"a.png": [("bad", 2, 3, 4.5, 5)], "b.png": []}


def test_a_pictures_own_size_in_a_table_is_no_box(tmp_path: Path) -> None:
    lay(tmp_path, {"labels.csv": "image,label,width,height\na.png,bad,20,10\n", "a.png": png(1)})
    assert labels_in(tmp_path, "csv") == {"a.png": "bad"}


def test_label_studio_writes_boxes_as_json_and_paths_of_its_server(tmp_path: Path) -> None:
    box = '{""x"": 10, ""y"": 20, ""width"": 50, ""height"": 40, ""rectanglelabels"": [""bad""], ""rotation"": 0}'
    rows = ["image,label", f'/data/upload/3/a.png,"[{box}]"', '/data/local-files/?d=deep%2Fb.png,"[{}]"']
    lay(tmp_path, {"labels.csv": "\n".join(rows[:2]), "a.png": png(1), "deep/b.png": png(2)})
    assert boxes_in(tmp_path, "csv") == {"a.png": [("bad", 2, 2, 10, 4)]}
    lay(tmp_path, {"labels.csv": "\n".join(rows)})
    assert "rectanglelabels" in told(tmp_path, "csv")["labels.csv, line 3"]
    lay(tmp_path, {"labels.csv": "\n".join([rows[0], rows[1].replace('""rotation"": 0', '""rotation"": 9')])})
    assert "turned" in told(tmp_path, "csv")["labels.csv, line 2"]


def test_everything_wrong_with_a_table_is_told_with_its_line(tmp_path: Path) -> None:
    rows = [
        "image,label,split,group,captured_at,x,y,width,height",
        "../out.png,bad,,,,1,1,1,1",
        "none.png,bad,,,,1,1,1,1",
        "a.png,bad,later,,,1,1,1,1",
        "a.png,bad,,,yesterday,1,1,1,1",
        "a.png,bad,,,2026-03-01T14:30,1,1,1,1",
        "a.png,bad,,,,1,1,1,wide",
        "a.png,,,,,1,1,1,1",
        "b.png,bad,train,,,1,1,1,1",
        "b.png,bad,test,,,2,2,1,1",
        "c.png,bad,,,,nan,1,1,1",
        "c.png,bad,,,,1,1,-1,1",
        "c.png,bad,,,,15,1,6,1",
        "c.png,bad,,,,,,,",
        ",bad,,,,1,1,1,1",
    ]
    lay(tmp_path, {"labels.csv": "\n".join(rows), "a.png": png(1), "b.png": png(2), "c.png": png(3)})
    problems = told(tmp_path, "csv")
    expected = {
        "../out.png": "leads out of the folder (labels.csv, line 2)",
        "none.png": "is not there",
        "labels.csv, line 4": "'later'",
        "labels.csv, line 5": "no time",
        "labels.csv, line 6": "no zone",
        "labels.csv, line 7": "no box of four numbers",
        "labels.csv, line 8": "no label",
        "b.png": "row before (labels.csv, line 10)",
        "labels.csv, line 11": "not finite",
        "labels.csv, line 12": "-1 wide",
        "labels.csv, line 13": "sticks out",
        "labels.csv, line 14": "no box",
        "labels.csv, line 15": "has no image",
    }
    assert problems.keys() == expected.keys()
    assert all(text in problems[where] for where, text in expected.items())


def test_two_labels_of_one_name_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"labels.csv": "image,label\na.png,bad\na.png,good\n", "a.png": png(1)})
    assert "two labels: 'bad' and 'good'" in told(tmp_path, "csv")["a.png"]


@pytest.mark.parametrize("label", ["   \u00a0", "x" * 201, "a\u0007b"])
def test_a_label_that_cannot_be_shown_is_refused(tmp_path: Path, label: str) -> None:
    lay(tmp_path, {"labels.csv": f"image,label,camera\na.png,q{label},\n", "a.png": png(1)})
    if label.strip():
        assert "printable" in told(tmp_path, "csv")["a.png"]
    lay(tmp_path, {"labels.csv": f'image,label,camera\na.png,bad,"x{label}y\u0007"\n'})
    assert "camera" in told(tmp_path, "csv")["a.png"]


@pytest.mark.parametrize("form", ["csv", "imagefolder", "coco", "yolo"])
def test_a_source_that_is_a_link_or_not_there_is_refused(tmp_path: Path, form: str) -> None:
    lay(tmp_path / "real", {"bad/a.png": png(1)})
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    for name, text in (("link", "symbolic link"), ("none", "not there")):
        assert text in told(tmp_path / name, form)["source"]  # type: ignore[arg-type]


def test_what_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, {"labels.csv": "image,label\nbad/a.png,bad\n", "bad/a.png": png(1)})
    monkeypatch.setattr(pictures, "MAX_PICTURE_BYTES", 50)
    assert "at most 50" in told(tmp_path, "csv")["bad/a.png"]
    monkeypatch.setattr(inside, "MAX_LISTED", 0)
    assert "more than 0" in told(tmp_path, "imagefolder")["source"]
    monkeypatch.setattr(inside, "MAX_TEXT_BYTES", 3)
    assert "at most 3" in told(tmp_path, "csv")["source"]


def test_what_belongs_together_is_said_by_folder_column_or_pattern(tmp_path: Path) -> None:
    lay(tmp_path, {"bad/u1/7_a.png": png(1), "bad/u2/7_b.png": png(2)})

    def groups(how: str) -> list[str]:
        return [one.item.group for one in found_in(tmp_path, "imagefolder", group_by=how).pictures]

    assert groups("") == ["", ""]
    assert groups("folder") == ["folder/bad/u1", "folder/bad/u2"]
    assert groups(r"regex:(\d)_") == ["7", "7"]
    assert groups("regex:u.") == ["u1", "u2"]
    for how in ("regex:x", r"regex:(x?)_", "column", "camera-hour"):
        assert len(told(tmp_path, "imagefolder", group_by=how)) == 2
    for how in ("regex:(", "shape"):
        assert "group_by" in told(tmp_path, "imagefolder", group_by=how)
    assert "task" in told(tmp_path, "imagefolder", task="guess")
    assert "form" in told(tmp_path, "zip")  # type: ignore[arg-type]


def test_exif_is_read_only_when_asked_and_never_over_what_the_form_says(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010F], tags[0x0110] = "Basler", "Basler a2A"
    tags.get_ifd(0x8769).update({0x9003: "2026:03:01 14:30:00", 0x9011: "+01:00"})
    stream = io.BytesIO()
    Image.new("L", (20, 10)).save(stream, "JPEG", exif=tags)
    lay(
        tmp_path,
        {"labels.csv": "image,label,camera\na.jpg,bad,\nb.png,bad,\n", "a.jpg": stream.getvalue(), "b.png": png(1)},
    )
    assert [one.item.camera for one in found_in(tmp_path, "csv").pictures] == ["", ""]
    one, two = (entry.item for entry in found_in(tmp_path, "csv", exif=True).pictures)
    assert (one.camera, one.captured_at) == ("Basler a2A", datetime(2026, 3, 1, 13, 30, tzinfo=UTC))
    assert (two.camera, two.captured_at) == ("", None)
    assert one.split_group == "/Basler a2A/2026-03-01T13"
    lay(tmp_path, {"labels.csv": "image,label,camera\na.jpg,bad,line-1\n"})
    assert found_in(tmp_path, "csv", exif=True).pictures[0].item.camera == "line-1"
