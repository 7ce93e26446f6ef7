"""What ``data.yaml`` or ``classes.txt`` says: names of the classes, and where the pictures of each split are.

Knows the folder and its bounds, no boxes. The YAML is read as plain data, without aliases, which could make it grow without end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from splitmesh.datasets.files.found import IMAGES, SPLIT_NAMES
from splitmesh.datasets.files.inside import kind, text
from splitmesh.datasets.files.plain_yaml import plain_yaml
from splitmesh.datasets.problems import Problems
from splitmesh.errors import field_error

NAMES = ("classes.txt", "obj.names")
MAX_YAML_BYTES = 1 << 18
MAX_CLASSES = 10_000


@dataclass(frozen=True, slots=True)
class Config:
    """Where things are; all below the folder."""

    names: tuple[str, ...]
    """By number."""
    folders: tuple[tuple[str, Path], ...]
    """Split (empty: not said) and folder of pictures."""
    lists: tuple[tuple[str, Path], ...] = ()
    """Split and text file of pictures, one a line."""


def config_of(folder: Path, given: Path | None, problems: Problems) -> Config:
    """Of the YAML given, else of the only one in the folder, else of ``classes.txt``. Raises MeshError FIELD_INVALID."""
    file = given or _only_yaml(folder)
    if file is None:
        return _from_names(folder)
    values = plain_yaml(file, text(file, MAX_YAML_BYTES))
    names = _names(file, values)
    folders: list[tuple[str, Path]] = []
    lists: list[tuple[str, Path]] = []
    for split, written in _places(file, values):
        found = _place(_roots(folder, values), written, f"{file.name}, {split}", problems)
        if found is not None:
            (folders if found.is_dir() else lists).append((split, found))
    return Config(names, tuple(folders), tuple(lists))


def _only_yaml(folder: Path) -> Path | None:
    found = [path for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if not path.name.startswith(".")]
    named = [path for path in found if path.stem in ("data", "dataset")]
    chosen = named or found
    if len(chosen) > 1:
        raise field_error("source", f"which of {', '.join(path.name for path in chosen[:10])}? Give the file itself")
    return chosen[0] if chosen else None


def _names(file: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    names = values.get("names")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise field_error("source", f"{file.name!r}: names are not numbered from 0 on")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise field_error("source", f"{file.name!r} has no names of classes")
    if values.get("nc") not in (None, len(names)):
        raise field_error("source", f"{file.name!r}: nc is {values['nc']!r}, but there are {len(names)} names")
    return _checked_names(file, [str(name) for name in names])


def _checked_names(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) != len(names):
        raise field_error("source", f"{file.name!r} names {len(names)} classes: expected 1 to {MAX_CLASSES}, each once")
    return tuple(names)


def _places(file: Path, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = 0
    for name, split in SPLIT_NAMES.items():
        written = values.get(name) or []
        for one in [written] if isinstance(written, str) else written if isinstance(written, list) else [None]:
            if not isinstance(one, str):
                raise field_error("source", f"{file.name!r}: {name} is no folder, no file and no list of them")
            given += 1
            yield split, one
    if not given:
        raise field_error("source", f"{file.name!r} says of no split where its pictures are")


def _roots(folder: Path, values: Mapping[str, Any]) -> list[Path]:
    """Where paths begin: at ``path`` where that is below the folder. Often it is a path of the host that wrote the file."""
    written = str(values.get("path") or "")
    plain = PurePosixPath(written)
    if not written or ".." in plain.parts or plain.is_absolute() or kind(folder, plain) != "folder":
        return [folder]
    return [folder / plain, folder]


def _place(roots: Sequence[Path], written: str, where: str, problems: Problems) -> Path | None:
    # Roboflow writes ../train/images for train/images; Ultralytics reads it so too.
    plain = PurePosixPath(written.removeprefix("../"))
    if plain.is_absolute() or ".." in plain.parts or "\\" in written or "\0" in written:
        problems.add(where, f"{written!r} leads out of the folder")
        return None
    for root in roots:
        found = kind(root, plain)
        if found == "link":
            problems.add(where, f"{written!r} is, or lies behind, a symbolic link")
            return None
        if found != "nothing":
            return root / plain
    problems.add(where, f"{written!r} is not there")
    return None


def _from_names(folder: Path) -> Config:
    file = next((folder / name for name in NAMES if kind(folder, PurePosixPath(name)) == "file"), None)
    if file is None:
        raise field_error("source", f"{folder.name!r} has neither data.yaml nor {' nor '.join(NAMES)}")
    lines = [line.strip() for line in text(file, MAX_YAML_BYTES).splitlines()]
    names = _checked_names(file, [line for line in lines if line])
    images = PurePosixPath(IMAGES)
    split = [
        (known, folder / place)
        for name, known in SPLIT_NAMES.items()
        for place in (images / name, PurePosixPath(name) / IMAGES)
        if kind(folder, place) == "folder"
    ]
    if split:
        return Config(names, tuple(split))
    return Config(names, (("", folder / images),) if kind(folder, images) == "folder" else ())
