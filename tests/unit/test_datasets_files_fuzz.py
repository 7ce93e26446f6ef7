"""Files that mean harm: whatever they hold, reading them ends in a dataset or in one clear error."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitmesh.datasets.divide import SPLITS
from splitmesh.datasets.files import Form, write
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Box
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_files import found_in, frozen, lay, png

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.sampled_from(
    ["a.png", "../a.png", "train", "bad", "images", "1", "-1", "1e999", "nan", "", "'=x", "\x00", "é", "[{"]
)
CELLS = st.lists(WORDS, max_size=9)
PLAIN: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
NUMBER = st.integers(-3, 30) | st.floats() | st.none() | WORDS
IMAGE = st.fixed_dictionaries({"id": st.integers(0, 2), "file_name": WORDS}, optional={"width": NUMBER, "split": PLAIN})
ANNOTATION = st.fixed_dictionaries(
    {"image_id": st.integers(0, 3), "category_id": st.integers(0, 2) | PLAIN},
    optional={"bbox": st.lists(NUMBER, max_size=5) | PLAIN, "iscrowd": PLAIN, "id": PLAIN},
)
COCO = st.fixed_dictionaries(
    {"images": st.lists(IMAGE, max_size=3), "annotations": st.lists(ANNOTATION, max_size=4)},
    optional={"categories": st.lists(st.fixed_dictionaries({"id": st.integers(0, 2), "name": WORDS}), max_size=3)},
)


def survives(form: Form, files: dict[str, bytes | str]) -> None:
    """Reading ends well or with FIELD_INVALID."""
    with tempfile.TemporaryDirectory() as folder:
        lay(Path(folder), {"a.png": png(1), "images/a.png": png(2), **files})
        try:
            found_in(Path(folder), form)
        except MeshError as error:
            if error.reason is not Reason.FIELD_INVALID:
                raise


@QUICK
@given(st.lists(CELLS, max_size=5) | st.text(max_size=200))
def test_any_table_is_read_or_refused(rows: list[list[str]] | str) -> None:
    header = "image,label,split,x,y,width,height,captured_at,group\n"
    body = rows if isinstance(rows, str) else "\n".join(",".join(row) for row in rows)
    survives("csv", {"labels.csv": header + body})
    survives("csv", {"labels.csv": body})


@QUICK
@given(COCO | PLAIN)
def test_any_json_is_read_or_refused_as_coco(document: Any) -> None:
    survives("coco", {"x.json": json.dumps(document)})


@QUICK
@given(st.text(max_size=200) | PLAIN.map(json.dumps), st.lists(CELLS, max_size=4))
def test_any_yaml_and_any_boxes_are_read_or_refused_as_yolo(config: str, rows: list[list[str]]) -> None:
    boxes = "\n".join(" ".join(row) for row in rows)
    survives("yolo", {"data.yaml": config, "labels/a.txt": boxes})
    survives("yolo", {"data.yaml": "train: images\nnames: [bad, good]", "labels/a.txt": boxes})


@st.composite
def boxes_inside(draw: st.DrawFn) -> Box:
    """In a picture of 20 x 10 pixels, to a thousandth."""
    x, y = draw(st.integers(0, 19_000)) / 1000, draw(st.integers(0, 9_000)) / 1000
    width, height = draw(st.integers(1, 1000)), draw(st.integers(1, 1000))
    return Box(label=draw(st.sampled_from(["bad", "good"])), x=x, y=y, width=width / 1000, height=height / 1000)


@QUICK
@given(st.lists(st.lists(boxes_inside(), max_size=4, unique=True), min_size=3, max_size=3))
def test_boxes_come_back_to_a_thousandth_of_a_pixel(boxes: list[list[Box]]) -> None:
    items = [
        item_of(png(n), boxes=tuple(found), split=split)
        for n, (found, split) in enumerate(zip(boxes, SPLITS, strict=True))
    ]
    dataset = freeze_items(items, task="detection", seed=0, classes=("bad", "good"))
    data = {item.picture: png(n) for n, item in enumerate(items)}
    forms: tuple[Form, ...] = ("csv", "coco", "yolo")
    for form in forms:
        with tempfile.TemporaryDirectory() as folder:
            write(dataset, data.__getitem__, Path(folder) / "out", form)
            back = frozen(Path(folder) / "out", form, task="detection")
        assert [(e.picture, e.split, e.boxes) for e in back.entries] == [
            (e.picture, e.split, e.boxes) for e in dataset.entries
        ]
