"""Class folders: ``class/picture``, also below ``train``, ``val`` and ``test``. Reading; knows no pixel."""

from __future__ import annotations

from pathlib import Path

from splitmesh.datasets.files.found import SPLIT_NAMES, UNLABELLED, Found, Listing, Mark
from splitmesh.datasets.files.inside import PICTURES, checked_folder, is_picture, walk
from splitmesh.datasets.problems import Problems


def read_imagefolder(source: Path, problems: Problems) -> Listing:
    """Every picture with the class that its folder names; those in ``_unlabelled`` have none.

    The first folders are splits where all of them are called like one and hold folders themselves. Tables and other files
    beside the folders are not read. What lies in a class's folder and is no picture, and pictures in no class, are problems.

    Raises MeshError FIELD_INVALID when ``source`` is no folder or holds too much.
    """
    splits = _are_splits(checked_folder(source))
    depth = 1 if splits else 0
    listing = Listing(classes=_classes(source, splits), boxes=False)
    for path, parts in walk(source, problems):
        name = "/".join((*parts, path.name))
        inner = parts[depth:]
        if inner[:1] == (UNLABELLED,):
            if is_picture(path):
                listing.add(Found(name, path, split=_split(parts, splits)))
        elif not inner:
            if is_picture(path):
                problems.add(name, "is in no class's folder")
        elif not is_picture(path):
            problems.add(name, f"is no picture ({', '.join(sorted(PICTURES))})")
        else:
            listing.add(Found(name, path, (Mark(inner[0], where=name),), split=_split(parts, splits)))
    return listing


def _split(parts: tuple[str, ...], splits: bool) -> str:
    return SPLIT_NAMES[parts[0].lower()] if splits else ""


def _are_splits(source: Path) -> bool:
    folders = _folders(source)
    named = bool(folders) and all(folder.name.lower() in SPLIT_NAMES for folder in folders)
    return named and any(_folders(folder) for folder in folders)


def _classes(source: Path, splits: bool) -> tuple[str, ...]:
    roots = _folders(source) if splits else [source]
    return tuple(sorted({folder.name for root in roots for folder in _folders(root)} - {UNLABELLED}))


def _folders(source: Path) -> list[Path]:
    hidden_or_links = (path for path in source.iterdir() if path.is_dir() and not path.is_symlink())
    return [path for path in hidden_or_links if not path.name.startswith(".")]
