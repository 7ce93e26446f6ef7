"""The steps of a recipe on disk: each finished one whole and checked by its digests, each unfinished one with its scratch.

A step's folder appears under its name only when everything in it is written and synced; its marker, with the digest of
every file, is what makes it count. It also holds the step's key: what the step was made from and by which settings, so
that a folder found later is used only for the very same work. Files that a step did not change are hard links to those
of the step before. Knows no recipe and no model.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from splitmesh.compress.report import StepReport
from splitmesh.compress.work import Work
from splitmesh.durable import sync_folder
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import MANIFEST, Manifest

DONE = "done.json"
"""The marker: ``{"key": ..., "sha256": {file: digest}}``, written last."""
STEP = "step.json"
"""What goes into the report about the step."""

LOCK_WAIT_S = 15.0
"""A child whose parent died needs a moment to end; longer than this somebody else really works in the folder."""
_LOCK_POLL_S = 0.2

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Kept:
    """The folder of one recipe. All methods raise MeshError STORAGE_FULL when it cannot be written to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def step_folder(self, number: int) -> Path:
        """Of a finished step; counts from 1."""
        return self._folder / f"step_{number}"

    def done(self) -> int:
        """Steps in a row that are finished, by their markers alone."""
        number = 0
        while (self.step_folder(number + 1) / DONE).is_file():
            number += 1
        return number

    def scratch(self, number: int, key: str) -> Path:
        """The step's own folder; emptied first when it was left by a step of another key."""
        folder, owner = self._folder / f"work_{number}", self._folder / f"work_{number}.key"
        with storage_errors():
            if not owner.is_file() or owner.read_text() != key:
                remove(folder)
                write_file(owner, key.encode())
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save(self, number: int, key: str, work: Work, report: StepReport) -> None:
        """Keep a finished step; what was under its number before is gone."""
        before = self.step_folder(number - 1)
        files = {**work.artifacts, MANIFEST: work.manifest.to_json().encode(), STEP: report.model_dump_json().encode()}
        save_folder(self.step_folder(number), key, files, like=before)

    def load(self, number: int, key: str) -> tuple[Work, StepReport] | None:
        """A finished step; None when it is missing, damaged or another's."""
        files = load_folder(self.step_folder(number), key)
        if files is None:
            return None
        try:
            manifest = Manifest.from_json(files.pop(MANIFEST))
            report = StepReport.model_validate_json(files.pop(STEP))
        except (KeyError, ValidationError, MeshError):
            return None
        return Work(manifest, files), report

    def drop_from(self, number: int) -> None:
        """Forget this step and all later ones."""
        for folder in self._folder.glob("step_*"):
            suffix = folder.name.removeprefix("step_")
            if suffix.isdigit() and int(suffix) >= number:
                remove(folder)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Makes the folder and holds it; MeshError SERVICE_UNAVAILABLE when another process works in it."""
        with held(self._folder / "lock"):
            yield


@contextmanager
def held(path: Path, *, wait_s: float | None = None) -> Iterator[None]:
    """Holds a file, made when missing with its folder; MeshError SERVICE_UNAVAILABLE when another process does.

    ``wait_s``: how long to wait for the other; None: ``LOCK_WAIT_S``.
    """
    descriptor = _locked(path, LOCK_WAIT_S if wait_s is None else wait_s)
    try:
        yield
    finally:
        os.close(descriptor)


def save_folder(folder: Path, key: str, files: Mapping[str, bytes], *, like: Path | None = None) -> None:
    """Write all ``files`` as ``folder``, at once for whoever looks; equal files of ``like`` are linked, not copied."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    known = _digests(like) if like is not None else {}
    staging = folder.with_name(f".{folder.name}.new")
    with storage_errors():
        remove(staging)
        staging.mkdir(parents=True)
        try:
            for name, content in files.items():
                if like is None or known.get(name) != digests[name] or not _linked(like / name, staging / name):
                    write_file(staging / name, content)
            write_file(staging / DONE, json.dumps({"key": key, "sha256": digests}).encode())
            sync_folder(staging)
            remove(folder)
            staging.rename(folder)
            sync_folder(folder.parent)
        except BaseException:
            remove(staging)
            raise


def load_folder(folder: Path, key: str) -> dict[str, bytes] | None:
    """The files of a folder that :func:`save_folder` wrote under this key, verified; None when anything is not so."""
    digests = _digests(folder, key)
    files: dict[str, bytes] = {}
    for name, digest in digests.items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(files[name]).hexdigest() != digest:
            return None
    return files or None


def write_file(path: Path, content: bytes) -> None:
    """Synced, under its name only when complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def remove(folder: Path) -> None:
    """A folder with everything in it, or nothing when it is not there."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def storage_errors() -> Iterator[None]:
    """A full disk as MeshError STORAGE_FULL."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MeshError(
                Reason.STORAGE_FULL, "the disk that holds the steps of this recipe is full; make room and go on"
            ) from error
        raise


def _digests(folder: Path, key: str | None = None) -> dict[str, str]:
    """Of a folder with a readable marker; empty without one, or under another key."""
    try:
        marker = json.loads((folder / DONE).read_bytes())
        found = {str(name): str(digest) for name, digest in marker["sha256"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    plain = all(Path(name).name == name for name in found)
    return found if plain and key in (None, marker["key"]) else {}


def _linked(source: Path, target: Path) -> bool:
    try:
        if hashlib.sha256(source.read_bytes()).hexdigest() != _digests(source.parent).get(source.name):
            return False
        os.link(source, target)
    except OSError:
        return False
    return True


def _locked(path: Path, wait_s: float) -> int:
    while True:
        with storage_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, wait_s)
            # Who held it may have removed it with its folder: then we hold a file that nobody else will ever meet.
            if _is(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, wait_s: float, clock: Callable[[], float] = time.monotonic) -> None:
    until = clock() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if clock() > until:
                raise MeshError(
                    Reason.SERVICE_UNAVAILABLE, "another process works on this recipe's folder", retry_after_s=30.0
                ) from None
            time.sleep(_LOCK_POLL_S)
