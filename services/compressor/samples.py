"""Which folder of samples a request means, and that it is what it was. Reads no picture.

Only below the folder that the service was given: neither names nor links lead out of it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from splitmesh.errors import MeshError, field_error

MAX_FILES = 500_000
FIELD = "calibration_folder"


def find_folder(samples_dir: Path | None, name: str) -> Path:
    """The folder that ``name`` means below ``samples_dir``; MeshError FIELD_INVALID for any other."""
    if samples_dir is None:
        raise field_error(FIELD, "this service has no folder of samples (SPLITMESH_SAMPLES_DIR is not set)")
    if "\0" in name or len(name) > 1024 or Path(name).is_absolute() or ".." in Path(name).parts:
        raise field_error(FIELD, "must be a relative path below the service's folder of samples")
    base = samples_dir.resolve()
    try:
        folder = (base / name).resolve()
        known = folder.is_relative_to(base) and folder.is_dir()
    except (OSError, RuntimeError):  # a name too long, a ring of links
        known = False
    if not known:
        raise field_error(FIELD, f"{name[:80]!r} is no folder below the service's folder of samples")
    return folder


def fingerprint(samples_dir: Path, folder: Path) -> str:
    """Names, sizes and times of everything in the folder, as a digest: other files are other work.

    MeshError FIELD_INVALID when a link leads out of ``samples_dir``, or for more than ``MAX_FILES`` files.
    """
    base, lines = samples_dir.resolve(), list[str]()
    for where, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted([*files, *(name for name in folders if Path(where, name).is_symlink())]):
            path = Path(where, name)
            if path.is_symlink() and not _inside(path, base):
                raise field_error(FIELD, "has a link that leads out of the service's folder of samples")
            try:
                about = path.stat()
            except OSError:  # gone meanwhile, or a broken link
                continue
            lines.append(f"{path.relative_to(folder)}\0{about.st_size}\0{about.st_mtime_ns}")
            if len(lines) > MAX_FILES:
                raise field_error(FIELD, f"has more than {MAX_FILES} files")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def below(samples_dir: Path | None, error: MeshError) -> MeshError:
    """The same error with paths as the caller wrote them: where the samples lie on this machine is not the caller's."""
    if samples_dir is None:
        return error

    def said(text: str) -> str:
        base = str(samples_dir.resolve())
        return text.replace(f"{base}{os.sep}", "").replace(base, "the folder of samples")

    return MeshError(
        error.reason,
        said(error.message),
        metadata=error.metadata,
        fields=[(field, said(problem)) for field, problem in error.fields],
        retry_after_s=error.retry_after_s,
    )


def _inside(path: Path, base: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base)
    except (OSError, RuntimeError):
        return False
