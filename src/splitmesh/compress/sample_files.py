"""Finds the pictures of a folder with their classes and groups: by sub-folder, by ``labels.csv``, by COCO annotations.

Reads names, tables and annotations, never a pixel; that is ``load_samples.py``'s. Nothing outside the folder is ever
listed, whatever a table, an annotation or a symbolic link says.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from splitmesh.compress.cells import unquoted
from splitmesh.errors import field_error

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Endings of picture files."""

TABLE = "labels.csv"
IMAGE_COLUMNS = ("image", "path")
LABEL_COLUMNS = ("label", "quality", "class")
GROUP_COLUMNS = ("unit", "group")
SPLIT_COLUMN = "split"

MAX_LISTED = 1_000_000
"""Files of a folder, rows of a table, annotations of a file; more are refused."""
MAX_TEXT_BYTES = 256 << 20
"""Of a table or of annotations; a larger file is refused unread."""


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One picture that is to be read."""

    path: Path
    label: str = ""
    """Name of its class; empty: not known."""
    group: str = ""
    """What it belongs to; empty: to nothing else."""


def find_pictures(source: Path, labels: Sequence[str], *, split: str = "") -> list[PictureFile]:
    """Every picture of ``source``, in an order that depends on names only. Which form it has decides the first that fits:

    - a ``.csv`` file, or a folder with ``labels.csv``: columns ``image`` (or ``path``; below the table's folder), the
      class in ``label``, ``quality`` or ``class``, what belongs together in ``unit`` or ``group``, ``split``. Of
      columns that mean the same the first one counts; only the image has to be there.
    - a ``.json`` file, or a folder with one beside its pictures or in ``annotations``: COCO. A picture's class is the
      category of its largest annotation. Files are looked for beside the annotations, in the folder above, and in
      ``images`` of both.
    - sub-folders named like classes of the model; pictures beside them have no class.
    - any other folder: pictures without classes, sub-folders included.

    Args:
        source: a folder or a file.
        labels: the model's class names; empty: nothing is said about classes.
        split: only rows of a table with this entry in ``split``; empty: all.

    Raises MeshError FIELD_INVALID when there is no picture, when something is outside the folder, when a table or an
    annotation cannot be read, and when classes are not called what the model calls them (both are named).
    """
    found, root = _listed(source, set(labels), split)
    if split and not found:
        raise field_error("calibration", f"no picture of the split {split!r} in {source}")
    if not found:
        raise field_error("calibration", f"no pictures ({', '.join(sorted(PICTURES))}) in {source}")
    if labels:
        _require_known({entry.label for entry in found}, labels, source)
    inside = root.resolve()
    for entry in found:
        if not entry.path.resolve().is_relative_to(inside):
            raise field_error("calibration", f"{entry.path} is outside {root}")
    return found


def _listed(source: Path, labels: set[str], split: str) -> tuple[list[PictureFile], Path]:
    table = source / TABLE if source.is_dir() else source
    if table.suffix.lower() == ".csv" and table.is_file():
        return _from_table(table, split, bool(labels)), table.parent
    if split:
        raise field_error("split", f"is {split!r}, but only a table such as {TABLE} says what belongs to it")
    annotations = _annotations(source)
    if annotations is not None:
        # Who names the file means the folder above too; who names a folder means what is in it.
        above = annotations.parent.name == "annotations" and source != annotations.parent
        root = annotations.parent.parent if above else annotations.parent
        return _from_coco(annotations, root, bool(labels)), root
    if not source.is_dir():
        raise field_error("calibration", f"{source} is neither a folder nor a table or annotations of one")
    return _from_folders(source, labels), source


def _from_folders(root: Path, labels: set[str]) -> list[PictureFile]:
    paths = sorted(_walk(root))
    classes = sorted({path.relative_to(root).parts[0] for path in paths if len(path.relative_to(root).parts) > 1})
    if not labels or (len(classes) < 2 and not labels & set(classes)):
        return [PictureFile(path) for path in paths]
    _require_known(set(classes), sorted(labels), root)
    return [PictureFile(path, parts[0] if len(parts := path.relative_to(root).parts) > 1 else "") for path in paths]


def _walk(root: Path) -> Iterator[Path]:
    inside = root.resolve()
    listed = 0
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        for name in folders:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise field_error("calibration", f"{path} is a symbolic link out of {root}")
        for name in names:
            if os.path.splitext(name)[1].lower() in PICTURES:
                listed += 1
                if listed > MAX_LISTED:
                    raise field_error("calibration", f"{root} holds more than {MAX_LISTED} pictures")
                yield Path(folder, name)


def _unreadable(error: OSError) -> NoReturn:
    raise field_error("calibration", f"{error.filename}: {error.strerror}") from error


def _from_table(table: Path, split: str, classes: bool) -> list[PictureFile]:
    rows = csv.DictReader(io.StringIO(_text(table), newline=""), strict=True)
    found = []
    try:
        columns = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = columns
        image = _column(columns, IMAGE_COLUMNS)
        if not image:
            raise field_error(
                "calibration", f"{table} has the columns {columns}, none of them {_either(IMAGE_COLUMNS)}"
            )
        label, group = _column(columns, LABEL_COLUMNS), _column(columns, GROUP_COLUMNS)
        if split and SPLIT_COLUMN not in columns:
            raise field_error("split", f"is {split!r}, but {table} has no column {SPLIT_COLUMN!r}")
        for number, row in enumerate(rows):
            if number >= MAX_LISTED:
                raise field_error("calibration", f"{table} has more than {MAX_LISTED} rows")
            if split and _cell(row, SPLIT_COLUMN) != split:
                continue
            name = _cell(row, image)
            if not name:
                raise field_error("calibration", f"{table}, line {rows.line_num}: no {image}")
            found.append(
                PictureFile(_below(table.parent, name), _cell(row, label) if classes else "", _cell(row, group))
            )
    except csv.Error as error:
        raise field_error("calibration", f"{table}, line {rows.line_num}: {error}") from error
    return found


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str:
    return next((name for name in wanted if name in columns), "")


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return unquoted((row.get(column) or "").strip()) if column else ""


def _annotations(source: Path) -> Path | None:
    if source.is_file():
        return source if source.suffix.lower() == ".json" else None
    found = [
        path
        for folder in (source, source / "annotations")
        if folder.is_dir()
        for path in sorted(folder.glob("*.json"))
        if path.is_file() and _is_coco(path)
    ]
    if len(found) > 1:
        raise field_error("calibration", f"which annotations? Give one of: {', '.join(str(path) for path in found)}")
    return found[0] if found else None


def _is_coco(path: Path) -> bool:
    """Beside pictures there may be any JSON; only what has the two lists is taken for annotations."""
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and {"images", "annotations"} <= document.keys()


def _from_coco(path: Path, root: Path, classes: bool) -> list[PictureFile]:
    try:
        document = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise field_error("calibration", f"{path} is not JSON") from error
    try:
        names = {entry["id"]: str(entry["name"]) for entry in document.get("categories", [])}
        largest: dict[Any, tuple[float, str]] = {}
        for entry in document["annotations"] if classes else ():
            size = _area(entry)
            if entry["image_id"] not in largest or size > largest[entry["image_id"]][0]:
                largest[entry["image_id"]] = size, names[entry["category_id"]]
        images = [(entry["id"], str(entry["file_name"])) for entry in document["images"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise field_error(
            "calibration", f"{path} is no COCO file: {type(error).__name__} at {str(error)[:100]}"
        ) from error
    if len(images) > MAX_LISTED:
        raise field_error("calibration", f"{path} names more than {MAX_LISTED} pictures")
    folders = [folder for base in (path.parent, root) for folder in (base, base / "images")]
    found = []
    for number, name in sorted(images, key=lambda image: image[1]):
        paths = [_below(folder, name) for folder in folders]
        file = next((one for one in paths if one.is_file()), paths[0])
        found.append(PictureFile(file, largest[number][1] if number in largest else ""))
    return found


def _area(annotation: Mapping[str, Any]) -> float:
    if "area" in annotation:
        return float(annotation["area"])
    box = annotation.get("bbox") or (0, 0, 0, 0)
    return float(box[2]) * float(box[3])


def _below(folder: Path, name: str) -> Path:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise field_error("calibration", f"{name!r} is no path below {folder}")
    return folder / path


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise field_error("calibration", f"{path} has {size} bytes; at most {MAX_TEXT_BYTES} are read")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise field_error("calibration", f"{path} is not text in UTF-8") from error


def _require_known(found: set[str], labels: Sequence[str], source: Path) -> None:
    unknown = sorted(found - set(labels) - {""})
    if unknown:
        raise field_error(
            "calibration",
            f"the classes in {source} are not the model's: {_few(unknown)}; the model's are {_few(labels)}",
        )


def _few(names: Sequence[str], most: int = 10) -> str:
    text = ", ".join(repr(name) for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)
