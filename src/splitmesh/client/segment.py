"""A head's link to the tails that run one segment of one model version: a frame goes out, an answer comes back.

Tails come and go through discovery. Which one gets a frame is ``client/balance.py``'s choice, when a second one gets it too
``client/hedging.py``'s; the streams are ``client/tail_stream.py``'s. Every frame has a deadline; no queue is longer than the
tails' credit. What to do when nobody answers is the head's business.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress

from splitmesh.api.routing.v1 import routing_pb2
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.balance import Balance, Conduct, Policy
from splitmesh.client.hedging import Hedging
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.segment_result import SegmentResult, result_of
from splitmesh.client.tail_stream import Flight, Opening, TailStream
from splitmesh.client.uplinks import load_message, uplink_message
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery import Instance, split_address
from splitmesh.model.alternatives import LinkState
from splitmesh.tensor import Frame, TensorSpec

__all__ = ["SegmentLink", "SegmentResult"]

log = logging.getLogger(__name__)

WATCH_AGAIN_S = 1.0
LEAVE_S = 10.0
"""How long the frames of a tail that discovery no longer knows may still wait for their answers."""
JUDGE_MS = 20.0
"""Between two looks at which tails are outliers; a failure is looked at before the next frame is sent."""
ELSEWHERE = (
    Reason.SERVICE_UNAVAILABLE,
    Reason.QUEUE_FULL,
    Reason.NOT_READY,
    Reason.INTERNAL,
    Reason.CANCELLED,
    Reason.MODEL_CORRUPT,
    Reason.PROTOCOL_VIOLATION,
)
"""Failures of one tail that another one need not have; a session that broke gives MODEL_CORRUPT. Computing a segment twice is
harmless."""


class SegmentLink:
    """Streams to every known node that runs one segment of one model version.

    Args:
        channels: know the nodes' addresses.
        model: by name.
        version: of it.
        node: who opens the streams.
        service: name under which the nodes are discovered.
        segment: which of the version's segments they run.
        estimator: is told what crosses.
        wire: what the version states for the cut; frames that carry just that are sent without saying so.
        priority: how urgent this application's frames are beside others', 0..9.
        policy: how several tails are treated.
    """

    def __init__(
        self,
        channels: Channels,
        model: str,
        version: int,
        node: str,
        *,
        service: str = "tail",
        segment: int = 1,
        estimator: LinkEstimator | None = None,
        wire: Sequence[TensorSpec] = (),
        priority: int = 0,
        policy: Policy | None = None,
    ) -> None:
        policy = policy or Policy()
        self._channels = channels
        self._estimator = estimator
        opening = segment_pb2.Open(model=model, version=version, node=node, segment=segment, priority=priority)
        self._opening = Opening(opening, one_sample(wire))
        self._service = service
        self._streams: dict[str, TailStream] = {}
        self._leaving: dict[TailStream, asyncio.Task[None]] = {}
        self._accepted = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._balance = Balance(policy, random.Random())
        self._hedging = Hedging(policy.hedge_budget)
        self._judged_ms = 0.0

    async def start(self) -> None:
        """Begin to follow discovery; returns at once."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close all streams."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for task in self._leaving.values():
            task.cancel()
        streams = [*self._streams.values(), *self._leaving]
        await asyncio.gather(*(stream.close() for stream in streams), *self._leaving.values(), return_exceptions=True)
        self._streams.clear()

    async def wait_accepted(self, timeout_s: float) -> bool:
        """Whether some tail has accepted this version within the time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._accepted.wait()
        return self._accepted.is_set()

    @property
    def available(self) -> bool:
        """Some tail accepts frames now."""
        return any(stream.accepts for stream in self._streams.values())

    def require(self) -> None:
        """Raise what :meth:`run` would raise at once: SERVICE_UNAVAILABLE (no tail), QUEUE_FULL (none has room)."""
        self._choose(())

    @property
    def peers(self) -> set[tuple[str, int]]:
        """Host and port of every known tail."""
        return {split_address(address) for address in self._streams}

    async def ping(self, timeout_s: float) -> float:
        """Round trip, in milliseconds, of a call without content to a tail; SERVICE_UNAVAILABLE when none accepts."""
        stream = self._choose(())
        begun = time.monotonic()
        await stream.ping(timeout_s)
        return (time.monotonic() - begun) * 1e3

    @property
    def in_flight(self) -> int:
        """Frames without an answer, over all tails."""
        return sum(stream.in_flight for stream in (*self._streams.values(), *self._leaving))

    def uplinks(self) -> list[segment_pb2.Uplink]:
        """Every stream as it is now, those that discovery no longer knows among them."""
        return [
            uplink_message(stream, self._opening.message, self._estimator)
            for stream in (*self._streams.values(), *self._leaving)
        ]

    def load(self) -> routing_pb2.UplinkLoad:
        """How crowded the tails are, and how good the link to them is."""
        return load_message([stream for stream in self._streams.values() if stream.accepts], self._estimator)

    def way(self) -> LinkState | None:
        """The link as the frames that cross it tell, those still out among them; None where nobody listens to it."""
        return None if self._estimator is None else self._estimator.state(time.monotonic() * 1e3)

    async def run(self, frame: Frame, *, trace_context: bytes, deadline_s: float) -> SegmentResult:
        """The tail's outputs for one frame. A frame that one tail fails or refuses goes to another at once, and one that is
        late to a second one as well; a tail whose answer nobody waits for any more is told.

        Raises MeshError SERVICE_UNAVAILABLE (no tail, or the stream broke and no other tail is left), QUEUE_FULL (every
        tail has its credit in flight, or wants no frame yet), DEADLINE_EXPIRED, or what the tail answered.
        """
        begun = asyncio.get_running_loop().time()
        asked = _Asked(frame, trace_context, begun, begun + deadline_s)
        self._hedging.sent()
        try:
            asked.send(self._choose(asked.tails))
            flight = await self._first_answer(asked)
        except TimeoutError as error:
            asked.drop_all(expired=True)
            raise MeshError(
                Reason.DEADLINE_EXPIRED, f"no answer from the tail in {deadline_s * 1000:.0f} ms"
            ) from error
        finally:
            asked.drop_all()
        round_trip_ms = (asyncio.get_running_loop().time() - begun) * 1000
        return result_of(flight.answer.result(), flight.stream.node, round_trip_ms)

    async def _first_answer(self, asked: _Asked) -> Flight:
        """The flight that was answered; raises TimeoutError at the deadline, or what the last tail to fail says."""
        loop = asyncio.get_running_loop()
        late = loop.time() + self._hedging.late_ms / 1e3 if len(self._streams) > 1 else asked.expires
        while True:
            for flight in await asked.some_end(min(late, asked.expires)):
                error = flight.answer.exception()
                if error is None:
                    asked.drop_all(beaten_by=flight)
                    return flight
                asked.flights.remove(flight)
                self._judged_ms = 0.0
                if asked.flights:
                    continue
                if not isinstance(error, MeshError) or error.reason not in ELSEWHERE:
                    raise error
                asked.send(self._choose_after(asked.tails, error))
            if loop.time() >= asked.expires:
                raise TimeoutError
            if loop.time() >= late:
                late = asked.expires if self._hedged(asked) else loop.time() + self._hedging.late_ms / 1e3

    def _hedged(self, asked: _Asked) -> bool:
        """Whether a late frame was sent to a second tail, one that is free and well: when the budget allows it, and in any case
        when the first one has been ejected since."""
        try:
            stream, now = self._choose(asked.tails, well=True), asyncio.get_running_loop().time()
        except MeshError:
            return False
        age_ms, left_ms = (now - asked.begun) * 1e3, (asked.expires - now) * 1e3
        backlog_ms = stream.standing.backlog_ms(time.monotonic() * 1e3)
        late_at = asked.flights[0].stream.standing
        in_budget = self._hedging.take(age_ms=age_ms, left_ms=left_ms, backlog_ms=backlog_ms)
        if not in_budget and late_at.conduct is not Conduct.EJECTED:
            return False
        late_at.hedged_frames += 1
        asked.send(stream)
        return True

    def _choose_after(self, tried: Collection[TailStream], error: MeshError) -> TailStream:
        """Another tail; the error of the one before where there is none."""
        try:
            return self._choose(tried)
        except MeshError:
            raise error from None

    def _choose(self, tried: Collection[TailStream], *, well: bool = False) -> TailStream:
        """Who gets a frame that ``tried`` have had already; with ``well`` only a tail without a fault."""
        now_ms = time.monotonic() * 1e3
        accepting = [stream for stream in self._streams.values() if stream.accepts]
        self._judge(accepting, now_ms)
        accepting = [stream for stream in accepting if stream not in tried]
        if not accepting:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no tail has accepted this version", retry_after_s=1.0)
        free = [stream for stream in accepting if stream.free and (stream.standing.well or not well)]
        if not free:
            raise MeshError(
                Reason.QUEUE_FULL, "every tail has as many unanswered frames as it allows", retry_after_s=0.1
            )
        chosen = self._balance.choose([stream.standing for stream in free], now_ms)
        if chosen is None:
            held_ms = min(stream.standing.held_ms(now_ms) for stream in free)
            raise MeshError(Reason.QUEUE_FULL, "every tail is busy and said so", retry_after_s=held_ms / 1e3)
        return free[chosen]

    def _judge(self, accepting: Sequence[TailStream], now_ms: float) -> None:
        if len(accepting) < 2 or now_ms - self._judged_ms < JUDGE_MS:
            return
        self._judged_ms = now_ms
        nodes = {stream.standing: stream.node for stream in accepting}
        for standing, why, away_ms in self._balance.judge(list(nodes), now_ms):
            log.warning("no frames to %s for %.0f s: %s", nodes[standing], away_ms / 1e3, why)

    async def _watch(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception:
                # Ending here would freeze the tails that are known, unseen.
                log.exception("following %r failed unexpectedly; trying again", self._service)
            await asyncio.sleep(WATCH_AGAIN_S)

    async def _follow(self) -> None:
        instances: AsyncIterator[tuple[Instance, ...]] = self._channels.discovery.watch(self._service)
        async for known in instances:
            addresses = {instance.address for instance in known}
            for address in addresses - self._streams.keys():
                self._streams[address] = TailStream(
                    self._channels, address, self._opening, self._accepted.set, self._hedging.answered, self._estimator
                )
            for address in self._streams.keys() - addresses:
                await self._leave(self._streams.pop(address))

    async def _leave(self, stream: TailStream) -> None:
        """No more frames; those on their way may end."""
        if not stream.in_flight:
            await stream.close()
            return
        leaving = self._leaving[stream] = asyncio.create_task(stream.finish(LEAVE_S))
        leaving.add_done_callback(lambda _: self._leaving.pop(stream))


class _Asked:
    """One frame, and the tails that have it."""

    def __init__(self, frame: Frame, trace_context: bytes, begun: float, expires: float) -> None:
        """Times are on the loop's clock."""
        self._frame = frame
        self._trace_context = trace_context
        self.begun = begun
        self.expires = expires
        self.tails: list[TailStream] = []
        """All that were ever asked."""
        self.flights: list[Flight] = []
        """Without an answer; the one that was sent last is the last."""

    def send(self, stream: TailStream) -> None:
        """To one more tail."""
        self.tails.append(stream)
        self.flights.append(stream.send(self._frame, self._trace_context, self.expires))

    async def some_end(self, until: float) -> list[Flight]:
        """The flights that are over; none when ``until`` came first."""
        left_s = until - asyncio.get_running_loop().time()
        answers = [flight.answer for flight in self.flights]
        await asyncio.wait(answers, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        return [flight for flight in self.flights if flight.answer.done()]

    def drop_all(self, *, beaten_by: Flight | None = None, expired: bool = False) -> None:
        """Nobody waits any more for those that are not over."""
        for flight in self.flights:
            # Only who was asked earlier was beaten: the others had no fair start.
            beaten = beaten_by is not None and self.flights.index(flight) < self.flights.index(beaten_by)
            if flight is not beaten_by:
                flight.stream.drop(flight, beaten=beaten, expired=expired)


def one_sample(wire: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """What a frame of one sample carries; empty where a version leaves that open."""
    if any(-1 in spec.shape[1:] or spec.shape[:1] not in ((-1,), (1,)) for spec in wire):
        return ()
    return tuple(TensorSpec(spec.name, spec.dtype, (1, *spec.shape[1:])) for spec in wire)
