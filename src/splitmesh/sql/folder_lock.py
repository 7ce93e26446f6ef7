"""One process per data folder: two would tear each other's files and miss each other's changes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from splitmesh.errors import MeshError, Reason


class FolderLock:
    """Makes the folder and holds it until stopped; the kernel lets go of it when the process dies in any way.

    Args:
        folder: of the data.
        owner: the service, in one word for people.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner
        self._descriptor = -1

    async def start(self) -> None:
        """SERVICE_UNAVAILABLE when another process holds the folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"another {self._owner} is running on this data folder"
            ) from error
        self._descriptor = descriptor

    async def stop(self) -> None:
        """Lets go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
