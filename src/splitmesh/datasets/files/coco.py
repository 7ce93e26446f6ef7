"""COCO: images, categories and annotations in JSON (cocodataset.org/#format-data). Reading; knows no pixel.

Of an annotation the box counts; masks and keypoints are left alone, and crowds (``iscrowd``), which are no single thing, are left
out. One file may hold everything, or one file each split.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from splitmesh.datasets.files.found import IMAGES, SPLIT_NAMES, Found, Listing, Mark, Numbers, gather
from splitmesh.datasets.files.inside import checked_source, is_linked, kind, leads_out, locate, text
from splitmesh.datasets.files.label_studio import served_name
from splitmesh.datasets.problems import Problems
from splitmesh.errors import MeshError, field_error

ANNOTATED = "annotations"
"""A folder that holds the files of annotations, beside those of pictures."""

_WORDS = re.compile(r"[a-z]+")
_BROKEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError)


def read_coco(source: Path, problems: Problems) -> Listing:
    """Every image of a COCO file, or of those of a folder: beside its pictures, in ``annotations``, or in folders of splits.

    Several files have to be called after a split each, such as ``instances_val2017.json``. Pictures are looked for beside the
    file, in the folder above ``annotations``, in ``images`` and in folders called like the split.

    Raises MeshError FIELD_INVALID when there is no such file, several that are no splits, or one that is no COCO file.
    """
    listing = Listing()
    names: list[str] = []
    for file, split in _files(source, problems):
        document = _document(file)
        try:
            _read(source, file, split, document, listing, names, problems)
        except MeshError:
            raise
        except _BROKEN as error:
            detail = f"{type(error).__name__} at {str(error)[:100]}"
            raise field_error("source", f"{file.name!r} is no COCO file: {detail}") from error
    listing.classes = tuple(dict.fromkeys(names))
    return listing


def _files(source: Path, problems: Problems) -> list[tuple[Path, str]]:
    if not source.is_dir():
        return [(source, "")]
    found = [file for name in ("", ANNOTATED, *SPLIT_NAMES) for file in _json_in(source, name, problems)]
    if len(found) == 1:
        return [(found[0], _split_of(source, found[0]))]
    named = [(file, _split_of(source, file)) for file in found]
    splits = [split for _, split in named]
    if not found or not all(splits) or len(set(splits)) != len(splits):
        told = ", ".join(path.name for path in found[:10]) or "none"
        detail = "expected one JSON file of annotations in the folder, or one for each split that is called after it"
        raise field_error("source", f"{detail}, found {told}")
    return named


def _json_in(source: Path, name: str, problems: Problems) -> list[Path]:
    """Plain files of a folder below the source; those behind a link are problems."""
    plain = []
    for file in sorted((source / name).glob("*.json")):
        found = kind(source, PurePosixPath(name, file.name))
        if found == "link":
            problems.add(str(PurePosixPath(name, file.name)), "is, or lies behind, a symbolic link")
        elif found == "file":
            plain.append(file)
    return plain


def _split_of(source: Path, file: Path) -> str:
    """The split that the file's name, or its folder's, names."""
    words = _WORDS.findall(file.stem.lower())
    if file.parent != source:
        words += _WORDS.findall(file.parent.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _document(file: Path) -> Mapping[str, Any]:
    checked_source(file)
    try:
        document = json.loads(text(file))
    except (ValueError, RecursionError) as error:
        raise field_error("source", f"{file.name!r} is no COCO file: it is not JSON") from error
    if not isinstance(document, dict):
        raise field_error("source", f"{file.name!r} is no COCO file: it is no JSON object")
    return document


def _read(
    source: Path,
    file: Path,
    split: str,
    document: Mapping[str, Any],
    listing: Listing,
    names: list[str],
    problems: Problems,
) -> None:
    categories = {_id(entry): _text(entry, "name") for entry in document.get("categories", [])}
    images = {_id(entry): entry for entry in document["images"]}
    if len(images) != len(document["images"]) or len(categories) != len(document.get("categories", [])):
        raise field_error("source", f"{file.name!r} has two images or two categories of one id")
    names += [categories[number] for number in sorted(categories, key=lambda one: (isinstance(one, str), one))]
    marks = _marks(file, document, images, categories, problems)
    base, roots = _roots(source, file, split)
    for number, image in images.items():
        name = served_name(_text(image, "file_name"))
        where = f"{file.name}, image {number}"
        path = locate(base, roots, name, problems, where)
        if path is None and (leads_out(name) or is_linked(base, roots, name)):
            continue
        listing.add(
            Found(
                name,
                path,
                tuple(marks[number]),
                size=_size(image),
                split=_split(image, split, where, problems),
                group=str(image.get("group") or ""),
                site=str(image.get("site") or ""),
                camera=str(image.get("camera") or ""),
                captured_at=_time(image.get("date_captured")),
            )
        )


def _marks(
    file: Path,
    document: Mapping[str, Any],
    images: Mapping[int | str, Mapping[str, Any]],
    categories: Mapping[int | str, str],
    problems: Problems,
) -> dict[int | str, dict[Mark, None]]:
    found: dict[int | str, dict[Mark, None]] = defaultdict(dict)
    for entry in document["annotations"]:
        image, category = entry["image_id"], entry["category_id"]
        where = f"{file.name}, annotation {str(entry.get('id', '?'))[:40]}"
        if image not in images:
            problems.add(f"image_id {image}", f"is no image of the file ({where})")
        elif category not in categories:
            name = _text(images[image], "file_name")
            problems.add(name, f"has the category {category}, which the file does not name ({where})")
        elif not entry.get("iscrowd"):
            gather(found[image], [Mark(categories[category], _box(entry), where)])
    return found


def _box(entry: Mapping[str, Any]) -> Numbers | None:
    box = entry.get("bbox")
    if not box:
        return None
    one, two, three, four = (_number(value) for value in box)
    return one, two, three, four


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("bbox")
    return float(value)


def _roots(source: Path, file: Path, split: str) -> tuple[Path, list[str]]:
    """Where pictures may lie: a folder, and folders below it."""
    beside = file.parent.name == ANNOTATED and source != file.parent
    called = [file.stem.rpartition("_")[2], *(name for name, known in SPLIT_NAMES.items() if known == split)]
    below = [f"{root}{name}" for name in called if not leads_out(name) for root in ("", f"{IMAGES}/")]
    return (file.parent.parent, [ANNOTATED, "", IMAGES, *below]) if beside else (file.parent, ["", IMAGES, *below])


def _split(image: Mapping[str, Any], split: str, where: str, problems: Problems) -> str:
    """The file's, or what the image says itself."""
    named = str(image.get("split") or "")
    if named and SPLIT_NAMES.get(named.lower(), "") not in ((split,) if split else SPLIT_NAMES.values()):
        problems.add(where, f"is of the split {named[:40]!r}, which is none or another than the file's")
    return split or SPLIT_NAMES.get(named.lower(), "")


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if isinstance(width, int) and isinstance(height, int) else None


def _time(written: object) -> datetime | None:
    """Many tools write a time without a zone, or when they made the file: only what is certain counts."""
    try:
        at = datetime.fromisoformat(str(written))
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _id(entry: Mapping[str, Any]) -> int | str:
    if not isinstance(entry["id"], int | str):
        raise TypeError("id")
    return entry["id"]


def _text(entry: Mapping[str, Any], name: str) -> str:
    if not isinstance(entry[name], str):
        raise TypeError(name)
    return str(entry[name])
