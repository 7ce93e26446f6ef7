"""What a source may not do: grow without end, or lead out of its folder through a link or a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitmesh.client.dataset_sharing import Sharing
from splitmesh.datasets.files import Form
from splitmesh.datasets.files.found import Mark, gather
from splitmesh.datasets.files.reading import list_source
from splitmesh.datasets.manifest import MAX_BOXES
from splitmesh.datasets.problems import Problems
from splitmesh.errors import MeshError
from tests.unit.dataset_files import boxes_in, found_in, lay, png, told

MANY = MAX_BOXES * 2


def coco(name: str, boxes: int = 1) -> str:
    entries = [{"id": n, "image_id": 1, "category_id": 1, "bbox": [n * 1e-3, 0, 1, 1]} for n in range(boxes)]
    images, categories = [{"id": 1, "file_name": name}], [{"id": 1, "name": "dent"}]
    return json.dumps({"images": images, "annotations": entries, "categories": categories})


def crowded(form: Form) -> dict[str, bytes | str]:
    rows = "".join(f"a.png,dent,{n * 1e-3},0,1,1\n" for n in range(MANY))
    return {
        "a.png": png(1, 40, 20),
        **({"x.json": coco("a.png", MANY)} if form == "coco" else {}),
        **({"labels.csv": f"image,label,x,y,width,height\n{rows}"} if form == "csv" else {}),
    }


@pytest.mark.parametrize("form", ["coco", "csv"])
def test_no_more_boxes_of_a_picture_are_held_than_tell_that_they_are_too_many(tmp_path: Path, form: Form) -> None:
    lay(tmp_path, crowded(form))
    (only,) = list_source(tmp_path, form, Problems("source", ""))
    assert len(only.marks) == MAX_BOXES + 1
    assert told(tmp_path, form)["a.png"] == f"has more than {MAX_BOXES} boxes"


def test_a_mark_that_is_said_again_is_compared_without_looking_at_the_others() -> None:
    compared = 0

    class Label(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    marks: dict[Mark, None] = {}
    for _ in range(2):
        gather(marks, [Mark(Label("dent"), (n, 0.0, 1.0, 1.0)) for n in range(500)])
    assert len(marks) == 500
    assert compared < 2000


def test_coco_is_not_read_through_a_linked_folder(tmp_path: Path) -> None:
    lay(tmp_path / "outside", {"a.json": coco("x.png"), "secret.png": png(2)})
    source = lay(tmp_path / "source", {"x.png": png(1)})
    (source / "annotations").symlink_to(tmp_path / "outside")
    assert "annotation" in told(source, "coco")["source"]
    lay(source, {"b.json": coco("x.png")})
    assert "symbolic link" in told(source, "coco")["annotations/a.json"]


def test_pictures_of_coco_are_not_looked_for_behind_a_link_above_their_folder(tmp_path: Path) -> None:
    lay(tmp_path / "outside", {"train/secret.png": png(2)})
    source = lay(tmp_path / "source", {"train.json": coco("secret.png")})
    (source / "images").symlink_to(tmp_path / "outside")
    assert "symbolic link" in told(source, "coco")["secret.png"]


def test_the_name_of_a_coco_file_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    lay(tmp_path, {"secret.png": png(2), "source/x_...json": coco("secret.png")})
    assert told(tmp_path / "source", "coco")["secret.png"] == "is not there"


@pytest.mark.parametrize("name", ["annotations/train.json", "train.json"])
def test_a_file_is_read_that_somebody_names_by_a_way_through_a_link(tmp_path: Path, name: str) -> None:
    lay(tmp_path / "real", {name: coco("a.png"), "images/a.png": png(1)})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert boxes_in(tmp_path / "link" / name, "coco") == {"a.png": [("dent", 0, 0, 1, 1)]}
    lay(tmp_path / "real", {"labels.csv": "image,label\na.png,dent\n"})
    assert len(found_in(tmp_path / "link" / "labels.csv", "csv").pictures) == 1


def test_the_rules_of_a_site_may_be_a_link_and_what_is_wrong_with_them_is_told_of_them(tmp_path: Path) -> None:
    lay(tmp_path, {"real.yaml": "manifests: ['*']", "bad.yaml": "a: &a [1]\nb: *a", "list.yaml": "- x"})
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    assert Sharing.from_file(tmp_path / "link.yaml").manifests == ("*",)
    for name in ("none.yaml", "bad.yaml", "list.yaml"):
        with pytest.raises(MeshError) as caught:
            Sharing.from_file(tmp_path / name)
        assert [field for field, _ in caught.value.fields] == ["sharing"], name
