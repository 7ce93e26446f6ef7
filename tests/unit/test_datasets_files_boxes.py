"""COCO and YOLO of other tools: boxes, splits and names, and what is refused with file and line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from splitmesh.datasets.files import yolo, yolo_config
from tests.unit.dataset_files import boxes_in, found_in, labels_in, lay, png, told

YAML = "train: images/train\nval: images/val\nnames: [bad, good]\n"


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], **more: Any) -> str:
    categories = [{"id": 7, "name": "scratch"}, {"id": 3, "name": "dent"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories, **more})


def image(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": 20, "height": 10, **more}


def box(image_id: int, *bbox: float, category: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": 50, "image_id": image_id, "category_id": category, "bbox": list(bbox), **more}


def test_coco_has_boxes_and_backgrounds_and_classes_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    entries = [
        box(1, 2, 3, 4.5, 5),
        box(1, 2, 3, 4.5, 5),
        box(1, 0, 0, 20, 10, category=3),
        box(2, 0, 0, 9, 9, iscrowd=1),
    ]
    images = [
        image(1, "a.png", date_captured="2026-03-01T14:30:00+01:00", site="lyon", camera="c", group="g"),
        image(2, "b.png"),
    ]
    lay(tmp_path, {"instances.json": coco(images, entries), "a.png": png(1), "images/b.png": png(2)})
    found = found_in(tmp_path, "coco")
    assert (found.task, found.classes) == ("detection", ("dent", "scratch"))
    assert boxes_in(tmp_path, "coco") == {"a.png": [("scratch", 2, 3, 4.5, 5), ("dent", 0, 0, 20, 10)], "b.png": []}
    item = found.pictures[0].item
    assert (item.site, item.camera, item.group, item.label) == ("lyon", "c", "g", "")
    assert str(item.captured_at) == "2026-03-01 13:30:00+00:00"


def test_coco_whose_annotations_are_of_whole_pictures_is_a_classification(tmp_path: Path) -> None:
    entries = [box(1, 0, 0, 20, 10), {"id": 2, "image_id": 2, "category_id": 3}]
    lay(tmp_path, {"a.json": coco([image(1, "a.png"), image(2, "b.png")], entries), "a.png": png(1), "b.png": png(2)})
    assert labels_in(tmp_path, "coco") == {"a.png": "scratch", "b.png": "dent"}
    assert "no box" in told(tmp_path, "coco", task="detection")["a.json, annotation 2"]


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (("annotations/instances_train2017.json", "annotations/instances_val2017.json"), ("train2017", "val2017")),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), ("train", "valid")),
        (("annotations/train.json", "annotations/val.json"), ("images", "images")),
        (("annotations/train.json", "annotations/val.json"), ("images/train", "images/val")),
    ],
)
def test_coco_in_a_file_for_each_split_keeps_the_splits(tmp_path: Path, names: Any, folders: Any) -> None:
    for n, (name, folder) in enumerate(zip(names, folders, strict=True)):
        lay(tmp_path, {name: coco([image(1, f"{n}.png")], [box(1, 1, 1, 2, 2)]), f"{folder}/{n}.png": png(n)})
    found = found_in(tmp_path, "coco")
    assert [(one.item.name, one.item.split) for one in found.pictures] == [("0.png", "train"), ("1.png", "val")]
    assert found.classes == ("dent", "scratch")


def test_everything_wrong_with_coco_is_told_with_its_annotation(tmp_path: Path) -> None:
    images = [image(1, "a.png"), image(2, "../b.png"), image(3, "none.png"), image(4, "c.png", width=99)]
    images += [image(5, "link.png"), image(6, "d.png", split="later")]
    entries = [
        *(
            box(1, *values, id=n)
            for n, values in enumerate([(-1, 0, 5, 5), (0, 0, 21, 5), (0, 0, 0, 5), (0, 0, 5, 1e400)])
        ),
        box(9, 0, 0, 1, 1, id=4),
        box(1, 0, 0, 1, 1, id=5, category=9),
        box(4, 0, 0, 1, 1, id=6),
    ]
    lay(tmp_path, {"x.json": coco(images, entries), "a.png": png(1), "c.png": png(2), "d.png": png(3)})
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    problems = told(tmp_path, "coco")
    expected = {
        **{
            f"x.json, annotation {n}": text
            for n, text in enumerate(["sticks out", "sticks out", "0 wide", "not finite"])
        },
        "image_id 9": "x.json, annotation 4",
        "a.png": "category 9",
        "../b.png": "leads out",
        "none.png": "not there",
        "c.png": "99 x 10",
        "link.png": "symbolic link",
        "x.json, image 6": "'later'",
    }
    assert problems.keys() == expected.keys()
    assert all(text in problems[where] for where, text in expected.items())


def test_a_box_that_sticks_out_by_rounding_is_cut(tmp_path: Path) -> None:
    lay(tmp_path, {"x.json": coco([image(1, "a.png")], [box(1, -0.4, 0, 20.8, 5.25)]), "a.png": png(1)})
    assert boxes_in(tmp_path, "coco") == {"a.png": [("scratch", 0, 0, 20, 5.25)]}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "[" * 100_000, '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}']
    + [coco([image(1, "a.png")], [{"image_id": 1, "category_id": 7, "bbox": bad}]) for bad in ([1, 2, 3], ["1"] * 4, 5)]
    + [coco([image(1, "a.png"), image(1, "b.png")], []), coco([image(1, "a.png")], [{**box(1), "category_id": {}}])],
)
def test_what_is_no_coco_file_is_refused(tmp_path: Path, content: str) -> None:
    lay(tmp_path, {"x.json": content, "a.png": png(1)})
    assert "COCO" in told(tmp_path, "coco")["source"] or "two images" in told(tmp_path, "coco")["source"]


def test_several_annotation_files_that_are_no_splits_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"a.json": coco([], []), "b.json": coco([], [])})
    assert "a.json, b.json" in told(tmp_path, "coco")["source"]


def test_yolo_has_boxes_as_shares_of_the_picture(tmp_path: Path) -> None:
    files = {"images/train/a.png": png(1), "images/val/b.png": png(2), "images/val/c.png": png(3)}
    polygon = "0 0.1 0.1 0.5 0.1 0.5 0.8 0.2 0.3\n"
    lay(
        tmp_path,
        {"data.yaml": YAML, **files, "labels/train/a.txt": f"1 0.5 0.5 0.5 1\n\n{polygon}", "labels/val/b.txt": ""},
    )
    found = found_in(tmp_path, "yolo")
    assert (found.task, found.classes) == ("detection", ("bad", "good"))
    assert {one.item.name: one.item.split for one in found.pictures} == {
        **{"images/train/a.png": "train", "images/val/b.png": "val", "images/val/c.png": "val"}
    }
    assert boxes_in(tmp_path / "data.yaml", "yolo") == {
        **{"images/train/a.png": [("good", 5, 0, 10, 10), ("bad", 2, 1, 8, 7)]},
        **{"images/val/b.png": [], "images/val/c.png": []},
    }


@pytest.mark.parametrize(
    "yaml",
    [
        "path: inner\ntrain: images\nnames: {0: bad, 1: good}\nnc: 2",
        "path: /home/somebody/datasets\ntrain: ../inner/images\nnames: [bad, good]\ndownload: |\n  import os",
        "train: [inner/images]\nnames: [bad, good]",
        "train: list.txt\nnames: [bad, good]",
    ],
)
def test_yolo_says_in_several_ways_where_pictures_are(tmp_path: Path, yaml: str) -> None:
    lay(tmp_path, {"data.yaml": yaml, "inner/images/a.png": png(1), "inner/labels/a.txt": "1 0.5 0.5 1 1"})
    lay(tmp_path, {"list.txt": "./inner/images/a.png\n\n"})
    assert boxes_in(tmp_path, "yolo") == {"inner/images/a.png": [("good", 0, 0, 20, 10)]}
    assert found_in(tmp_path, "yolo").pictures[0].item.split == "train"


def test_yolo_without_yaml_has_its_names_in_classes_txt(tmp_path: Path) -> None:
    lay(tmp_path, {"classes.txt": "bad\ngood\n", "images/a.png": png(1), "labels/a.txt": "0 0.5 0.5 0.1 0.2"})
    assert boxes_in(tmp_path, "yolo") == {"images/a.png": [("bad", 9, 4, 2, 2)]}
    assert found_in(tmp_path, "yolo").pictures[0].item.split is None
    (tmp_path / "images" / "a.png").unlink()
    lay(tmp_path, {"images/val/b.png": png(2), "labels/val/b.txt": "1 0.5 0.5 0.1 0.2"})
    assert {one.item.name: one.item.split for one in found_in(tmp_path, "yolo").pictures}["images/val/b.png"] == "val"


def test_yolo_finds_labels_behind_the_last_images_of_a_path_or_beside_the_picture(tmp_path: Path) -> None:
    lay(tmp_path, {"data.yaml": "train: [images/a/images, plain]\nnames: [bad]", "images/a/images/x.png": png(1)})
    lay(tmp_path, {"images/a/labels/x.txt": "0 .5 .5 .1 .2", "plain/y.png": png(2), "plain/y.txt": "0 .5 .5 1 1"})
    assert boxes_in(tmp_path, "yolo") == {
        "images/a/images/x.png": [("bad", 9, 4, 2, 2)],
        "plain/y.png": [("bad", 0, 0, 20, 10)],
    }


def test_everything_wrong_with_yolo_is_told_with_file_and_line(tmp_path: Path) -> None:
    lines = ["2 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "x .5 .5 .1 .1", "0 .5 .5 .1", "0 .5 .5 .1 .1 .9", "0 .5 .5 .1 wide"]
    lines += ["0 .5 .5 nan .1", "0 .5 .5 -.1 .1", "0 .9 .5 .4 .1", "99999999999999999999 .5 .5 .1 .1"]
    lay(tmp_path, {"data.yaml": YAML + "test: ../../out", "images/train/a.png": png(1)})
    lay(tmp_path, {"images/val/b.png": png(2), "labels/train/a.txt": "\n".join(lines), "labels/val/none.txt": ""})
    (tmp_path / "labels" / "val" / "b.txt").symlink_to("/etc/passwd")
    problems = told(tmp_path, "yolo")
    texts = ["none of 0 to 1", "no number", "no number", "3 numbers", "5 numbers", "no line of numbers"]
    expected = {f"labels/train/a.txt:{n}": text for n, text in enumerate(texts, 1)}
    expected |= {
        "labels/train/a.txt:10": "none of 0 to 1",
        "data.yaml, test": "leads out",
        "labels/val/b.txt": "symbolic",
    }
    expected |= {"labels/val/none.txt": "not there"}
    expected |= {f"labels/train/a.txt:{n}": t for n, t in enumerate(["not finite", "-2 wide", "sticks out"], 7)}
    assert problems.keys() == expected.keys()
    assert all(text in problems[where] for where, text in expected.items())


def test_a_list_of_pictures_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    lay(
        tmp_path / "in",
        {"data.yaml": "train: list.txt\nnames: [bad]", "list.txt": "../out.png\n/etc/passwd\nx.png\nl.png\n"},
    )
    lay(tmp_path, {"out.png": png(1)})
    (tmp_path / "in" / "l.png").symlink_to(tmp_path / "out.png")
    problems = told(tmp_path / "in", "yolo")
    assert [problems[f"list.txt:{n}"].split("' ")[1] for n in (1, 2, 3)] == [
        *["leads out of the folder"] * 2,
        "is not there",
    ]
    assert "symbolic link" in problems["list.txt:4"]
    assert problems["in"] == "holds no pictures"


@pytest.mark.parametrize(
    "yaml",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nnames: *b\ntrain: images",
        "names: !!python/object/apply:os.system [ls]\ntrain: images",
        "names: [bad, bad]\ntrain: images",
        "names: {0: bad, 2: good}\ntrain: images",
        "names: [bad]\nnc: 2\ntrain: images",
        "names: []\ntrain: images",
        "names: [bad]",
        "names: [bad]\ntrain: 5",
        "train: images",
        "[" * 5000,
        "- x",
        "",
    ],
)
def test_a_yaml_that_says_nothing_of_use_is_refused(tmp_path: Path, yaml: str) -> None:
    lay(tmp_path, {"data.yaml": yaml, "images/a.png": png(1)})
    assert "data.yaml" in told(tmp_path, "yolo")["source"]


def test_large_files_of_yolo_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, {"classes.txt": "bad\n", "images/a.png": png(1), "labels/a.txt": "0 .5 .5 .1 .1\n" * 3})
    with monkeypatch.context() as patch:
        patch.setattr(yolo, "MAX_BOXES", 2)
        assert "at most 2" in told(tmp_path, "yolo")["labels/a.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(yolo, "MAX_LABEL_BYTES", 2)
        assert "at most 2" in told(tmp_path, "yolo")["source"]
    monkeypatch.setattr(yolo_config, "MAX_YAML_BYTES", 2)
    assert "at most 2" in told(tmp_path, "yolo")["source"]
    (tmp_path / "classes.txt").unlink()
    assert "classes.txt" in told(tmp_path, "yolo")["source"]


def turned(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    stream = io.BytesIO()
    Image.new("L", (20, 10)).save(stream, "JPEG", exif=tags)
    return stream.getvalue()


def test_boxes_of_a_picture_that_exif_turns_are_refused(tmp_path: Path) -> None:
    lay(tmp_path, {"classes.txt": "bad\n", "labels/a.txt": "0 .5 .5 .1 .2", "images/a.jpg": turned(6)})
    assert "turned by its EXIF" in told(tmp_path, "yolo")["images/a.jpg"]
    lay(tmp_path, {"images/a.jpg": turned(1)})
    assert boxes_in(tmp_path, "yolo") == {"images/a.jpg": [("bad", 9, 4, 2, 2)]}
    lay(tmp_path, {"images/a.jpg": turned(6), "labels/a.txt": ""})
    assert boxes_in(tmp_path, "yolo") == {"images/a.jpg": []}
