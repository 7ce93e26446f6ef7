"""Dynamic batching: frames that wait together are computed together.

One :class:`Batcher` per loaded segment; all of a node share its :class:`~splitmesh.kernel.slots.ComputeSlots`. Frames go by
their virtual deadline, so that urgent ones come first and none starves. What has expired, or can surely not be done in
time, is dropped before compute; what would wait beyond its deadline is refused at once; a batch that fails is computed
frame by frame, so that one poisonous frame fails alone. Knows arrays and deadlines, nothing of streams or models.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right, insort
from itertools import islice
from types import TracebackType

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_job import BatchJob, Computed, Feeds, OnRun, Run, Tally, Waiting, shapes_of
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.kernel.company import Company
from splitmesh.kernel.slots import ComputeSlots

__all__ = ["Batcher", "Computed", "Place", "Run", "Tally"]

PRIORITY_S = 0.1
"""A level of priority counts as much as a deadline that is so many seconds nearer."""
LEAST_RETRY_S = 0.001


class Batcher:
    """Collects single frames (leading dimension 1) of one segment and computes them in batches.

    Args:
        run: computes; called in a thread, several at once when there are several slots.
        slots: the node's threads and limits. None: one of its own, without limits.
        max_batch: most frames computed together.
        max_delay_s: the longest wait for company while a slot is free, see :class:`Company`.
        max_queue: most frames that wait here; one more for each free slot, which takes it at once.
        times: what batches take, when that was measured before.
        on_run: told the samples of a run and its milliseconds, in the thread that computed.
        alone: every frame is a batch and gets the outputs as they are: of a segment whose outputs have no row for each
            sample, as those of a detector that lists what it finds.
    """

    def __init__(
        self,
        run: Run,
        *,
        slots: ComputeSlots | None = None,
        max_batch: int,
        max_delay_s: float,
        max_queue: int,
        times: BatchTimes | None = None,
        on_run: OnRun | None = None,
        alone: bool = False,
    ) -> None:
        self.tally = Tally()
        self._run = run
        self._on_run = on_run
        self._alone = alone
        self._own_slots = slots is None
        self._slots = slots or ComputeSlots()
        self._max_batch = 1 if alone else max_batch
        self._max_queue = max_queue
        self._times = times or BatchTimes()
        self._company = Company(self._times, self._max_batch, max_delay_s)
        self._waiting: list[Waiting] = []
        self._arriving = 0
        self._computing = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._slots.join(self)

    def __len__(self) -> int:
        """Frames waiting, those that are being unpacked included."""
        return len(self._waiting) + self._arriving

    def backlog_s(self) -> float:
        """How long a frame would wait if it came now, seconds: the node's estimate, over all segments."""
        return self._slots.wait_s()

    async def submit(self, feeds: Feeds, deadline_s: float, priority: int = 0) -> Computed:
        """The frame's outputs. Errors as :meth:`place` and :meth:`Place.computed`."""
        with self.place(sum(array.nbytes for array in feeds.values()), deadline_s, priority) as place:
            return await place.computed(feeds)

    def place(self, size_bytes: int, deadline_s: float, priority: int = 0) -> Place:
        """A place in the queue for a frame that is here but perhaps not unpacked yet; it is given back at the end of its
        ``with`` block.

        Args:
            size_bytes: of the unpacked frame.
            deadline_s: seconds from now on beyond which nobody wants the answer.
            priority: 0 to 9.

        Raises MeshError QUEUE_FULL, with the estimated back-log as the time to retry, when a limit of frames or bytes is
        reached or when the work that goes before the frame takes longer than its deadline allows; NOT_READY after a stop.
        """
        if self._stopped:
            raise _unloading()
        now = asyncio.get_running_loop().time()
        expires = now + deadline_s
        waiting = Waiting(expires, expires - PRIORITY_S * priority, now, time.time_ns(), size_bytes)
        problem = self._why_full(size_bytes)
        if problem:
            # A frame whose deadline has passed must not hold a place.
            self._drop(now)
            problem = self._why_full(size_bytes)
        if not problem and not self._slots.free and (wait_s := self._slots.wait_s(waiting.virtual)) > deadline_s:
            problem = f"the frame would wait about {wait_s * 1000:.0f} ms and has {deadline_s * 1000:.0f} ms"
        if problem:
            self.tally.refused += 1
            raise MeshError(Reason.QUEUE_FULL, problem, retry_after_s=max(LEAST_RETRY_S, self.backlog_s()))
        return Place(self, waiting)

    async def stop(self) -> None:
        """Stop; frames still waiting are refused with NOT_READY, a batch in compute is computed."""
        if self._stopped:
            return
        self._stopped = True
        self._slots.leave(self)
        for waiting in list(self._waiting):
            self._leave(waiting)
            if not waiting.result.done():
                waiting.result.set_exception(_unloading())
        await self._idle.wait()
        if self._own_slots:
            await self._slots.stop()

    # a source of batches for the slots

    def due(self, now: float) -> float:
        """See :class:`~splitmesh.kernel.slots.Source`."""
        if not self._waiting:
            return math.inf
        return self._company.until(
            now,
            waiting=len(self._waiting),
            arriving=self._arriving,
            oldest=min(waiting.arrived for waiting in self._waiting),
            earliest=min(waiting.expires for waiting in self._waiting),
        )

    def urgency(self) -> float:
        """See :class:`~splitmesh.kernel.slots.Source`."""
        return self._waiting[0].virtual

    def work_s(self, before: float) -> float:
        """See :class:`~splitmesh.kernel.slots.Source`."""
        ahead = bisect_right(self._waiting, before, key=_virtual) + self._arriving
        return ahead * self._times.per_frame_s(min(len(self), self._max_batch))

    def take(self, now: float) -> BatchJob | None:
        """The most urgent frame and those of its shape that go with it."""
        self._company.taken(len(self._waiting))
        self._drop(now)
        self._drop_hopeless(now)
        if not self._waiting:
            return None
        shapes = self._waiting[0].shapes
        same = list(islice((waiting for waiting in self._waiting if waiting.shapes == shapes), self._max_batch))
        batch = same[: self._times.choose([waiting.expires - now for waiting in same])]
        for waiting in batch:
            self._leave(waiting)
        self._computing += len(batch)
        self._idle.clear()
        expected_s = self._times.typical_s(len(batch))
        return BatchJob(batch, self._run, self._on_run, self._finished, alone=self._alone, expected_s=expected_s)

    # of places

    def _enter(self, size_bytes: int) -> None:
        self._arriving += 1
        self._slots.frames += 1
        self._slots.bytes += size_bytes

    def _exit(self, waiting: Waiting, *, cancelled: bool) -> None:
        """Whatever becomes of the frame: its place is free again."""
        if waiting.state == "arriving":
            self._arriving -= 1
            self._give_back(waiting)
        elif waiting.state == "waiting":
            self._waiting.remove(waiting)
            self._give_back(waiting)
        else:
            return
        # The result is cancelled where the frame was given up for another's sake, with which it came.
        self.tally.cancelled += cancelled or waiting.result.cancelled()
        if not self._stopped:
            self._slots.dispatch()

    async def _computed(self, waiting: Waiting, feeds: Feeds) -> Computed:
        if self._stopped:
            raise _unloading()
        waiting.feeds, waiting.shapes = feeds, shapes_of(feeds)
        waiting.state = "waiting"
        self._arriving -= 1
        insort(self._waiting, waiting, key=_virtual)
        self._company.arrived(len(self) + self._computing, asyncio.get_running_loop().time())
        self._slots.dispatch()
        return await waiting.result

    def _leave(self, waiting: Waiting) -> None:
        """For compute, or because it was dropped."""
        self._waiting.remove(waiting)
        self._give_back(waiting)

    def _give_back(self, waiting: Waiting) -> None:
        waiting.state = "gone"
        self._slots.frames -= 1
        self._slots.bytes -= waiting.size_bytes

    # limits and deadlines

    def _why_full(self, size_bytes: int) -> str:
        """Empty while there is room for one more frame of this size."""
        slots = self._slots
        if len(self) >= self._max_queue + slots.free:
            return f"{len(self)} frames are waiting, at most {self._max_queue}"
        if slots.frames >= slots.max_frames + slots.free:
            return f"{slots.frames} frames are waiting on this node, at most {slots.max_frames}"
        if slots.frames and slots.bytes + size_bytes > slots.max_bytes:
            return f"{slots.bytes} bytes are waiting on this node, at most {slots.max_bytes}"
        return ""

    def _drop(self, now: float) -> None:
        """What has expired, and what nobody waits for."""
        for waiting in [one for one in self._waiting if one.expires <= now or one.result.done()]:
            if waiting.result.done():
                self._leave(waiting)
                self.tally.cancelled += 1
            else:
                self._expire(waiting, "the frame's deadline passed while it waited for compute")

    def _drop_hopeless(self, now: float) -> None:
        """What even the fastest run seen of late could not do in time; but never all: a measure that is out of date
        corrects itself only when something is computed."""
        least_s = self._times.least_s()
        hopeless = [one for one in self._waiting if one.expires < now + least_s]
        if hopeless and len(hopeless) == len(self._waiting):
            hopeless.remove(max(hopeless, key=lambda one: one.expires))
        for waiting in hopeless:
            left_ms = (waiting.expires - now) * 1000
            self._expire(waiting, f"{left_ms:.1f} ms are left, the fastest run takes {least_s * 1000:.1f} ms")

    def _expire(self, waiting: Waiting, why: str) -> None:
        self._leave(waiting)
        self.tally.expired += 1
        waiting.result.set_exception(MeshError(Reason.DEADLINE_EXPIRED, why))

    def _finished(self, job: BatchJob, took_s: float) -> None:
        self._computing -= len(job.batch)
        if not self._computing:
            self._idle.set()
        self.tally.computed += len(job.batch) - job.expired - job.cancelled
        self.tally.expired += job.expired
        self.tally.cancelled += job.cancelled
        if job.together:
            self._times.record(len(job.batch), took_s)


class Place:
    """A frame's place in a queue, held for the length of a ``with`` block."""

    def __init__(self, batcher: Batcher, waiting: Waiting) -> None:
        self._batcher = batcher
        self._waiting = waiting

    def __enter__(self) -> Place:
        """Take it."""
        self._batcher._enter(self._waiting.size_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self._batcher._exit(self._waiting, cancelled=kind is asyncio.CancelledError)

    async def computed(self, feeds: Feeds) -> Computed:
        """The frame's outputs, once.

        Raises MeshError DEADLINE_EXPIRED when the deadline passed, or could surely not be kept any more, before compute;
        NOT_READY when the segment is unloaded; and what ``run`` raises for this frame.
        """
        return await self._batcher._computed(self._waiting, feeds)


def _virtual(waiting: Waiting) -> float:
    return waiting.virtual


def _unloading() -> MeshError:
    return MeshError(Reason.NOT_READY, "the segment is being unloaded", retry_after_s=0.5)
