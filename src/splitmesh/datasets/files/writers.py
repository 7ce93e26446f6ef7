"""Pictures with what is said of them in the four forms. Each writes into an empty folder; who makes it appear is the caller.

Knows the forms; no dataset and no store. Text that a spreadsheet would take for a formula has an apostrophe before it, which
reading takes away.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from splitmesh.compress.cells import quoted
from splitmesh.datasets.files.found import ANNOTATIONS, IMAGES, LABELS, TABLE, UNLABELLED
from splitmesh.datasets.files.rows import Row, Rows, names_folder
from splitmesh.datasets.files.table import SIZED
from splitmesh.datasets.manifest import Box
from splitmesh.datasets.problems import Problems

FOLDER = "annotations"
COLUMNS = ("image", "label", "split", "group", "site", "camera", "captured_at", "labelled_by", "provenance", "sample")
"""Of a dataset's table; boxes add ``x``, ``y``, ``width``, ``height``."""


def write_imagefolder(folder: Path, rows: Rows, classes: Sequence[str], columns: Sequence[str] = COLUMNS) -> None:
    """``class/picture``, below its split where it has one, ``_unlabelled`` for the rest, and ``labels.csv`` over all of them.

    Every class has its folder in every split that has pictures, so that all splits number them alike. MeshError FIELD_INVALID
    for a class that can be no folder's name.
    """
    check_folder_names(classes)
    known: set[str] = set()
    with _table(folder / TABLE, columns) as write:
        for row, data in rows:
            if row.split and row.split not in known:
                known.add(row.split)
                _make_folders(folder / row.split, classes)
            image = "/".join(filter(None, (row.split, row.label or UNLABELLED, row.file_name)))
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            (folder / image).write_bytes(data)
            write(_cells(row, image))
    if not known:
        _make_folders(folder, [*classes, UNLABELLED])


def check_folder_names(classes: Sequence[str]) -> None:
    """MeshError FIELD_INVALID names those that can be no folder's name."""
    with Problems("label", "labels cannot name folders") as problems:
        for name in sorted(classes):
            if not names_folder(name, (UNLABELLED, TABLE)):
                problems.add(name, "is no name of a folder")


def _make_folders(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)


def write_table(folder: Path, rows: Rows, classes: Sequence[str], columns: Sequence[str] = COLUMNS) -> None:
    """``labels.csv`` and ``images``: a row for each picture, or for each box; one without any where nothing is on a picture."""
    del classes  # the table's labels name them
    (folder / IMAGES).mkdir()
    pending = _Pending(folder / TABLE, columns)
    with pending.opened():
        for row, data in rows:
            image = f"{IMAGES}/{row.file_name}"
            (folder / image).write_bytes(data)
            pending.add(row, image)


class _Pending:
    """A table whose columns are known with the first row: with or without boxes."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns
        self._boxed = (*columns, *SIZED)
        self._writer: Any = None
        self._stream: Any = None

    @contextmanager
    def opened(self) -> Iterator[None]:
        with self._file.open("w", encoding="utf-8", newline="") as self._stream:
            yield
            if self._writer is None:
                self._begin(self._columns)

    def add(self, row: Row, image: str) -> None:
        if self._writer is None:
            self._begin(self._columns if row.boxes is None else self._boxed)
        cells = _cells(row, image)
        if row.boxes is None or not row.boxes:
            self._writer.writerow(_quoted(cells))
        for box in row.boxes or ():
            self._writer.writerow(
                _quoted({**cells, "label": box.label, **{name: getattr(box, name) for name in SIZED}})
            )

    def _begin(self, columns: Sequence[str]) -> None:
        self._writer = csv.DictWriter(self._stream, columns, restval="", extrasaction="ignore")
        self._writer.writeheader()


@contextmanager
def _table(file: Path, columns: Sequence[str]) -> Iterator[Any]:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        yield lambda cells: writer.writerow(_quoted(cells))


def _cells(row: Row, image: str) -> dict[str, object]:
    return {**row.told, "image": image, "label": row.label, "split": row.split, "captured_at": row.captured_at}


def _quoted(cells: dict[str, object]) -> dict[str, object]:
    return {name: quoted(cell) if isinstance(cell, str) else cell for name, cell in cells.items()}


def write_coco(
    folder: Path, rows: Rows, classes: Sequence[str], told: Sequence[str] = ("group", "site", "camera", "sample")
) -> None:
    """``images``, and ``annotations.json``, or ``annotations/train.json`` and so on where pictures are divided.

    A label without a box is an annotation of the whole picture. Categories are numbered from 1 in the order of ``classes``;
    ``told`` names further fields of an image.
    """
    (folder / IMAGES).mkdir()
    numbers = {name: number for number, name in enumerate(classes, 1)}
    documents: dict[str, dict[str, Any]] = defaultdict(lambda: _document(classes))
    for row, data in rows:
        (folder / IMAGES / row.file_name).write_bytes(data)
        document = documents[row.split]
        number = len(document["images"]) + 1
        document["images"].append(_image(number, row, told))
        boxes: Sequence[Box | None] = row.boxes if row.boxes is not None else (None,) if row.label else ()
        for box in boxes:
            category = numbers[box.label if box is not None else row.label]
            document["annotations"].append(_annotation(len(document["annotations"]) + 1, number, category, row, box))
    if not documents:
        documents[""] = _document(classes)
    for split, document in documents.items():
        file = folder / FOLDER / f"{split}.json" if split else folder / ANNOTATIONS
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def _document(classes: Sequence[str]) -> dict[str, Any]:
    return {
        "info": {"description": "splitmesh", "version": "1"},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(classes, 1)],
    }


def _image(number: int, row: Row, told: Sequence[str]) -> dict[str, object]:
    return {
        "id": number,
        "file_name": f"{IMAGES}/{row.file_name}",
        "width": row.width,
        "height": row.height,
        **({"date_captured": row.captured_at} if row.captured_at else {}),
        **{name: row.told[name] for name in told if row.told.get(name)},
    }


def _annotation(number: int, image: int, category: int, row: Row, box: Box | None) -> dict[str, object]:
    bbox: list[float] = [0, 0, row.width, row.height] if box is None else [box.x, box.y, box.width, box.height]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
        "segmentation": [],
    }


def write_yolo(folder: Path, rows: Rows, classes: Sequence[str]) -> None:
    """``images/train``, ``labels/train`` and so on, and ``data.yaml``, as Ultralytics trains from it."""
    numbers = {name: number for number, name in enumerate(classes)}
    places: dict[str, str] = {}
    for row, data in rows:
        split = row.split or "train"
        places[split] = f"{IMAGES}/{split}"
        for kind in (IMAGES, LABELS):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        (folder / IMAGES / split / row.file_name).write_bytes(data)
        lines = [_line(numbers[box.label], box, row) for box in row.boxes or ()]
        (folder / LABELS / split / row.file_name).with_suffix(".txt").write_text("".join(lines))
    # Without "path" Ultralytics begins at the folder of the file.
    (folder / IMAGES).mkdir(exist_ok=True)
    document = {**(places or {"train": IMAGES}), "names": dict(enumerate(classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), encoding="utf-8")


def _line(number: int, box: Box, row: Row) -> str:
    x, y = (box.x + box.width / 2) / row.width, (box.y + box.height / 2) / row.height
    return f"{number} {x:.12g} {y:.12g} {box.width / row.width:.12g} {box.height / row.height:.12g}\n"
