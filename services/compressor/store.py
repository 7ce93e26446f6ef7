"""Compressions on disk: one folder each, with what was asked, where it stands, its unfinished steps and its report.

    compressions/<id>/request.json     what was asked, never changed
    compressions/<id>/state.json       where it stands, replaced atomically
    compressions/<id>/source/, run/    the version as fetched, the steps; gone when it succeeded or was rejected
    compressions/<id>/report.json, pictures/   what came out; pictures never leave this machine but in a report's page

Blocking; knows nothing of queues and of what a compression does.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitmesh.compress.engine import steps_done
from splitmesh.compress.kept import remove, storage_errors, write_file
from splitmesh.compress.recipe import Recipe
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

REQUEST, STATE, REPORT, PICTURES, CAPTIONS = "request.json", "state.json", "report.json", "pictures", "pictures.json"


class State(StrEnum):
    """Where a compression stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"


ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.REJECTED)
RESUMABLE = (State.FAILED, State.CANCELLED)


class Request(BaseModel):
    """What was asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compression_id: str = Field(pattern=r"^compression-[0-9a-f]{32}$")
    model: str
    version: int = Field(ge=1)
    recipe: Recipe
    calibration_folder: str = ""
    number: int = Field(default=0, ge=0)
    """Rises with every new compression of this service: the order of lists."""
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Status:
    """A compression now."""

    request: Request
    state: State
    step: str = ""
    progress: float = 0.0
    """Share of the work done, 0..1."""
    steps_done: int = 0
    result_version: int = 0
    error: MeshError | None = None


class _Error(BaseModel):
    reason: Reason
    message: str
    metadata: dict[str, str] = {}
    fields: list[tuple[str, str]] = []
    retry_after_s: float | None = None


class _State(BaseModel):
    schema_version: Literal[1] = 1
    state: State
    result_version: int = Field(default=0, ge=0)
    error: _Error | None = None


class Store:
    """All compressions below one folder. Methods raise MeshError STORAGE_FULL when the disk is full."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._folder = data_dir / "compressions"
        self._lock = -1

    def open(self) -> None:
        """Makes the folder and holds it; SERVICE_UNAVAILABLE when another process does."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "another compressor is running on this data folder") from error
        self._lock = descriptor

    def close(self) -> None:
        """Lets go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def load(self) -> list[Status]:
        """Every compression, oldest first. One whose request cannot be read is left out, with a line in the log."""
        found = [status for folder in self._folder.iterdir() if (status := self._load(folder)) is not None]
        return sorted(found, key=lambda status: status.request.number)

    def create(self, request: Request) -> None:
        """A new compression, queued; what a folder of its name held before is gone."""
        folder = self.folder(request.compression_id)
        try:
            with storage_errors():
                remove(folder)
                folder.mkdir(mode=0o700, parents=True)
                write_file(folder / REQUEST, request.model_dump_json(indent=2).encode())
            self.write(Status(request, State.QUEUED))
        except BaseException:
            remove(folder)
            raise

    def write(self, status: Status) -> None:
        """Where it stands; step and progress are of the moment and not kept."""
        error = status.error
        kept = _State(
            state=status.state,
            result_version=status.result_version,
            error=None
            if error is None
            else _Error(
                reason=error.reason,
                message=error.message,
                metadata=error.metadata,
                fields=list(error.fields),
                retry_after_s=error.retry_after_s,
            ),
        )
        with storage_errors():
            write_file(
                self.folder(status.request.compression_id) / STATE, kept.model_dump_json(indent=2).encode() + b"\n"
            )

    def keep_result(self, compression_id: str, report: bytes, pictures: Mapping[str, Path]) -> None:
        """The report, and the pictures by caption; safe to repeat."""
        folder = self.folder(compression_id)
        with storage_errors():
            target = folder / PICTURES
            remove(target)
            target.mkdir(mode=0o700)
            for path in pictures.values():
                shutil.copy(path, target / path.name)
            captions = {caption: path.name for caption, path in pictures.items()}
            write_file(folder / CAPTIONS, json.dumps(captions).encode())
            write_file(folder / REPORT, report)

    def report(self, compression_id: str) -> bytes:
        """The kept report; MODEL_CORRUPT when it is gone."""
        try:
            return (self.folder(compression_id) / REPORT).read_bytes()
        except OSError as error:
            raise MeshError(Reason.MODEL_CORRUPT, "the report of this compression cannot be read") from error

    def pictures(self, compression_id: str) -> dict[str, bytes]:
        """PNG files by caption; those that cannot be read are left out."""
        folder = self.folder(compression_id)
        found: dict[str, bytes] = {}
        try:
            for caption, name in json.loads((folder / CAPTIONS).read_bytes()).items():
                found[str(caption)] = (folder / PICTURES / Path(name).name).read_bytes()
        except (OSError, ValueError, AttributeError, TypeError):
            log.warning("pictures of %s cannot be read", compression_id)
        return found

    def clear_scratch(self, compression_id: str) -> None:
        """What was only needed to go on."""
        remove(self.source(compression_id))
        remove(self.run(compression_id))

    def remove(self, compression_id: str) -> None:
        """Everything of one compression."""
        remove(self.folder(compression_id))

    def steps_done(self, compression_id: str) -> int:
        """Finished steps on disk."""
        return steps_done(self.run(compression_id))

    def folder(self, compression_id: str) -> Path:
        """Of one compression."""
        return self._folder / compression_id

    def source(self, compression_id: str) -> Path:
        """Where the version it starts from is fetched to."""
        return self.folder(compression_id) / "source"

    def run(self, compression_id: str) -> Path:
        """Where the recipe runs."""
        return self.folder(compression_id) / "run"

    def _load(self, folder: Path) -> Status | None:
        try:
            request = Request.model_validate_json((folder / REQUEST).read_bytes())
            if request.compression_id != folder.name:
                raise ValueError("it is of another compression")
        except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            log.error("compression %s is ignored: its request cannot be read: %s", folder.name, error)
            return None
        done = self.steps_done(request.compression_id)
        try:
            kept = _State.model_validate_json((folder / STATE).read_bytes())
        except (OSError, ValidationError) as error:
            log.error("the state of compression %s cannot be read: %s", folder.name, error)
            lost = MeshError(Reason.INTERNAL, "the state of this compression was damaged on disk; it can be resumed")
            return Status(request, State.FAILED, steps_done=done, error=lost)
        if kept.state in (State.SUCCEEDED, State.REJECTED):
            # A crash right behind the last write may have left them.
            self.clear_scratch(request.compression_id)
            done = len(request.recipe.steps)
        failure = (
            None
            if kept.error is None
            else MeshError(
                kept.error.reason,
                kept.error.message,
                metadata=kept.error.metadata,
                fields=kept.error.fields,
                retry_after_s=kept.error.retry_after_s,
            )
        )
        progress = 1.0 if kept.state in (State.SUCCEEDED, State.REJECTED) else 0.0
        return Status(
            request,
            kept.state,
            progress=progress,
            steps_done=done,
            result_version=kept.result_version,
            error=failure,
        )
