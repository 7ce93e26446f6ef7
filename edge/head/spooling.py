"""The head's spool, and who hands over what is in it: reports of outcomes to the router, records of kept samples to the fleet.

Each topic goes in order, a batch at a time, and a batch goes again until it is acknowledged or the other side says that it
will never take it; so whoever was away gets everything that was not dropped, and by node, boot and sequence nothing counts
twice. Frames, samples and reports never wait for any of this. Knows no message of router and fleet; what a report says is
``tally.py``'s."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from edge.head.config import HeadSettings
from edge.head.tally import Report
from splitmesh.client.records import RecordsClient
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.record import KINDS, SampleRecord
from splitmesh.spool.spool import Spool
from splitmesh.spool.store import SpoolStore
from splitmesh.spool.values import Amend, Entry, Limits, Noted, Record

log = logging.getLogger(__name__)

FOLDER = "spool"
"""Below a head's `data_dir`."""
OUTCOMES, SAMPLES = "outcomes", "samples"
"""Topics: a report of outcomes for the router; the record of a kept sample, without its picture, for the fleet."""
OUTCOMES_WORTH = len(KINDS)
"""Above every sample's: reports are few, because they merge, and none gives way to a sample."""
SAMPLES_AT_ONCE, SAMPLES_BYTES = 500, 1 << 20
"""Handed to the fleet with one call."""
WAITS_S = (0.2, 5.0, 60.0)
"""Before records that were not taken are handed over again: at first, later, and at most where the fleet asks for more."""
NEVER = frozenset({Reason.FIELD_INVALID, Reason.DIGEST_MISMATCH, Reason.PROTOCOL_VIOLATION, Reason.FRAME_TOO_LARGE})
"""Why the fleet will never take a record."""
MEMORY = Limits(max_records=256, max_bytes=16 << 20)
"""For reports where the disk takes nothing."""

IN_MEMORY = "memory-"
"""Begins the name of a life whose reports were never on the disk."""

HandOver = Callable[[Sequence[Record]], Awaitable[None]]


class Delivery:
    """Hands a topic of a spool over, for as long as it runs.

    Args:
        spool: has the records.
        topic: which of them.
        hand_over: returns when whom they are for has all of them; raises MeshError.
        never: reasons for which a record will never be taken: it is dropped and counted by the reason.
        waits_s: before another try, at first and at most by itself, and at most where the other side asks for more.
        most: records at once.
        max_bytes: of their bodies, but one always goes.
        random_: spreads the tries of many heads.
    """

    def __init__(
        self,
        spool: Spool,
        topic: str,
        hand_over: HandOver,
        never: frozenset[Reason],
        *,
        waits_s: tuple[float, float, float] = WAITS_S,
        most: int = SAMPLES_AT_ONCE,
        max_bytes: int = SAMPLES_BYTES,
        random_: random.Random | None = None,
    ) -> None:
        self.behind = False
        """The last try was not taken."""
        self._spool = spool
        self._topic = topic
        self._hand_over = hand_over
        self._never = never
        self._first_s, self._longest_s, self._most_asked_s = waits_s
        self._most, self._max_bytes = most, max_bytes
        self._random = random_ or random.Random()
        self._news = asyncio.Event()
        self._said = ""

    def wake(self) -> None:
        """There is something new."""
        self._news.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        wait_s = self._first_s
        while True:
            self._news.clear()
            try:
                asked_s = await self.turn()
            except Exception as error:
                # Whatever it is, the records stay where they are.
                self.behind, asked_s = True, 0.0
                log.warning("%s wait: %s", self._topic, error, exc_info=not isinstance(error, MeshError))
            if not self.behind:
                wait_s = self._first_s
                await self._news.wait()
            else:
                await asyncio.sleep(max(asked_s, wait_s * self._random.uniform(0.5, 1.0)))
                wait_s = min(2 * wait_s, self._longest_s)

    async def turn(self) -> float:
        """Everything there is, as far as it is taken; for how many seconds the other side asks to be left alone."""
        while records := await asyncio.wrap_future(self._spool.take(self._topic, self._most, self._max_bytes)):
            try:
                await self._hand(records)
            except MeshError as error:
                self.behind = True
                if error.reason.value != self._said:
                    log.warning("%s are kept until they are taken: %s", self._topic, error)
                    self._said = error.reason.value
                return min(error.retry_after_s or 0.0, self._most_asked_s)
            self.behind, self._said = False, ""
        self.behind = False
        return 0.0

    async def _hand(self, records: Sequence[Record]) -> None:
        try:
            await self._hand_over(records)
        except MeshError as error:
            if error.reason not in self._never:
                raise
            if len(records) > 1:
                for record in records:  # one of them is at fault; the others must not go with it
                    await self._hand([record])
                return
            log.error("one of the %s is dropped, for it will never be taken: %s", self._topic, error)
            await asyncio.wrap_future(self._spool.refuse(records, error.reason.value))
        else:
            await asyncio.wrap_future(self._spool.acknowledge(records))


@dataclass(frozen=True, slots=True)
class _Open:
    """The newest record of a version, which may be added to as long as nobody has taken it."""

    boot_id: str
    sequence: int
    report: Report


class Journal:
    """Reports in a spool: of each version at most one that nobody has tried to send, into which what comes is merged."""

    def __init__(self, spool: Spool, random_: random.Random, clock: Callable[[], float]) -> None:
        """``random_`` draws which sights stay; ``clock`` is that of the reports' times."""
        self.spool = spool
        self._random = random_
        self._clock = clock
        self._open: dict[tuple[str, int], _Open] = {}
        self._said = ""

    async def keep(self, report: Report) -> bool:
        """Whether it is kept. One at a time of a version; one that is cancelled may be kept or not."""
        key, now, most = (report.model, report.version), self._clock(), self.spool.limits.max_body_bytes
        # Forgotten until it is known what it says: where that is never heard, what comes next is a record of its own.
        before = self._open.pop(key, None)
        merged = report if before is None else before.report.plus(report, self._random)
        # In a thread: a thousand sights take milliseconds, which frames would wait for.
        report, body = await asyncio.to_thread(report.written, now, most, self._random)
        amends = None
        if before is not None:
            merged, amended = await asyncio.to_thread(merged.written, now, most, self._random)
            amends = Amend(before.boot_id, before.sequence, amended)
        entry = Entry(OUTCOMES, OUTCOMES, body, OUTCOMES_WORTH, amends, elsewhere=True)
        noted = await asyncio.wrap_future(self.spool.note(entry))
        if not isinstance(noted, Noted):
            if before is not None:
                self._open[key] = before
            if noted.reason.value != self._said:
                self._said = noted.reason.value
                log.warning("outcomes cannot be noted: %s", noted.detail)
            return False
        self._said = ""
        self._open[key] = _Open(noted.boot_id, noted.sequence, merged if noted.amended else report)
        return True

    def told(self, record: Record) -> None:
        """The router has it."""
        for key, known in list(self._open.items()):
            if (known.boot_id, known.sequence) == (record.boot_id, record.sequence):
                del self._open[key]


class Spooling:
    """Owns the spools of a head. Neither a broken folder nor a slow disk keeps the head from starting, answering or stopping.

    Args:
        settings: where, how much, and what is told.
        fleet: takes records of samples.
    """

    def __init__(self, settings: HeadSettings, fleet: RecordsClient) -> None:
        limits = Limits(max_records=settings.spool_max_records, max_bytes=settings.spool_max_bytes)
        self.disk = Spool(settings.data_dir / FOLDER, limits)
        memory = SpoolStore(None, MEMORY, boot=lambda: f"{IN_MEMORY}{uuid4().hex}")
        self.memory = Spool(None, MEMORY, store=memory)
        self._settings = settings
        self._fleet = fleet
        self._delivery = Delivery(self.disk, SAMPLES, self._commit, NEVER)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; the file is opened in the background, and what an earlier life has left is handed over."""
        self._loop = asyncio.get_running_loop()
        self.disk.start()
        self.memory.start()
        if self._settings.sample_records:
            self._task = asyncio.create_task(self._delivery.run())

    async def stop(self) -> None:
        """Write what is waiting, as far as the disk allows it in five seconds."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self.disk.stop)
        await asyncio.to_thread(self.memory.stop)

    def sample_kept(self, record: SampleRecord) -> None:
        """From any thread; never waits. What cannot be noted is counted by the spool."""
        if not self._settings.sample_records:
            return
        entry = Entry(SAMPLES, "sample", record.to_json().encode(), KINDS.index(record.kind))
        self.disk.note(entry).add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the next life hands it over
                self._loop.call_soon_threadsafe(self._delivery.wake)

    async def _commit(self, records: Sequence[Record]) -> None:
        drops = await asyncio.wrap_future(self.disk.drops(SAMPLES))
        await self._fleet.commit(self._settings.node, records, drops)
