"""Counted places for work in progress: when all are taken the next caller is refused at once, never queued."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from splitmesh.client.rate import Rate
from splitmesh.errors import MeshError, Reason

LEAST_BYTES_PER_S = 64 * 1024
"""Of a transfer that is let in: with less, 1 MiB would come so late that whoever waits for it gives up (30 s)."""
SMALLEST_BYTES = 16 * 1024
_BUSY_S = 1.0
_BUSY_AT_RATE_S = 10.0


class Place:
    """One of the places, taken."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._task: asyncio.Task[Any] | None = None

    def keep_until(self, task: asyncio.Task[Any]) -> None:
        """Not until the block ends but until the task is done, which may be later where the block is cancelled."""
        self._task = task
        task.add_done_callback(lambda _: self._slots.give_back())

    def end(self) -> None:
        """The block has ended."""
        if self._task is None:
            self._slots.give_back()


class Slots:
    """At most ``limit`` of one kind of work at once; who is refused is told to come back after ``retry_after_s``."""

    def __init__(self, kind: str, limit: int, *, retry_after_s: float = _BUSY_S) -> None:
        self._kind = kind
        self._limit = limit
        self._retry_after_s = retry_after_s
        self._taken = 0

    @classmethod
    def at_rate(cls, kind: str, limit: int, bytes_per_s: float) -> Slots:
        """For transfers that share a rate, 0: none: no more than it can feed, but one."""
        fed = int(bytes_per_s / LEAST_BYTES_PER_S) if bytes_per_s else limit
        return cls(kind, max(1, fed), retry_after_s=_BUSY_AT_RATE_S) if fed < limit else cls(kind, limit)

    def piece_bytes(self, most: int, rate: Rate | None) -> int:
        """How much one of those in progress may send in one message, so that each sends one every second; at most ``most``."""
        if rate is None:
            return most
        return min(most, max(SMALLEST_BYTES, int(rate.bytes_per_s / max(1, self._taken))))

    @contextmanager
    def take(self) -> Iterator[Place]:
        """A place for the duration of the block; QUEUE_FULL when there is none."""
        if self._taken >= self._limit:
            raise MeshError(
                Reason.QUEUE_FULL,
                f"{self._limit} {self._kind} are in progress, which is the limit",
                metadata={"limit": str(self._limit)},
                retry_after_s=self._retry_after_s,
            )
        self._taken += 1
        place = Place(self)
        try:
            yield place
        finally:
            place.end()

    def give_back(self) -> None:
        """One place is free again."""
        self._taken -= 1
