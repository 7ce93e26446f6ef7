"""Counted places for work in progress: when all are taken the next caller is refused at once, never queued."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from splitmesh.errors import MeshError, Reason


class Slots:
    """At most ``limit`` of one kind of work at once."""

    def __init__(self, kind: str, limit: int) -> None:
        self._kind = kind
        self._limit = limit
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """A place for the duration of the block; QUEUE_FULL when there is none."""
        if self._taken >= self._limit:
            raise MeshError(
                Reason.QUEUE_FULL,
                f"{self._limit} {self._kind} are in progress, which is the limit",
                metadata={"limit": str(self._limit)},
                retry_after_s=1.0,
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
