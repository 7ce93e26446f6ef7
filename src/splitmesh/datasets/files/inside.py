"""Which files a source may mean: nothing outside its folder is opened, whatever a table, an annotation or a link says.

Knows names, folders and bounds; no form and no pixel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

from splitmesh.datasets.problems import Problems
from splitmesh.errors import field_error

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""Endings of picture files."""
MAX_TEXT_BYTES = 256 << 20
"""Of annotations or of a table; a larger file is refused unread."""
MAX_LISTED = 1_000_000
"""Pictures, annotations or rows of one source."""

_CLUTTER = frozenset({"thumbs.db", "desktop.ini"})


def checked_source(source: Path) -> Path:
    """FIELD_INVALID for a link and for what is not there."""
    if source.is_symlink():
        raise field_error("source", f"{source.name!r} is a symbolic link: give what it leads to")
    if not source.exists():
        raise field_error("source", f"{source.name!r} is not there")
    return source


def checked_folder(source: Path) -> Path:
    """FIELD_INVALID for anything else."""
    if not source.is_dir():
        raise field_error("source", f"{source.name!r} is no folder")
    return source


def leads_out(name: str) -> bool:
    """Whether a name as written is no plain path below a folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":"


def locate(base: Path, roots: Sequence[str], name: str, problems: Problems, where: str) -> Path | None:
    """The plain file that ``name`` means below the first of ``roots``, folders below ``base``, that has it; None: there is none.

    A name that leads out and a link go to ``problems``, with ``where`` it was written; ask :func:`leads_out` and
    :func:`is_linked` to tell them from None.
    """
    if leads_out(name):
        problems.add(name, f"leads out of the folder ({where})")
        return None
    for root in roots:
        found = kind(base, PurePosixPath(root, name))
        if found == "link":
            problems.add(name, f"is, or lies behind, a symbolic link ({where})")
            return None
        if found == "file":
            return base / root / name
    return None


def is_linked(base: Path, roots: Sequence[str], name: str) -> bool:
    """Whether the name means a link, or something behind one."""
    return any(kind(base, PurePosixPath(root, name)) == "link" for root in roots)


def kind(base: Path, path: PurePosixPath) -> str:
    """``file``, ``folder``, ``link`` (any part of it below ``base``, or ``base`` itself) or ``nothing``."""
    mode = 0
    for part in (base, *(base.joinpath(*path.parts[: n + 1]) for n in range(len(path.parts)))):
        try:
            mode = part.lstat().st_mode
        except OSError:  # also names that no file can have
            return "nothing"
        if stat.S_ISLNK(mode):
            return "link"
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "nothing"


def walk(root: Path, problems: Problems, base: Path | None = None) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Plain files below ``root`` with the folders they lie in, sorted; links go to ``problems``, hidden files are left out.

    ``base``: the folder that names in ``problems`` are below; None: ``root``.
    MeshError FIELD_INVALID for a folder that cannot be read.
    """
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *names]:
            if (here / name).is_symlink():
                problems.add(str((here / name).relative_to(base or root)), "is a symbolic link")
        parts = here.relative_to(root).parts
        for name in sorted(names):
            if name.startswith(".") or name.lower() in _CLUTTER:
                continue
            mode = (here / name).lstat().st_mode
            if stat.S_ISREG(mode):
                yield here / name, parts
            elif not stat.S_ISLNK(mode):
                problems.add(str((here / name).relative_to(base or root)), "is no plain file")


def is_picture(path: Path) -> bool:
    """By its ending."""
    return path.suffix.lower() in PICTURES


def text(file: Path, most: int | None = None, field: str = "source") -> str:
    """Of a plain file in UTF-8. MeshError FIELD_INVALID of ``field`` for anything else and for more than ``most`` bytes."""
    most = MAX_TEXT_BYTES if most is None else most
    try:
        mode = file.lstat()
        if not stat.S_ISREG(mode.st_mode):
            raise field_error(field, f"{file.name!r} is no plain file")
        if mode.st_size > most:
            raise field_error(field, f"{file.name!r} has {mode.st_size} bytes; at most {most} are read")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise field_error(field, f"{file.name!r} is not text in UTF-8") from error
    except OSError as error:
        raise field_error(field, f"{file.name!r} cannot be read: {error.strerror}") from error


def _unreadable(error: OSError) -> NoReturn:
    name = Path(error.filename or "").name
    raise field_error("source", f"{name!r} cannot be read: {error.strerror}") from error
