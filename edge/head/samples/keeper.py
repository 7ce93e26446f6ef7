"""Keeps the samples worth a look: what was hard, what the exit had to answer in the tail's place, what was audited, and above all
where exit and tail differ.

The event loop only notes plain values and copies the picture; one worker thread owns the store and waits for its disk. Between
them is a bounded queue: what does not fit, and what the disk refuses, is counted and dropped, and no frame ever waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from edge.head.config import HeadSettings
from edge.head.decided import Decided, TailSaid
from edge.head.samples.taken import Taken, size_of, take
from splitmesh.client.answers import AnsweredBy
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.bucket import Bucket
from splitmesh.routing.gate import Why
from splitmesh.samples.beside import FOLDER
from splitmesh.samples.kept import Added, Dropped, StoreLimits
from splitmesh.samples.record import ID_RANDOM_BYTES, Kind, SampleRecord
from splitmesh.samples.store import SampleStore

log = logging.getLogger(__name__)

MAX_WAITING = 64
"""Samples that wait for the disk."""
MAX_WAITING_BYTES = 64 << 20
"""Of their pictures and features."""
STOP_S = 5.0
"""For what is waiting at a stop."""
REOPEN_S = 30.0
"""Between tries to open a folder that cannot be used."""
SAVED_S = 60.0
"""Of writing that may be saved up for busy moments."""
RECORD_BYTES = 4096
"""That a record alone is taken to write."""
TELL_S = 10.0
"""Between two warnings of samples that were dropped, and between two tracebacks."""
LEAST_PICTURE_BYTES = 32 << 20
"""Pictures of so many bytes are kept, also where frames are smaller."""


class SampleKeeper:
    """An observer of frames. Neither it nor a broken folder keeps a head from starting, answering or stopping.

    Args:
        settings: what to keep, where, and how much of it.
        store: where they are kept; as the settings say unless it is given.
        random: gives so many random bytes.
        told: hears the record of each sample that is kept, in the worker's thread; must not wait.
        reopen_s: between tries to open a folder that cannot be used, seconds.
        stop_s: for what is waiting at a stop, seconds.
    """

    def __init__(
        self,
        settings: HeadSettings,
        *,
        store: SampleStore | None = None,
        random: Callable[[int], bytes] = os.urandom,
        told: Callable[[SampleRecord], None] = lambda record: None,
        reopen_s: float = REOPEN_S,
        stop_s: float = STOP_S,
    ) -> None:
        self._settings = settings
        self._random = random
        self._told = told
        self._reopen_s, self._stop_s = reopen_s, stop_s
        limits = StoreLimits(
            max_bytes=settings.sample_max_bytes,
            max_records=settings.sample_max_records,
            max_picture_bytes=max(LEAST_PICTURE_BYTES, settings.max_frame_bytes),
            max_pixels=settings.max_pixels,
        )
        self._store = store or SampleStore(settings.data_dir / FOLDER, limits)
        self._burst_bytes = SAVED_S * settings.sample_bytes_per_s
        self._writing = Bucket(settings.sample_bytes_per_s, self._burst_bytes, time.monotonic())
        self._waiting: deque[Taken] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._dropped: Counter[str] = Counter()
        """By reason; not in the store's counts yet."""
        self._refused: Counter[str] = Counter()
        """By the store, which counts them itself; the worker's."""
        self._untold: Counter[str] = Counter()
        """Not in the log yet; the worker's."""
        self._stop_at: float | None = None
        self._told_at = -TELL_S
        self._failed = 0
        """Samples that could not be kept and whose traceback was not logged; the worker's."""
        self._failed_at = -TELL_S
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Begin; the folder is opened in the background."""
        if self._settings.samples:
            self._stop_at = None
            self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
            self._thread.start()

    async def stop(self) -> None:
        """Write what is waiting, as far as the disk allows it in five seconds."""
        if self._thread is None:
            return
        with self._changed:
            self._stop_at = time.monotonic() + self._stop_s
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, self._stop_s)
        if self._thread.is_alive():
            log.error("the disk of the samples does not answer; %d samples are lost", len(self._waiting))
        self._thread = None

    def decided(self, frame: Decided) -> None:
        """Keeps a frame that was hard; a sure one is kept only if it is audited."""
        verdict, reason = frame.verdict, frame.answer.fallback_reason
        if self._thread is None or verdict.sure:
            return
        if frame.tail is not None:
            if frame.tail.disagreed:
                self._offer("disputed", frame, frame.tail)
            elif verdict.why is not Why.ASKED or not verdict.ease >= verdict.threshold:
                self._offer("hard", frame, frame.tail)
        elif frame.answer.answered_by is AnsweredBy.EDGE_FALLBACK and reason is not None:
            self._offer("fallback", frame, None, why=reason.value)
        else:
            self._offer("hard", frame, None)

    def audited(self, frame: Decided, tail: TailSaid) -> None:
        """Keeps a sure frame that the tail has checked."""
        if self._thread is not None:
            self._offer("disputed" if tail.disagreed else "audit", frame, tail)

    def _offer(self, kind: Kind, frame: Decided, tail: TailSaid | None, *, why: str = "") -> None:
        features = self._settings.sample_features
        try:
            size = size_of(frame, features=features)
            # only the loop adds, so what fits now fits when it is noted
            most = max(MAX_WAITING_BYTES, size)  # one that is larger by itself has to wait alone
            full = len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size > most
            if full or not self._may_write(kind, size):
                self._count(Reason.QUEUE_FULL)
                return
            taken = take(frame, tail, kind, why or frame.verdict.why.value, size, features=features)
        except Exception:
            log.exception("a sample could not be noted")
            self._count(Reason.INTERNAL)
            return
        with self._changed:
            self._waiting_bytes += size
            self._waiting.append(taken)
            self._changed.notify()

    def _may_write(self, kind: Kind, size_bytes: int) -> bool:
        """Whether it keeps to the rate; what only was hard leaves half of what is saved up to what tells more."""
        now_s = time.monotonic()
        size_bytes = min(max(size_bytes, RECORD_BYTES), int(self._burst_bytes / 2))
        leaves = self._burst_bytes / 2 if kind in ("hard", "fallback") else 0.0
        return self._writing.wait_s(size_bytes + leaves, now_s) <= 0 and self._writing.take(size_bytes, now_s)

    def _count(self, reason: Reason) -> None:
        with self._changed:
            self._dropped[reason.value] += 1

    def _work(self) -> None:
        try:
            if self._open():
                while (taken := self._next()) is not None:
                    self._keep(taken)
                self._tell()
        except Exception:
            log.exception("keeping samples ended unexpectedly; the head goes on without")
        finally:
            self._store.close()

    def _open(self) -> bool:
        """Tries until it is open; False when the head stops before."""
        failed = ""
        while True:
            try:
                self._store.open()
                return True
            except MeshError as error:
                if str(error) != failed:
                    failed = str(error)
                    log.error("no samples are kept, trying again every %.0f s: %s", self._reopen_s, error)
            with self._changed:
                if self._changed.wait_for(lambda: self._stop_at is not None, self._reopen_s):
                    if self._waiting:
                        log.error("%d samples are lost: their folder could not be opened", len(self._waiting))
                    return False

    def _next(self) -> Taken | None:
        """Waits for a sample; None at a stop, once nothing is waiting or there is no time left."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._stop_at is not None)
            late = self._stop_at is not None and time.monotonic() > self._stop_at
            if late and self._waiting:
                log.error("%d samples are lost: their disk was too slow for a stop", len(self._waiting))
            if late or not self._waiting:
                return None
            return self._waiting.popleft()

    def _keep(self, taken: Taken) -> None:
        try:
            record, features = taken.made(self._settings.site, self._settings.node, self._random(ID_RANDOM_BYTES))
            outcome = self._store.add(record, taken.picture, features)
            if isinstance(outcome, Dropped):
                self._refused[outcome.reason.value] += 1
            elif isinstance(outcome, Added):
                self._told(outcome.record)
        except MeshError as error:
            self._count(error.reason)
        except Exception:
            self._log_failure()
            self._count(Reason.INTERNAL)
        finally:
            with self._changed:
                self._waiting_bytes -= taken.size_bytes
        if not self._waiting or time.monotonic() - self._told_at >= TELL_S:
            self._tell()

    def _log_failure(self) -> None:
        """The exception that is handled, seldom: what fails for one picture mostly fails for the next one too."""
        self._failed += 1
        if time.monotonic() - self._failed_at >= TELL_S:
            log.exception("%d samples could not be kept; the last one", self._failed)
            self._failed, self._failed_at = 0, time.monotonic()

    def _tell(self) -> None:
        """Of what was dropped: into the store's counts, as far as they do not know, and to the log."""
        with self._changed:
            dropped, self._dropped = self._dropped, Counter()
        if dropped:
            self._store.count_dropped(dropped)
        self._untold += dropped + self._refused
        self._refused.clear()
        if self._untold and time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            told = ", ".join(f"{n} {reason}" for reason, n in sorted(self._untold.items()))
            log.warning("samples were not kept: %s", told)
            self._untold.clear()
