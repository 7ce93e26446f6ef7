"""One stream to one tail: opened, written, read, and opened again whenever it ends.

Knows frames, credit, and what the tail says of itself; tells it when nobody waits for a frame any more. Which frames go to
which tail, and what follows from a failure, is decided in ``client/segment.py``.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import grpc

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.balance import Standing
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.errors import ended_stream_error, from_rpc_error, from_status
from splitmesh.kernel.large_fields import RUN_REQUEST, RUN_RESPONSE
from splitmesh.kernel.tensors import header_to_message
from splitmesh.kernel.wire import LARGE_BYTES, Lifted
from splitmesh.tensor import Frame, TensorSpec, chunks

log = logging.getLogger(__name__)

ACCEPT_TIMEOUT_S = 30.0
"""A tail may have to fetch and load the segment before it accepts."""
LONGEST_MS = 3.6e6
"""What a tail can say that a frame took; no deadline is longer than ten minutes."""
BACKOFF_S = (0.1, 1.0)
"""First and largest wait before a stream is opened again; small, so that escalation resumes soon after healing."""
RUN = "/splitmesh.api.segment.v1.SegmentService/Run"
UNWILLING = (Reason.QUEUE_FULL, Reason.NOT_READY)
"""The tail takes no more for now; nothing is wrong with it or with the frame."""
BROKEN = (Reason.SERVICE_UNAVAILABLE, Reason.INTERNAL, Reason.PROTOCOL_VIOLATION, Reason.CANCELLED)
"""Something is wrong with the tail, or with the way to it."""

Request = segment_pb2.RunRequest | Lifted[segment_pb2.RunRequest]


@dataclass(frozen=True, slots=True)
class Opening:
    """What every stream of a link begins with, and what both of its ends know."""

    message: segment_pb2.Open
    wire: tuple[TensorSpec, ...] = ()
    """What the version states for the cut, one sample of it; empty: not known."""


@dataclass(slots=True, eq=False)
class Flight:
    """One frame on its way to one tail."""

    stream: TailStream
    frame_id: int
    frame: Frame
    trace_context: bytes
    expires: float
    """On the loop's clock."""
    number: int
    """The estimator's."""
    answer: asyncio.Future[Lifted[segment_pb2.RunResponse]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """A result, or the MeshError that the tail or the stream gave."""
    written: bool = False


class TailStream:
    """One stream to one tail; lives until it is closed.

    ``on_accepted`` is called when the tail has accepted, ``on_answer`` with the milliseconds that each answered frame took.
    """

    def __init__(
        self,
        channels: Channels,
        address: str,
        opening: Opening,
        on_accepted: Callable[[], None],
        on_answer: Callable[[float], None],
        estimator: LinkEstimator | None = None,
    ) -> None:
        self._channels = channels
        self._opening = opening
        self._on_accepted = on_accepted
        self._on_answer = on_answer
        self._estimator = estimator
        self._flying: dict[int, Flight] = {}
        self._ids = itertools.count(1)
        # Bounded by `free`: a frame waits here once, and its cancelling once. None: nothing more will be sent.
        self._outgoing: asyncio.Queue[Flight | segment_pb2.CancelFrame | None] = asyncio.Queue()
        self._idle = asyncio.Event()
        self._idle.set()
        self.address = address
        self.standing = Standing()
        self.credit = 0
        """Frames that the tail allows to be unanswered; 0: it has not accepted."""
        self.node = ""
        self.draining = False
        """The tail is about to stop."""
        self._task = asyncio.create_task(self._live())

    @property
    def in_flight(self) -> int:
        """Frames without an answer."""
        return len(self._flying)

    @property
    def accepts(self) -> bool:
        """Frames may be sent, if there is room for them."""
        return self.credit > 0 and not self.draining

    @property
    def free(self) -> bool:
        """Accepts, and is below the tail's credit.

        Frames given up while the link takes nothing leave their place in flight but not yet in the line to be sent.
        """
        return self.accepts and max(len(self._flying), self._outgoing.qsize()) < self.credit

    async def close(self) -> None:
        """End the stream; frames in flight fail with SERVICE_UNAVAILABLE."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def finish(self, within_s: float) -> None:
        """Wait until frames in flight are answered or given up, at most so long, then close."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        await self.close()

    def send(self, frame: Frame, trace_context: bytes, expires: float) -> Flight:
        """Put a frame into the line; only a stream that is ``free`` should be asked. ``drop`` what is not waited for."""
        number = 0 if self._estimator is None else self._estimator.sent(len(frame.payload), _now_ms())
        flight = Flight(self, next(self._ids), frame, trace_context, expires, number)
        self._flying[flight.frame_id] = flight
        self._idle.clear()
        self.standing.sent(flight.frame_id, _now_ms())
        self._outgoing.put_nowait(flight)
        return flight

    def drop(self, flight: Flight, *, beaten: bool = False, expired: bool = False) -> None:
        """Nobody waits for a frame any more; nothing where it was answered. The tail is told when it was sent.

        ``beaten``: another tail answered first. ``expired``: its deadline has passed.
        """
        if flight.answer.done():
            if not flight.answer.cancelled():
                flight.answer.exception()  # seen: else asyncio reports it
            return
        flight.answer.cancel()
        now_ms = _now_ms()
        if expired:
            self.standing.expired(flight.frame_id, now_ms)
        elif beaten:
            self.standing.beaten(flight.frame_id, now_ms)
        else:
            self.standing.given_up(flight.frame_id, now_ms)
        if self._estimator is not None and expired:
            self._estimator.gave_up(flight.number, now_ms)
        if flight.written:
            self._outgoing.put_nowait(segment_pb2.CancelFrame(frame_id=flight.frame_id))
        self._forget(flight)

    async def ping(self, timeout_s: float) -> None:
        """A call without content on the stream's own connection; MeshError when it fails."""
        async with self._channels.hold(self.address) as channel, mesh_errors():
            stub = segment_pb2_grpc.SegmentServiceStub(channel)
            await stub.Describe(segment_pb2.DescribeRequest(), timeout=timeout_s)

    async def _live(self) -> None:
        async with self._channels.hold(self.address) as channel:
            wait_s, longest_s = BACKOFF_S
            while True:
                reason = MeshError(Reason.SERVICE_UNAVAILABLE, "the stream is closed")
                try:
                    reason = await self._one_life(channel)
                finally:
                    was_accepted, self.credit, self.draining = self.credit > 0, 0, False
                    self._fail_all(reason)
                wait_s = BACKOFF_S[0] if was_accepted else min(2 * wait_s, longest_s)
                log.warning("no stream to the tail at %s: %s; again in %.1f s", self.address, reason, wait_s)
                await asyncio.sleep(min(longest_s, max(wait_s, reason.retry_after_s or 0.0)))

    async def _one_life(self, channel: grpc.aio.Channel) -> MeshError:
        """One life of the stream; returns why it is over."""
        try:
            await self._converse(channel)
        except grpc.RpcError as error:
            return from_rpc_error(error)
        except MeshError as error:
            return error
        except Exception:
            # Ending here would cut this head from the tail for good, unseen.
            log.exception("the stream to the tail failed unexpectedly")
        return MeshError(Reason.INTERNAL, "unexpected failure; see above")

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        run = channel.stream_stream(
            RUN, request_serializer=RUN_REQUEST.serialize, response_deserializer=RUN_RESPONSE.parse
        )
        # Waiting for the connection inside the call: the stream opens as soon as the tail is back, not one back-off later.
        call: grpc.aio.StreamStreamCall[Request, Lifted[segment_pb2.RunResponse]] = run(wait_for_ready=True)
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                await call.write(segment_pb2.RunRequest(open=self._opening.message))
                first = await call.read()
            if first is grpc.aio.EOF:
                raise await ended_stream_error(call, "the tail")
            if first.message.WhichOneof("message") != "accepted":
                raise MeshError(Reason.PROTOCOL_VIOLATION, "the tail did not begin with whether it accepts")
            accepted = first.message.accepted
            self.standing.connected()
            self.credit, self.node = accepted.credit, accepted.node
            self._on_accepted()
            writer = asyncio.create_task(self._write(call))
            while (response := await call.read()) is not grpc.aio.EOF:
                self._receive(response)
            raise await ended_stream_error(call, "the tail")
        except TimeoutError as error:
            raise MeshError(Reason.NOT_READY, f"the tail did not accept within {ACCEPT_TIMEOUT_S} s") from error
        finally:
            if writer is not None:
                writer.cancel()
            call.cancel()

    async def _write(self, call: grpc.aio.StreamStreamCall[Request, Lifted[segment_pb2.RunResponse]]) -> None:
        # One writer per stream: cancelling a frame's own write would cancel the whole call.
        loop = asyncio.get_running_loop()
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reader reports how the stream ended
            while (item := await self._outgoing.get()) is not None:
                if isinstance(item, segment_pb2.CancelFrame):
                    await call.write(segment_pb2.RunRequest(cancel=item))
                elif self._flying.get(item.frame_id) is item:  # else its caller has given up already
                    try:
                        messages = frame_messages(item, loop.time(), self._opening.wire)
                    except Exception:
                        # Ending here would leave a stream that looks open and sends nothing.
                        log.exception("a frame cannot be put into messages")
                        self._refused(item, MeshError(Reason.INTERNAL, "unexpected failure; see the head's log"), 0.0)
                        continue
                    item.written = True
                    for message in messages:
                        await call.write(message)
            await call.done_writing()

    def _receive(self, response: Lifted[segment_pb2.RunResponse]) -> None:
        message = response.message
        kind = message.WhichOneof("message")
        if kind == "result":
            flight = self._flying.get(message.result.frame_id)
            if flight is not None:
                self._answered(flight, response)
        elif kind == "frame_error":
            flight = self._flying.get(message.frame_error.frame_id)
            if flight is not None:
                self._refused(flight, from_status(message.frame_error.status), message.frame_error.backlog_ms)
        elif kind == "draining" and not self.draining:
            log.info("%s at %s is about to stop: no more frames to it", self.node, self.address)
            self.draining = True
            for flight in [flight for flight in self._flying.values() if not flight.written]:
                self._refused(flight, MeshError(Reason.NOT_READY, "the tail is about to stop"), 0.0)
            self._outgoing.put_nowait(None)

    def _answered(self, flight: Flight, response: Lifted[segment_pb2.RunResponse]) -> None:
        result, now_ms = response.message.result, _now_ms()
        hops = [ms for hop in result.onward for ms in (hop.link_ms, hop.queue_ms, hop.compute_ms)]
        for ms in (result.queue_ms, result.compute_ms, result.backlog_ms, *hops):
            # One that is no time would spoil every later estimate.
            if not 0 <= ms <= LONGEST_MS:
                error = MeshError(Reason.PROTOCOL_VIOLATION, f"the tail says that something took {ms} ms")
                self._refused(flight, error, 0.0)
                return
        if self._estimator is not None:
            self._estimator.answered(
                flight.number, now_ms, queue_ms=result.queue_ms, compute_ms=result.compute_ms + sum(hops)
            )
        self._on_answer(self.standing.answered(flight.frame_id, now_ms, result.backlog_ms))
        self._forget(flight)
        if not flight.answer.done():
            flight.answer.set_result(response)

    def _refused(self, flight: Flight, error: MeshError, backlog_ms: float) -> None:
        now_ms = _now_ms()
        backlog_ms = backlog_ms if 0 <= backlog_ms <= LONGEST_MS else 0.0
        if error.reason in UNWILLING:
            self.standing.refused(flight.frame_id, now_ms, error.retry_after_s or 0.0, backlog_ms)
        elif error.reason in BROKEN:
            self.standing.failed(flight.frame_id, now_ms)
        else:
            self.standing.faulted(flight.frame_id, backlog_ms, now_ms)
        self._forget(flight)
        if not flight.answer.done():
            flight.answer.set_exception(error)

    def _fail_all(self, reason: MeshError) -> None:
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
        kind = Reason.NOT_READY if reason.reason is Reason.NOT_READY else Reason.SERVICE_UNAVAILABLE
        for flight in list(self._flying.values()):
            self._refused(flight, MeshError(kind, "the stream to the tail ended before the answer came"), 0.0)

    def _forget(self, flight: Flight) -> None:
        if self._estimator is not None:
            self._estimator.forget(flight.number)
        del self._flying[flight.frame_id]
        if not self._flying:
            self._idle.set()


def frame_messages(flight: Flight, now: float, wire: Sequence[TensorSpec]) -> list[Request]:
    """A frame as the tail gets it; the tensors are left out where they are what both ends know."""
    frame = flight.frame
    header = header_to_message(frame.header)
    if wire and frame.header.tensors == tuple(wire):
        header.ClearField("tensors")
    whole = not frame.header.chunk_count
    lifted = whole and len(frame.payload) >= LARGE_BYTES
    head = segment_pb2.RunRequest(
        frame=segment_pb2.SegmentFrame(
            frame_id=flight.frame_id,
            header=header,
            payload=bytes(frame.payload) if whole and not lifted else b"",
            trace_context=flight.trace_context,
            deadline_ms=max(1, round((flight.expires - now) * 1000)),
        )
    )
    if lifted:
        return [Lifted(head, (frame.payload,))]
    pieces = (segment_pb2.RunRequest(chunk=segment_pb2.Chunk(index=index)) for index in range(frame.header.chunk_count))
    return [head, *(Lifted(piece, (data,)) for piece, data in zip(pieces, chunks(frame), strict=True))]


def _now_ms() -> float:
    return time.monotonic() * 1e3
