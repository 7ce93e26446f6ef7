"""Writes a version of a dataset as the files of another tool. Knows datasets and forms; pictures come from the caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmesh.datasets.files.appearing import appearing
from splitmesh.datasets.files.found import FORMS, Form
from splitmesh.datasets.files.rows import Row, Rows, row_of
from splitmesh.datasets.files.writers import (
    check_folder_names,
    write_coco,
    write_imagefolder,
    write_table,
    write_yolo,
)
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason, field_error

PictureOf = Callable[[str], bytes]
"""From a picture's SHA-256 to its bytes: ``PictureFolder.read``."""
OnPicture = Callable[[int, int], None]
"""Told pictures done and pictures altogether."""

_WRITERS: Mapping[Form, Callable[[Path, Rows, Sequence[str]], None]] = {
    "imagefolder": write_imagefolder,
    "csv": write_table,
    "coco": write_coco,
    "yolo": write_yolo,
}


@dataclass(frozen=True, slots=True)
class Written:
    """What an export wrote."""

    pictures: int
    missing: int = 0
    """Pictures that are not at this site, where they may be left out."""


def write(
    dataset: Dataset,
    pictures: PictureOf,
    folder: Path,
    form: Form,
    *,
    skip_missing: bool = False,
    on_picture: OnPicture | None = None,
) -> Written:
    """The dataset in ``folder``, which appears whole or not at all; pictures are called after their SHA-256.

    Args:
        dataset: a version.
        pictures: gives the bytes of a picture, or raises MeshError ARTIFACT_NOT_FOUND where it has none.
        folder: new or empty.
        form: ``imagefolder`` holds a classification, ``yolo`` a detection, the others both.
        skip_missing: leave out pictures that are not there, rather than write nothing.
        on_picture: told how far it is.

    Raises MeshError FIELD_INVALID for a form that cannot hold the task or a class, or a folder that is not empty;
    ARTIFACT_NOT_FOUND, DIGEST_MISMATCH as ``pictures``; STORAGE_FULL.
    """
    if form not in _WRITERS:
        raise field_error("form", f"{form!r} is none of {', '.join(FORMS)}")
    _check_fits(dataset, form)
    counts: Counter[str] = Counter()
    with appearing(folder) as staging:
        _WRITERS[form](staging, _rows(dataset, pictures, skip_missing, counts, on_picture), dataset.classes)
    return Written(counts["pictures"], counts["missing"])


def _check_fits(dataset: Dataset, form: Form) -> None:
    detection = dataset.task == "detection"
    if form == "imagefolder":
        if detection:
            raise field_error("form", "class folders cannot hold boxes: export this detection as yolo, coco or csv")
        check_folder_names(dataset.classes)
    if form == "yolo" and not detection:
        raise field_error("form", "this is a classification: YOLO reads these as imagefolder")


def _rows(
    dataset: Dataset, pictures: PictureOf, skip_missing: bool, counts: Counter[str], on_picture: OnPicture | None
) -> Iterator[tuple[Row, bytes]]:
    for done, entry in enumerate(dataset.entries, 1):
        try:
            data = pictures(entry.picture)
        except MeshError as error:
            if not skip_missing or error.reason is not Reason.ARTIFACT_NOT_FOUND:
                raise
            counts["missing"] += 1
        else:
            counts["pictures"] += 1
            yield row_of(entry, dataset.task == "detection"), data
        if on_picture:
            on_picture(done, len(dataset.entries))
