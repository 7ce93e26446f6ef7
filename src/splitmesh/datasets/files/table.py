"""A table of labels: CSV, a row for each picture, or for each box. Reading; knows no pixel."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from splitmesh.compress.cells import unquoted
from splitmesh.datasets.files.found import IMAGES, SPLIT_NAMES, TABLE, Found, Listing, Mark, Numbers, gather
from splitmesh.datasets.files.inside import MAX_LISTED, is_linked, leads_out, locate, text
from splitmesh.datasets.files.label_studio import boxes_of, served_name
from splitmesh.datasets.problems import Problems
from splitmesh.errors import field_error

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "id")
LABEL_COLUMNS = ("label", "quality", "class", "choice")
GROUP_COLUMNS = ("group", "unit")
SIZED = ("x", "y", "width", "height")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
"""The two ways to write a box, in pixels."""


def read_table(source: Path, problems: Problems, *, label_column: str = "", group_column: str = "") -> Listing:
    """Every row of a CSV file, or of ``labels.csv`` in a folder; pictures are looked for beside it and in ``images``.

    Columns: ``image`` (or ``path``, ``file_name``, ``filename``, ``id``), ``label`` (or ``quality``, ``class``, ``choice``)
    and, where they are there, ``split``, ``group`` (or ``unit``), ``site``, ``camera``, ``captured_at`` (ISO 8601 with a
    zone), and a box in pixels as ``x, y, width, height`` or ``xmin, ymin, xmax, ymax``, a row for each. A row with a picture
    and nothing else says that there is nothing on it. Other columns are left alone.

    Args:
        source: the file or the folder.
        problems: gets what is wrong with rows, with the line.
        label_column: in place of ``label``.
        group_column: in place of ``group``.

    Raises MeshError FIELD_INVALID when the table as a whole cannot be read.
    """
    file = source / TABLE if source.is_dir() else source
    rows = csv.DictReader(io.StringIO(text(file), newline=""), strict=True)
    found: dict[str, Found] = {}
    marks: dict[str, dict[Mark, None]] = defaultdict(dict)
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        columns = _Columns(names, label_column, group_column)
        for row in rows:
            if rows.line_num > MAX_LISTED * 2:
                raise field_error("source", f"{file.name!r} has too many lines")
            cells = {name: unquoted((row.get(name) or "").strip()) for name in names}
            _add_row(file, columns, cells, f"{file.name}, line {rows.line_num}", found, marks, problems)
    except csv.Error as error:
        raise field_error("source", f"{file.name!r}, line {rows.line_num}: {error}") from error
    listing = Listing(boxes=bool(columns.box) or any(mark.box for several in marks.values() for mark in several))
    for name, one in found.items():
        listing.add(replace(one, marks=tuple(marks[name])))
    listing.classes = tuple(sorted({mark.label for one in listing for mark in one.marks}))
    return listing


class _Columns:
    """Which column means what."""

    def __init__(self, names: Sequence[str], label: str, group: str) -> None:
        self.image = _column(names, IMAGE_COLUMNS)
        self.label = _column(names, (label,) if label else LABEL_COLUMNS)
        self.group = _column(names, (group,)) if group else next((n for n in GROUP_COLUMNS if n in names), "")
        self.box = next((way for way in (SIZED, CORNERS) if set(way) <= set(names)), ())


def _column(names: Sequence[str], wanted: Sequence[str]) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise field_error("source", f"the table has the columns {list(names)[:20]}, none of them {' or '.join(wanted)}")
    return found


def _add_row(
    file: Path,
    columns: _Columns,
    cells: dict[str, str],
    where: str,
    found: dict[str, Found],
    marks: dict[str, dict[Mark, None]],
    problems: Problems,
) -> None:
    name = served_name(cells[columns.image])
    if not name:
        problems.add(where, f"has no {columns.image}")
        return
    known = found.get(name)
    if known is None:
        roots = ("", IMAGES)
        path = locate(file.parent, roots, name, problems, where)
        if path is None and (leads_out(name) or is_linked(file.parent, roots, name)):
            return
        known = Found(name, path)
    said = _said(columns, cells, where, problems)
    if said is None:
        return
    if name in found and any(getattr(said, field) != getattr(known, field) for field in _ONCE):
        problems.add(name, f"has other values than in a row before ({where})")
        return
    gather(marks[name], said.marks)
    found[name] = replace(said, name=name, file=known.file, marks=(), relative=said.relative or known.relative)


_ONCE = ("split", "group", "site", "camera", "captured_at")


def _said(columns: _Columns, cells: dict[str, str], where: str, problems: Problems) -> Found | None:
    """What a row says of its picture; None when it is a problem."""
    try:
        split = _split(cells.get("split", ""))
        captured_at = _time(cells.get("captured_at", ""))
        label, numbers = cells[columns.label], [cells[name] for name in columns.box]
        studio = boxes_of(label)
        if studio is not None:
            marks = tuple(Mark(name, box, where) for name, box in studio)
        elif any(numbers):
            marks = (Mark(_given(label), _box(columns.box, numbers), where),)
        else:
            marks = (Mark(label, where=where),) if label else ()
    except ValueError as error:
        problems.add(where, str(error))
        return None
    return Found(
        "",
        None,
        marks,
        relative=studio is not None,
        split=split,
        group=cells.get(columns.group, ""),
        site=cells.get("site", ""),
        camera=cells.get("camera", ""),
        captured_at=captured_at,
    )


def _given(label: str) -> str:
    if not label:
        raise ValueError("a box has no label")
    return label


def _box(names: Sequence[str], numbers: Sequence[str]) -> Numbers:
    try:
        one, two, three, four = (float(number) for number in numbers)
    except ValueError as error:
        raise ValueError(f"{', '.join(names)} are {', '.join(numbers)[:80]}: no box of four numbers") from error
    return (one, two, three - one, four - two) if tuple(names) == CORNERS else (one, two, three, four)


def _split(name: str) -> str:
    if name and name.lower() not in SPLIT_NAMES:
        raise ValueError(f"the split {name!r} is none of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[name.lower()] if name else ""


def _time(written: str) -> datetime | None:
    if not written:
        return None
    try:
        at = datetime.fromisoformat(written)
    except ValueError as error:
        raise ValueError(f"captured_at {written[:40]!r} is no time such as 2026-03-01T14:30+01:00") from error
    if at.tzinfo is None:
        raise ValueError(f"captured_at {written!r} has no zone; write it as in 2026-03-01T14:30+01:00")
    return at
