"""A small file that one process at a time holds, with what they agree on inside. Knows flock; nothing of what it guards."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmesh.errors import MeshError, Reason

_POLL_S = 0.01
_MAX_BYTES = 4096


class Locked:
    """Threads of a process exclude each other as processes do; the kernel lets go for one that dies in any way."""

    def __init__(
        self, path: Path, *, wait_s: float, monotonic: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._path = path
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._local = threading.local()

    @contextmanager
    def held(self, *, shared: bool = False) -> Iterator[None]:
        """Makes the folder and the file. SERVICE_UNAVAILABLE when another holds it for longer than ``wait_s``. Not reentrant.

        ``shared``: any number may hold it so together, nobody alone meanwhile.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            self._local.descriptor = descriptor
            yield
        finally:
            self._local.descriptor = -1
            os.close(descriptor)

    def read(self) -> bytes:
        """What was written last, while it is held; empty when nothing was."""
        return os.pread(self._local.descriptor, _MAX_BYTES, 0)

    def write(self, data: bytes) -> None:
        """Replaces it, while it is held; not durable, and torn by a power cut: whoever reads it must see that."""
        os.ftruncate(self._local.descriptor, 0)
        os.pwrite(self._local.descriptor, data, 0)

    def _take(self, descriptor: int, how: int) -> None:
        deadline = self._monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if self._monotonic() >= deadline:
                    raise MeshError(
                        Reason.SERVICE_UNAVAILABLE,
                        f"another process has been at work in {self._path.parent} for longer than {self._wait_s:g} s",
                    ) from error
            self._sleep(_POLL_S)
