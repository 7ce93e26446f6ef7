"""A spool for who must not wait: one thread owns the file, and everything that came while it was syncing is on disk with the
next sync.

``note`` may be called from any thread, never blocks and never raises; its future says what became of the entry. What is on
its way to the disk is bounded, and what does not fit is dropped and counted. Futures cannot be cancelled: once it is asked
for, a thing is done."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from splitmesh.errors import MeshError, Reason
from splitmesh.spool.store import SpoolStore
from splitmesh.spool.values import Balance, Dropped, Drops, Entry, Limits, Noted, Record

T = TypeVar("T")
log = logging.getLogger(__name__)

REOPEN_S = 5.0
"""Between tries to open a file that cannot be used."""
STOP_S = 5.0
"""For what is waiting at a stop."""
MOST_ASKED = 256
"""Calls other than notes that wait for the disk."""


@dataclass(frozen=True, slots=True)
class _Note:
    entry: Entry
    future: Future[Noted | Dropped]


@dataclass(frozen=True, slots=True)
class _Call:
    work: Callable[[], Any]
    future: Future[Any]


class Spool:
    """Of one process.

    Args:
        folder: where the file is; None: in memory, and gone at the end.
        limits: what it keeps to.
        store: the file, as the two say unless it is given.
        reopen_s: between tries to open a file that cannot be used.
    """

    def __init__(
        self,
        folder: Path | None,
        limits: Limits | None = None,
        *,
        store: SpoolStore | None = None,
        reopen_s: float = REOPEN_S,
    ) -> None:
        self.limits = limits or Limits()
        self._store = store or SpoolStore(folder, self.limits)
        self._reopen_s = reopen_s
        self._changed = threading.Condition()
        self._jobs: list[_Note | _Call] = []
        self._waiting, self._waiting_bytes, self._asked = 0, 0, 0
        self._overflown: Counter[tuple[str, str]] = Counter()
        self._stopping = False
        self._said = ""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the file is opened in the background."""
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._thread.start()

    def stop(self, within_s: float = STOP_S) -> bool:
        """Blocks until all that was asked for is done and the file is closed; False when the disk does not allow it in time."""
        thread = self._thread
        if thread is None:
            return True
        with self._changed:
            self._stopping = True
            self._changed.notify()
        thread.join(within_s)
        if thread.is_alive():
            log.error("the disk of the spool does not answer; %d entries may be lost", self._waiting)
            return False
        self._thread = None
        return True

    @property
    def boot_id(self) -> str:
        """Of this life; empty before it is open."""
        return self._store.boot_id

    def note(self, entry: Entry) -> Future[Noted | Dropped]:
        """Something to be kept until it is acknowledged."""
        job = _Note(entry, _future())
        size = _size(entry)
        with self._changed:
            full = (
                self._waiting >= self.limits.max_waiting or self._waiting_bytes + size > self.limits.max_waiting_bytes
            )
            if full and self._waiting:
                if not entry.elsewhere:
                    self._overflown[entry.topic, Reason.QUEUE_FULL.value] += 1
                job.future.set_result(Dropped(Reason.QUEUE_FULL, "the disk of the spool is too slow"))
                return job.future
            self._waiting, self._waiting_bytes = self._waiting + 1, self._waiting_bytes + size
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def take(self, topic: str, most: int, max_bytes: int) -> Future[list[Record]]:
        """As :meth:`SpoolStore.take`."""
        return self._ask(lambda: self._store.take(topic, most, max_bytes))

    def acknowledge(self, records: Sequence[Record]) -> Future[None]:
        """As :meth:`SpoolStore.acknowledge`."""
        return self._ask(lambda: self._store.acknowledge(records))

    def refuse(self, records: Sequence[Record], reason: str) -> Future[None]:
        """As :meth:`SpoolStore.refuse`."""
        return self._ask(lambda: self._store.refuse(records, reason))

    def balances(self) -> Future[dict[str, Balance]]:
        """As :meth:`SpoolStore.balances`."""
        return self._ask(self._store.balances)

    def drops(self, topic: str) -> Future[Drops]:
        """As :meth:`SpoolStore.drops`."""
        return self._ask(lambda: self._store.drops(topic))

    def balance(self) -> Future[Balance]:
        """Over all topics."""

        def summed() -> Balance:
            total = Balance()
            for one in self._store.balances().values():
                total = total.plus(one)
            return total

        return self._ask(summed)

    def _ask(self, work: Callable[[], T]) -> Future[T]:
        job: _Call = _Call(work, _future())
        with self._changed:
            if self._asked >= MOST_ASKED:
                job.future.set_exception(
                    MeshError(Reason.QUEUE_FULL, "the disk of the spool is too slow", retry_after_s=1.0)
                )
                return job.future
            self._asked += 1
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def _work(self) -> None:
        next_try = time.monotonic()
        while True:
            # Asked each time: a damaged file that could not be replaced is closed again.
            if not self._store.is_open and time.monotonic() >= next_try:
                self._open()
                next_try = time.monotonic() + self._reopen_s
            opened = self._store.is_open
            with self._changed:
                # While there is no file, what comes is answered at once all the same, and the file is tried again now and then.
                self._changed.wait_for(lambda: bool(self._jobs) or self._stopping, None if opened else self._reopen_s)
                jobs, self._jobs = self._jobs, []
                overflown, self._overflown = self._overflown, Counter()
                if not jobs and not overflown and self._stopping:
                    break
            if overflown:
                self._store.count_dropped(list(overflown.elements()))
            self._do(jobs)
        self._store.close()

    def _open(self) -> None:
        try:
            self._store.open()
        except Exception as error:
            if str(error) != self._said:
                self._said = str(error)
                log.error("the spool cannot be used, trying again every %.0f s: %s", self._reopen_s, error)
            return
        self._said = ""

    def _do(self, jobs: Sequence[_Note | _Call]) -> None:
        """Notes that stand together share a sync."""
        for is_note, group in itertools.groupby(jobs, lambda job: isinstance(job, _Note)):
            if is_note:
                self._write([job for job in group if isinstance(job, _Note)])
            else:
                for job in group:
                    self._call(job)

    def _write(self, notes: Sequence[_Note]) -> None:
        entries = [note.entry for note in notes]
        try:
            outcomes = self._store.note(entries)
        except Exception as error:
            reason = error.reason if isinstance(error, MeshError) else Reason.INTERNAL
            if reason is Reason.INTERNAL:
                log.exception("%d entries could not be noted", len(entries))
            reason = Reason.SERVICE_UNAVAILABLE if reason is Reason.NOT_READY else reason
            self._store.count_dropped([(entry.topic, reason.value) for entry in entries if not entry.elsewhere])
            outcomes = [Dropped(reason, str(error))] * len(entries)
        with self._changed:
            self._waiting -= len(notes)
            self._waiting_bytes -= sum(_size(entry) for entry in entries)
        for note, outcome in zip(notes, outcomes, strict=True):
            note.future.set_result(outcome)

    def _call(self, job: _Note | _Call) -> None:
        if isinstance(job, _Note):
            return
        with self._changed:
            self._asked -= 1
        try:
            job.future.set_result(job.work())
        except Exception as error:
            job.future.set_exception(error)


def _future() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _size(entry: Entry) -> int:
    return len(entry.body) + (len(entry.amends.body) if entry.amends is not None else 0)
