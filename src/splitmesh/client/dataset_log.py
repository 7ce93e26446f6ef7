"""What a site let go and took in, a line of JSON each, on its own disk. Knows files and fsync; the clock is the caller's."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from splitmesh.datasets.disk import named_errors
from splitmesh.durable import sync_folder

MAX_BYTES = 16 << 20
"""A longer file becomes ``.1``, in place of the one before."""


class SyncLog:
    """A file of lines; several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, at: datetime, what: str, values: Mapping[str, object]) -> None:
        """Durable when it returns. STORAGE_FULL, SERVICE_UNAVAILABLE when it cannot be written."""
        line = json.dumps({"time": at.astimezone(UTC).isoformat(), "what": what, **values}, ensure_ascii=False) + "\n"
        with named_errors(self._path.name, self._path.parent):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.with_name(f"{self._path.name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._path.exists() and self._path.stat().st_size > MAX_BYTES:
                    os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))
                with self._path.open("ab") as stream:
                    stream.write(line.encode())
                    stream.flush()
                    os.fsync(stream.fileno())
            sync_folder(self._path.parent)
