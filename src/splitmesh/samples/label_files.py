"""Labels read from what a labelling tool or a person wrote: COCO, class folders, a table. Names and labels, no samples.

Nothing outside the given folder is opened, whatever an annotation, a table or a symbolic link says. Which sample a name means is
``labelling.py``'s.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

from splitmesh.compress.cells import unquoted
from splitmesh.errors import MeshError, field_error
from splitmesh.samples.formats import IMAGES, TABLE, UNLABELLED
from splitmesh.samples.problems import Problems

Form = Literal["coco", "folder", "csv"]

MAX_TEXT_BYTES = 64 << 20
"""Of annotations or of a table; a larger file is refused unread."""
MAX_LISTED = 1_000_000
"""Pictures, annotations or rows of one source."""

IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "id")
LABEL_COLUMNS = ("label", "quality", "class", "choice")

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """One label of one picture, by the picture's name."""

    name: str
    """As it was written, below the source's folder."""
    label: str
    file: Path | None
    """The picture, where it lies beside: a plain file below the folder."""


def read_labels(source: Path, form: Form, problems: Problems) -> list[NamedLabel]:
    """All labels of ``source`` in its order; pictures without one are left out.

    Args:
        source: ``coco``: a JSON file, or a folder with exactly one, also in ``annotations``. ``csv``: a file, or a folder with
            ``labels.csv``; its columns are ``image`` (or ``path``, ``file_name``, ``filename``, ``id``) and ``label`` (or
            ``quality``, ``class``, ``choice``). ``folder``: a folder for each class; its own tables are not read.
        problems: gets what is wrong with single entries: names that lead out of the folder, links, unknown ids.

    Raises MeshError FIELD_INVALID when the source as a whole cannot be read or is too large.
    """
    readers: Mapping[Form, Callable[[Path, Problems], Iterator[NamedLabel]]] = {
        "coco": _from_coco,
        "folder": _from_folders,
        "csv": _from_table,
    }
    if form not in readers:
        raise field_error("form", f"{form!r} is none of {', '.join(readers)}")
    if source.is_symlink() or not source.exists():
        raise field_error("source", f"{source.name!r} is a link or not there")
    found: list[NamedLabel] = []
    try:
        for entry in readers[form](source, problems):
            if len(found) >= MAX_LISTED:
                raise field_error("source", f"{source.name!r} has more than {MAX_LISTED} entries")
            found.append(entry)
    except OSError as error:
        raise field_error("source", f"{source.name!r} cannot be read: {error.strerror}") from error
    return found


def _from_table(source: Path, problems: Problems) -> Iterator[NamedLabel]:
    table = source / TABLE if source.is_dir() else source
    rows = csv.DictReader(io.StringIO(_text(table), newline=""), strict=True)
    try:
        columns = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = columns
        image, label = _column(columns, IMAGE_COLUMNS), _column(columns, LABEL_COLUMNS)
        for row in rows:
            name, said = (unquoted((row.get(column) or "").strip()) for column in (image, label))
            if not name:
                problems.add(f"line {rows.line_num}", f"has no {image}")
            elif said:
                yield from _named(table.parent, name, said, problems)
    except csv.Error as error:
        raise field_error("source", f"{table.name!r}, line {rows.line_num}: {error}") from error


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str:
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        raise field_error("source", f"the table has the columns {columns[:20]}, none of them {' or '.join(wanted)}")
    return found


def _from_coco(source: Path, problems: Problems) -> Iterator[NamedLabel]:
    file = _annotations(source)
    try:
        document = json.loads(_text(file))
        categories = {_id(entry): _name(entry, "name") for entry in document.get("categories", [])}
        images = {_id(entry): _name(entry, "file_name") for entry in document["images"]}
        repeated = len(images) != len(document["images"]) or len(categories) != len(document.get("categories", []))
        pairs = [(entry["image_id"], entry["category_id"]) for entry in document["annotations"]]
        pairs = list(dict.fromkeys(pairs))
    except MeshError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__} at {str(error)[:100]}"
        raise field_error("source", f"{file.name!r} is no COCO file: {detail}") from error
    if repeated:
        raise field_error("source", f"{file.name!r} has two images or two categories of one id")
    root = file.parent.parent if file.parent.name == "annotations" and source != file.parent else file.parent
    for image, category in pairs:
        if image not in images:
            problems.add(f"image_id {image}", "is no image of the file")
        elif category not in categories:
            problems.add(images[image], f"has the category {category}, which the file does not name")
        else:
            yield from _named(root, images[image], categories[category], problems)


def _annotations(source: Path) -> Path:
    if not source.is_dir():
        return source
    found = sorted([*source.glob("*.json"), *source.glob("annotations/*.json")])
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:10]) or "none"
        raise field_error("source", f"expected one JSON file of annotations in the folder, found {names}")
    return found[0]


def _id(entry: Mapping[str, Any]) -> int | str:
    if not isinstance(entry["id"], int | str):
        raise TypeError("id")
    return entry["id"]


def _name(entry: Mapping[str, Any], field: str) -> str:
    if not isinstance(entry[field], str):
        raise TypeError(field)
    return str(entry[field])


def _from_folders(source: Path, problems: Problems) -> Iterator[NamedLabel]:
    if not source.is_dir():
        raise field_error("source", f"{source.name!r} is no folder")
    for folder, folders, names in os.walk(source, onerror=_unreadable):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *names]:
            if (here / name).is_symlink():
                problems.add(str((here / name).relative_to(source)), "is a symbolic link")
        parts = here.relative_to(source).parts
        if parts[:1] == (UNLABELLED,):
            folders.clear()
            continue
        for name in sorted(names):
            path = here / name
            if not (path.is_symlink() or _to_ignore(name, parts)):
                yield from _in_folder(path, parts, problems)


def _to_ignore(name: str, parts: tuple[str, ...]) -> bool:
    beside = not parts and Path(name).suffix.lower() not in _PICTURES
    return beside or name.startswith(".") or name.lower() in _CLUTTER


def _in_folder(path: Path, parts: tuple[str, ...], problems: Problems) -> Iterator[NamedLabel]:
    name = "/".join((*parts, path.name))
    if not parts:
        problems.add(name, "is in no class's folder")
    elif path.suffix.lower() not in _PICTURES:
        problems.add(name, f"is no picture ({', '.join(sorted(_PICTURES))})")
    else:
        yield NamedLabel(name, parts[0], path)


def _named(root: Path, name: str, label: str, problems: Problems) -> Iterator[NamedLabel]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
        problems.add(name, "leads out of the folder")
        return
    for base in (root, root / IMAGES):
        kind = _kind(base, path)
        if kind == "link":
            problems.add(name, "is, or lies behind, a symbolic link")
            return
        if kind == "file":
            yield NamedLabel(name, label, base / path)
            return
    yield NamedLabel(name, label, None)


def _kind(base: Path, path: PurePosixPath) -> Literal["file", "link", "nothing"]:
    mode = 0
    for part in (base, *(base.joinpath(*path.parts[: n + 1]) for n in range(len(path.parts)))):
        try:
            mode = part.lstat().st_mode
        except OSError:  # also names that no file can have
            return "nothing"
        if stat.S_ISLNK(mode):
            return "link"
    return "file" if stat.S_ISREG(mode) else "nothing"


def _unreadable(error: OSError) -> NoReturn:
    raise error


def _text(file: Path) -> str:
    mode = file.lstat()
    if not stat.S_ISREG(mode.st_mode):
        raise field_error("source", f"{file.name!r} is no plain file")
    if mode.st_size > MAX_TEXT_BYTES:
        raise field_error("source", f"{file.name!r} has {mode.st_size} bytes; at most {MAX_TEXT_BYTES} are read")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise field_error("source", f"{file.name!r} is not text in UTF-8") from error
