"""Samples as folders that labelling tools and trainers read: COCO, and class folders with a table.

A folder appears whole or not at all. Knows which picture of which record is written; the forms are ``datasets.files``'s, and
where pictures come from is the caller's. Detections have no boxes in records yet: a COCO annotation covers its whole picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitmesh.datasets.files.appearing import appearing
from splitmesh.datasets.files.found import ANNOTATIONS, IMAGES, TABLE, UNLABELLED
from splitmesh.datasets.files.rows import Row, Rows
from splitmesh.datasets.files.writers import check_folder_names, write_coco, write_imagefolder
from splitmesh.datasets.problems import Problems
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.record import SampleRecord

__all__ = ["ANNOTATIONS", "COLUMNS", "IMAGES", "TABLE", "UNLABELLED", "Exported", "export_coco", "export_folder"]

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
    counts: Counter[str] = Counter()
    with appearing(folder) as staging:
        write_coco(staging, _rows(chosen, picture_of, counts), names, ("sample", "camera", "site", "group"))
    return _exported(counts, left_out)


def export_folder(
    records: Iterable[SampleRecord], picture_of: PictureOf, folder: Path, *, classes: Sequence[str] = ()
) -> Exported:
    """A folder for each label (ImageFolder), ``_unlabelled`` for the rest, and ``labels.csv`` over all of them.

    With ``classes`` every one of them has its folder, also an empty one, to move pictures into. Raises as :func:`export_coco`,
    and FIELD_INVALID for a label that can be no folder's name.
    """
    chosen, left_out = _pictures(records, classes)
    names = sorted({*classes, *(record.label for record in chosen if record.label is not None)})
    check_folder_names(names)
    counts: Counter[str] = Counter()
    with appearing(folder) as staging:
        write_imagefolder(staging, _rows(chosen, picture_of, counts), names, COLUMNS)
    return _exported(counts, left_out)


def _exported(counts: Counter[str], left_out: int) -> Exported:
    return Exported(counts["pictures"], counts["labelled"], left_out, counts["gone"], counts["damaged"])


def _rows(chosen: Iterable[SampleRecord], picture_of: PictureOf, counts: Counter[str]) -> Rows:
    """Those whose picture is whole; all are counted."""
    for record in chosen:
        try:
            data = picture_of(record.id)
        except MeshError as error:
            if error.reason not in _LOST:
                raise
            counts[_LOST[error.reason]] += 1
        else:
            counts["pictures"] += 1
            counts["labelled"] += record.label is not None
            yield _row(record), data


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


def _row(record: SampleRecord) -> Row:
    return Row(
        picture=record.picture or "",
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        label=record.label or "",
        captured_at=record.captured_at.isoformat(),
        told={"group": record.group, "sample": record.id, **dict(_cells(record))},
    )


def _cells(record: SampleRecord) -> Iterator[tuple[str, object]]:
    for column in COLUMNS[3:]:
        if column != "captured_at":
            yield column, getattr(record, column)
