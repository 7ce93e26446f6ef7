"""Reads a dataset that another tool wrote: every picture with its label or boxes, or every problem by name.

What the forms mean is their modules'; what pictures are is ``pictures.py``'s. Dividing and storing are the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from functools import partial
from pathlib import Path, PurePosixPath

from splitmesh.datasets.files.coco import read_coco
from splitmesh.datasets.files.found import FORMS, Form, Found, Listing
from splitmesh.datasets.files.imagefolder import read_imagefolder
from splitmesh.datasets.files.inside import checked_source
from splitmesh.datasets.files.pictures import Opened, boxes_in, covers, label_problem, open_pictures
from splitmesh.datasets.files.table import read_table
from splitmesh.datasets.files.yolo import read_yolo
from splitmesh.datasets.item import Item
from splitmesh.datasets.manifest import MAX_GROUP_CHARS, MAX_NAME_CHARS, TASKS, Task
from splitmesh.datasets.problems import Problems
from splitmesh.errors import field_error

OnPicture = Callable[[int, int], None]
"""Told pictures done and pictures altogether."""

REGEX = "regex:"


@dataclass(frozen=True, slots=True)
class Options:
    """How to read, and what holds where the form does not say."""

    task: str = ""
    """``classification`` or ``detection``; empty: what the form holds."""
    site: str = ""
    camera: str = ""
    labelled_by: str = ""
    exif: bool = False
    """Take moments and cameras from EXIF where the form says neither."""
    keep_splits: bool = True
    """Else the splits of the form are forgotten."""
    group_by: str = ""
    """What belongs together: ``folder``, ``camera-hour``, ``column`` (named by ``group_column``) or ``regex:PATTERN``, looked
    for in the picture's name, its first group counts. Empty: the form's groups, else the camera's hour, else each alone."""
    label_column: str = ""
    """Of a table; empty: see :func:`~splitmesh.datasets.files.table.read_table`."""
    group_column: str = ""


@dataclass(frozen=True, slots=True)
class PictureItem:
    """One picture and where it lies."""

    item: Item
    path: Path


@dataclass(frozen=True, slots=True)
class Read:
    """What a source holds."""

    task: Task
    classes: tuple[str, ...]
    """In the form's order."""
    pictures: tuple[PictureItem, ...]
    """In the form's order; of a classification also those without a label."""


def list_source(source: Path, form: Form, problems: Problems, options: Options | None = None) -> Listing:
    """What a source names, its pictures unopened. MeshError FIELD_INVALID when it cannot be read as a whole."""
    options = options or Options()
    readers: Mapping[str, Callable[[Path, Problems], Listing]] = {
        "imagefolder": read_imagefolder,
        "csv": partial(read_table, label_column=options.label_column, group_column=options.group_column),
        "coco": read_coco,
        "yolo": read_yolo,
    }
    if form not in readers:
        raise field_error("form", f"{form!r} is none of {', '.join(FORMS)}")
    # Links above the source are the caller's own way to it; below it none is followed.
    source = checked_source(source).resolve()
    try:
        return readers[form](source, problems)
    except OSError as error:
        raise field_error("source", f"{source.name!r} cannot be read: {error.strerror}") from error


def read(
    source: Path, form: Form, problems: Problems, options: Options | None = None, on_picture: OnPicture | None = None
) -> Read:
    """Every picture of ``source`` with what is said of it; reads all pictures once.

    Args:
        source: a folder or a file, see the form's module.
        form: what it is.
        problems: gets everything that is wrong with a picture, a row or a box, with file and line; what is told there is not
            among the pictures.
        options: see :class:`Options`.
        on_picture: told how far it is.

    Raises MeshError FIELD_INVALID when the source as a whole cannot be read, is too large, or an option is wrong.
    """
    options = options or Options()
    if options.task not in ("", *TASKS):
        raise field_error("task", f"{options.task!r} is none of {', '.join(TASKS)}")
    group_of = _grouping(options)
    listing = list_source(source, form, problems, options)
    if not listing.found:
        problems.add(source.name, "holds no pictures")
    opened: list[Opened] = []
    for done, (found, one) in enumerate(open_pictures(listing.found, exif=options.exif), 1):
        if isinstance(one, str):
            problems.add(found.name, one)
        else:
            opened.append(one)
        if on_picture:
            on_picture(done, len(listing.found))
    task = _task(listing, opened, options.task)
    said = f"imported from {form}"
    pictures = (_item(one, task, options, said, group_of, problems) for one in opened)
    return Read(task, listing.classes, tuple(picture for picture in pictures if picture is not None))


def _task(listing: Listing, opened: list[Opened], wanted: str) -> Task:
    for task in TASKS:
        if wanted == task:
            return task
    if listing.boxes is not None:
        return "detection" if listing.boxes else "classification"
    whole = all(_is_whole(one) for one in opened)
    return "classification" if whole and any(one.found.marks for one in opened) else "detection"


def _is_whole(one: Opened) -> bool:
    """Whether the annotations of a picture say only what it shows, as classifications in COCO do."""
    marks = one.found.marks
    return all(covers(mark, one.found, one.item.width, one.item.height) for mark in marks) and (
        len({mark.label for mark in marks}) < 2
    )


def _item(
    one: Opened, task: Task, options: Options, said: str, group_of: Callable[[Found], str], problems: Problems
) -> PictureItem | None:
    found = one.found
    found = replace(found, site=found.site or options.site, camera=found.camera or options.camera)
    try:
        label = _label(found) if task == "classification" else ""
        group = group_of(found)
        _check_texts(found, group)
    except ValueError as error:
        problems.add(found.name, str(error))
        return None
    boxes = None
    if task == "detection":
        boxes, wrong = boxes_in(one)
        for where, problem in wrong:
            problems.add(where, problem)
        if wrong:
            return None
    item = replace(
        one.item,
        label=label,
        boxes=boxes,
        site=found.site,
        camera=found.camera,
        captured_at=found.captured_at.astimezone(UTC) if found.captured_at else None,
        group=group,
        split=found.split or None if options.keep_splits else None,  # type: ignore[arg-type]  # readers check it
        provenance=said,
        labelled_by=options.labelled_by,
    )
    return PictureItem(item, one.path)


def _label(found: Found) -> str:
    labels = list(dict.fromkeys(mark.label for mark in found.marks))
    if len(labels) > 1:
        raise ValueError(f"has two labels: {labels[0]!r} and {labels[1]!r}")
    if labels and (problem := label_problem(labels[0])):
        raise ValueError(problem)
    return labels[0] if labels else ""


def _check_texts(found: Found, group: str) -> None:
    limits = (
        ("site", found.site, MAX_NAME_CHARS),
        ("camera", found.camera, MAX_NAME_CHARS),
        ("group", group, MAX_GROUP_CHARS),
    )
    for name, value, most in limits:
        if len(value) > most or not value.isprintable():
            raise ValueError(f"its {name} {value[:40]!r} is not at most {most} printable characters")


def _grouping(options: Options) -> Callable[[Found], str]:
    how = options.group_by
    ways: Mapping[str, Callable[[Found], str]] = {
        "": lambda found: found.group,
        "folder": lambda found: f"folder/{PurePosixPath(found.name).parent}",
        "camera-hour": _camera_hour,
        "column": _column,
    }
    if how.startswith(REGEX):
        try:
            return partial(_by_pattern, re.compile(how.removeprefix(REGEX)))
        except re.error as error:
            raise field_error("group_by", f"{how[:100]!r} is no regular expression: {error}") from error
    if how not in ways:
        raise field_error("group_by", f"{how[:40]!r} is none of folder, camera-hour, column and {REGEX}PATTERN")
    return ways[how]


def _camera_hour(found: Found) -> str:
    if found.captured_at is None:
        raise ValueError("says no moment, so its camera's hour is unknown")
    return ""


def _column(found: Found) -> str:
    if not found.group:
        raise ValueError("has no group")
    return found.group


def _by_pattern(pattern: re.Pattern[str], found: Found) -> str:
    match = pattern.search(found.name)
    if match is None:
        raise ValueError(f"its name has nothing that {pattern.pattern[:60]!r} matches")
    group = match[1] if pattern.groups else match[0]
    if not group:
        raise ValueError(f"what {pattern.pattern[:60]!r} matches in its name is empty")
    return group
