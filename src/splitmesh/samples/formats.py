"""Samples as folders that labelling tools and trainers read: COCO, and class folders with a table.

A folder appears whole or not at all. Knows the two forms and files; where pictures come from is the caller's. Reading labels
back is ``label_files.py``'s. Detections have no boxes in records yet: a COCO annotation covers its whole picture.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitmesh.compress.cells import quoted
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples.database import unusable
from splitmesh.samples.likeness import ENDINGS
from splitmesh.samples.problems import Problems
from splitmesh.samples.record import SampleRecord

ANNOTATIONS = "annotations.json"
IMAGES = "images"
TABLE = "labels.csv"
UNLABELLED = "_unlabelled"
"""The folder of pictures that have no label yet."""

COLUMNS = (
    "image",
    "label",
    "group",
    "id",
    "site",
    "node",
    "camera",
    "captured_at",
    "model",
    "version",
    "kind",
    "why",
    "score",
    "ease",
    "exit_label",
    "exit_confidence",
    "tail_label",
    "tail_confidence",
    "trace_id",
)
"""Of the table: the picture's path below it, its label or nothing, its split group, then fields of the record. Text that a
spreadsheet would take for a formula has an apostrophe before it, which reading labels takes away."""

_MAX_NAME_BYTES = 255

PictureOf = Callable[[str], bytes]
"""From a sample's id to its picture: ``SampleStore.picture``."""
_LOST = {Reason.SAMPLE_NOT_FOUND: "gone", Reason.ARTIFACT_NOT_FOUND: "gone", Reason.DIGEST_MISMATCH: "damaged"}
"""What costs an export one picture and not the others, and where it is counted."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    pictures: int
    labelled: int
    without_picture: int
    """Samples that have none and were left out."""
    gone: int = 0
    """Pictures that were let go of for others between being listed and being asked for."""
    damaged: int = 0
    """Pictures whose bytes are no longer those that were kept, and were left out."""


def export_coco(
    records: Iterable[SampleRecord], picture_of: PictureOf, folder: Path, *, classes: Sequence[str] = ()
) -> Exported:
    """``annotations.json`` and ``images``: a whole-image box with the label's ``category_id`` for each that has a label.

    Pictures are named by their SHA-256, each once. Categories are numbered from 1 in the order of ``classes``, or of their names
    when that is empty; pictures and annotations in the order of the digests, so that the same samples give the same file.

    Raises MeshError: FIELD_INVALID for two labels of one picture, a label that is none of ``classes``, a folder that is not
    empty; STORAGE_FULL; and as ``picture_of`` does, except for a picture that is gone or damaged: it is counted.
    """
    chosen, left_out = _pictures(records, classes)
    names = list(classes) or sorted({record.label for record in chosen if record.label is not None})
    category = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    lost: Counter[str] = Counter()
    with _appearing(folder) as staging:
        (staging / IMAGES).mkdir()
        for record, data in _still_there(chosen, picture_of, lost):
            file, number = _file_name(record), len(images) + 1
            (staging / IMAGES / file).write_bytes(data)
            images.append(_coco_image(number, file, record))
            if record.label is not None:
                annotations.append(_coco_annotation(number, category[record.label], record))
        document = {
            "info": {"description": "splitmesh samples", "version": "1"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in category.items()],
        }
        (staging / ANNOTATIONS).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return Exported(len(images), len(annotations), left_out, **lost)


def export_folder(
    records: Iterable[SampleRecord], picture_of: PictureOf, folder: Path, *, classes: Sequence[str] = ()
) -> Exported:
    """A folder for each label (ImageFolder), ``_unlabelled`` for the rest, and ``labels.csv`` over all of them.

    With ``classes`` every one of them has its folder, also an empty one, to move pictures into. Raises as :func:`export_coco`,
    and FIELD_INVALID for a label that can be no folder's name.
    """
    chosen, left_out = _pictures(records, classes)
    folders = {*classes, *(record.label for record in chosen if record.label is not None)}
    with Problems("label", "labels cannot name folders") as problems:
        for name in sorted(folders):
            if not _names_folder(name):
                problems.add(name, "is no name of a folder")
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(COLUMNS)
    lost: Counter[str] = Counter()
    with _appearing(folder) as staging:
        for name in sorted({*folders, UNLABELLED}):
            (staging / name).mkdir()
        written = []
        for record, data in _still_there(chosen, picture_of, lost):
            image = f"{record.label or UNLABELLED}/{_file_name(record)}"
            (staging / image).write_bytes(data)
            written.append(record)
            cells = (image, record.label or "", record.group, *_cells(record))
            rows.writerow([quoted(cell) if isinstance(cell, str) else cell for cell in cells])
        (staging / TABLE).write_text(table.getvalue(), encoding="utf-8", newline="")
    labelled = sum(record.label is not None for record in written)
    return Exported(len(written), labelled, left_out, **lost)


def _still_there(
    chosen: Iterable[SampleRecord], picture_of: PictureOf, lost: Counter[str]
) -> Iterator[tuple[SampleRecord, bytes]]:
    """Those whose picture is whole; the others are counted in ``lost``."""
    for record in chosen:
        try:
            data = picture_of(record.id)
        except MeshError as error:
            if error.reason not in _LOST:
                raise
            lost[_LOST[error.reason]] += 1
        else:
            yield record, data


def _pictures(records: Iterable[SampleRecord], classes: Sequence[str]) -> tuple[list[SampleRecord], int]:
    """One record for each picture, the earliest that has a label before those without, in the order of the digests."""
    chosen: dict[str, SampleRecord] = {}
    left_out = 0
    with Problems("label", "samples cannot be exported") as problems:
        for record in records:
            if record.picture is None:
                left_out += 1
                continue
            if classes and record.label is not None and record.label not in classes:
                problems.add(record.id, f"its label {record.label!r} is none of the classes")
            other = chosen.setdefault(record.picture, record)
            if other.label is not None and record.label not in (None, other.label):
                problems.add(record.id, f"shows what {other.id} shows: {record.label!r}, there {other.label!r}")
            chosen[record.picture] = min(other, record, key=lambda one: (one.label is None, one.id))
    return [chosen[digest] for digest in sorted(chosen)], left_out


def _names_folder(name: str) -> bool:
    plain = not ({"/", "\\"} & set(name) or name.startswith("."))
    return plain and name not in (UNLABELLED, TABLE) and len(name.encode()) <= _MAX_NAME_BYTES


def _file_name(record: SampleRecord) -> str:
    return f"{record.picture}{ENDINGS.get(record.media_type, '')}"


def _coco_image(number: int, file: str, record: SampleRecord) -> dict[str, object]:
    return {
        "id": number,
        "file_name": f"{IMAGES}/{file}",
        "width": record.width,
        "height": record.height,
        "date_captured": record.captured_at.isoformat(),
        "sample": record.id,
        "camera": record.camera,
        "site": record.site,
    }


def _coco_annotation(number: int, category: int, record: SampleRecord) -> dict[str, object]:
    return {
        "id": number,
        "image_id": number,
        "category_id": category,
        "bbox": [0, 0, record.width, record.height],
        "area": record.width * record.height,
        "iscrowd": 0,
        "segmentation": [],
    }


def _cells(record: SampleRecord) -> Iterator[object]:
    for column in COLUMNS[3:]:
        value = getattr(record, column)
        yield value.isoformat() if column == "captured_at" else value


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its place when the block ends well and is gone when it does not."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise field_error("folder", "is there and not an empty folder")
    folder = folder.resolve()  # "." has no name to make another one of
    if folder.exists() and folder.samefile(os.curdir):
        raise field_error("folder", f"{folder} is where this command runs: give another one, which may be below it")
    staging = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        os.replace(staging, folder)
    except OSError as error:
        found = unusable(error)
        raise MeshError(found.reason, f"the export cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
