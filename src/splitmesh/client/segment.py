"""A head's link to the tails: one stream per tail and model version, kept open, mended, and chosen per frame.

Tails come and go through discovery; a frame goes to the accepted stream with the fewest frames in flight. Every frame
has a deadline; no queue is longer than the tail's credit. What to do when nobody answers is the head's business.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

import grpc

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.kernel.discovery import Instance
from splitmesh.kernel.errors import ended_stream_error, from_rpc_error, from_status
from splitmesh.kernel.tensors import header_to_message, tensors_from_messages
from splitmesh.tensor import Frame, chunks
from splitmesh.tensor.spec import ANSWER_LIMITS, Array

log = logging.getLogger(__name__)

ACCEPT_TIMEOUT_S = 30.0
"""A tail may have to fetch and load the segment before it accepts."""
LONGEST_MS = 3.6e6
"""What a tail can say that a frame took; no deadline is longer than ten minutes."""
BACKOFF_S = (0.1, 1.0)
"""First and largest wait before a stream is opened again; small, so that escalation resumes soon after healing."""


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What a tail made of one frame."""

    outputs: dict[str, Array]
    node: str
    queue_ms: float
    compute_ms: float
    batch_size: int
    round_trip_ms: float
    onward: tuple[segment_pb2.Hop, ...] = ()
    """What later segments of a chain did, the next one first."""

    @property
    def later_queue_ms(self) -> float:
        """Waiting before compute, over this and all later segments."""
        return self.queue_ms + sum(hop.queue_ms for hop in self.onward)

    @property
    def later_compute_ms(self) -> float:
        """Compute, over this and all later segments."""
        return self.compute_ms + sum(hop.compute_ms for hop in self.onward)

    @property
    def links_ms(self) -> float:
        """The link to this segment and those between later ones."""
        return max(0.0, self.round_trip_ms - self.later_queue_ms - self.later_compute_ms)


@dataclass(slots=True)
class _Flying:
    frame: Frame
    trace_context: bytes
    expires: float
    result: asyncio.Future[segment_pb2.Result]


class _TailStream:
    """One stream to one tail, opened again whenever it ends."""

    def __init__(
        self,
        channels: Channels,
        address: str,
        opening: segment_pb2.Open,
        accepted: asyncio.Event,
        estimator: LinkEstimator | None,
    ) -> None:
        self._channels = channels
        self._estimator = estimator
        self._address = address
        self._opening = opening
        self._any_accepted = accepted
        self._flying: dict[int, _Flying] = {}
        self._ids = itertools.count(1)
        self._outgoing: asyncio.Queue[int] = asyncio.Queue()  # bounded by `free`
        self.credit = 0
        self.node = ""
        self._task = asyncio.create_task(self._live())

    @property
    def in_flight(self) -> int:
        """Frames without an answer."""
        return len(self._flying)

    @property
    def free(self) -> bool:
        """Accepted, and below the tail's credit.

        Frames given up while the link takes nothing leave their place in flight but not yet in the line to be sent.
        """
        return max(len(self._flying), self._outgoing.qsize()) < self.credit

    async def close(self) -> None:
        """End the stream; frames in flight fail with SERVICE_UNAVAILABLE."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def run(self, frame: Frame, trace_context: bytes, deadline_s: float) -> segment_pb2.Result:
        """Send and wait; DEADLINE_EXPIRED after ``deadline_s`` seconds."""
        loop = asyncio.get_running_loop()
        frame_id = next(self._ids)
        flying = _Flying(frame, trace_context, loop.time() + deadline_s, loop.create_future())
        self._flying[frame_id] = flying
        self._outgoing.put_nowait(frame_id)
        with _Watch(self._estimator, len(frame.payload)) as watch:
            try:
                async with asyncio.timeout(deadline_s):
                    result = await flying.result
            except TimeoutError as error:
                watch.gave_up()
                raise MeshError(
                    Reason.DEADLINE_EXPIRED, f"no answer from the tail in {deadline_s * 1000:.0f} ms"
                ) from error
            finally:
                self._flying.pop(frame_id, None)
            _require_times(result)
            watch.answered(result)
            return result

    async def ping(self, timeout_s: float) -> None:
        """A call without content on the stream's own connection; MeshError when it fails."""
        async with self._channels.hold(self._address) as channel, mesh_errors():
            stub = segment_pb2_grpc.SegmentServiceStub(channel)
            await stub.Describe(segment_pb2.DescribeRequest(), timeout=timeout_s)

    async def _live(self) -> None:
        async with self._channels.hold(self._address) as channel:
            await self._converse_for_ever(segment_pb2_grpc.SegmentServiceStub(channel))

    async def _converse_for_ever(self, stub: segment_pb2_grpc.SegmentServiceStub) -> None:
        wait_s, longest_s = BACKOFF_S
        while True:
            try:
                await self._converse(stub)
                reason: MeshError = MeshError(Reason.SERVICE_UNAVAILABLE, "the tail ended the stream")
            except grpc.RpcError as error:
                reason = from_rpc_error(error)
            except MeshError as error:
                reason = error
            except Exception:
                # Ending here would cut this head from the tail for good, unseen.
                log.exception("the stream to the tail failed unexpectedly")
                reason = MeshError(Reason.INTERNAL, "unexpected failure; see above")
            finally:
                was_accepted, self.credit = self.credit > 0, 0
                self._fail_all()
            wait_s = BACKOFF_S[0] if was_accepted else min(2 * wait_s, longest_s)
            log.warning("no stream to the tail: %s; again in %.1f s", reason, wait_s)
            await asyncio.sleep(wait_s)

    async def _converse(self, stub: segment_pb2_grpc.SegmentServiceStub) -> None:
        """One life of the stream; returns or raises when it is over."""
        # Waiting for the connection inside the call: the stream opens as soon as the tail is back, not one back-off later.
        call = stub.Run(wait_for_ready=True)
        writer: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(ACCEPT_TIMEOUT_S):
                await call.write(segment_pb2.RunRequest(open=self._opening))
                first = await call.read()
            if first is grpc.aio.EOF or first.WhichOneof("message") != "accepted":
                raise await ended_stream_error(call, "the tail")
            self.credit, self.node = first.accepted.credit, first.accepted.node
            self._any_accepted.set()
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

    async def _write(self, call: grpc.aio.StreamStreamCall[segment_pb2.RunRequest, segment_pb2.RunResponse]) -> None:
        # One writer per stream: cancelling a frame's own write would cancel the whole call.
        loop = asyncio.get_running_loop()
        with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the reader reports how the stream ended
            while True:
                frame_id = await self._outgoing.get()
                flying = self._flying.get(frame_id)
                if flying is None:
                    continue  # its caller has given up already
                for message in _messages(frame_id, flying, loop.time()):
                    await call.write(message)

    def _receive(self, response: segment_pb2.RunResponse) -> None:
        kind = response.WhichOneof("message")
        if kind == "result":
            flying = self._flying.get(response.result.frame_id)
            if flying is not None and not flying.result.done():
                flying.result.set_result(response.result)
        elif kind == "frame_error":
            flying = self._flying.get(response.frame_error.frame_id)
            if flying is not None and not flying.result.done():
                flying.result.set_exception(from_status(response.frame_error.status))

    def _fail_all(self) -> None:
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
        for flying in self._flying.values():
            if not flying.result.done():
                flying.result.set_exception(
                    MeshError(Reason.SERVICE_UNAVAILABLE, "the stream to the tail broke before the answer came")
                )


class _Watch:
    """Tells the estimator how a frame fared; without an estimator nothing."""

    def __init__(self, estimator: LinkEstimator | None, size_bytes: int) -> None:
        self._estimator = estimator
        self._number = 0 if estimator is None else estimator.sent(size_bytes, _now_ms())

    def __enter__(self) -> Self:
        return self

    def answered(self, result: segment_pb2.Result) -> None:
        if self._estimator is not None:
            onward_ms = sum(hop.link_ms + hop.queue_ms + hop.compute_ms for hop in result.onward)
            self._estimator.answered(
                self._number, _now_ms(), queue_ms=result.queue_ms, compute_ms=result.compute_ms + onward_ms
            )

    def gave_up(self) -> None:
        if self._estimator is not None:
            self._estimator.gave_up(self._number, _now_ms())

    def __exit__(self, *_: object) -> None:
        if self._estimator is not None:
            self._estimator.forget(self._number)


def _require_times(result: segment_pb2.Result) -> None:
    """PROTOCOL_VIOLATION for times that are none: one that is no number would spoil every later estimate."""
    hops = [ms for hop in result.onward for ms in (hop.link_ms, hop.queue_ms, hop.compute_ms)]
    for ms in (result.queue_ms, result.compute_ms, *hops):
        if not 0 <= ms <= LONGEST_MS:
            raise MeshError(Reason.PROTOCOL_VIOLATION, f"the tail says that something took {ms} ms")


def _now_ms() -> float:
    return time.monotonic() * 1e3


def _messages(frame_id: int, flying: _Flying, now: float) -> list[segment_pb2.RunRequest]:
    frame = flying.frame
    head = segment_pb2.SegmentFrame(
        frame_id=frame_id,
        header=header_to_message(frame.header),
        payload=b"" if frame.header.chunk_count else bytes(frame.payload),
        trace_context=flying.trace_context,
        deadline_ms=max(1, round((flying.expires - now) * 1000)),
    )
    pieces = [
        segment_pb2.RunRequest(chunk=segment_pb2.Chunk(index=index, data=data))
        for index, data in enumerate(chunks(frame))
    ]
    return [segment_pb2.RunRequest(frame=head), *pieces]


class SegmentLink:
    """Streams to every known node that runs one segment of one model version."""

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
    ) -> None:
        self._channels = channels
        self._estimator = estimator
        self._opening = segment_pb2.Open(model=model, version=version, node=node, segment=segment)
        self._service = service
        self._streams: dict[str, _TailStream] = {}
        self._accepted = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow discovery; returns at once."""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close all streams."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(stream.close() for stream in self._streams.values()))
        self._streams.clear()

    async def wait_accepted(self, timeout_s: float) -> bool:
        """Whether some tail has accepted this version within the time."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._accepted.wait(), timeout_s)
        return self._accepted.is_set()

    @property
    def available(self) -> bool:
        """Some tail accepts frames now."""
        return any(stream.credit for stream in self._streams.values())

    async def ping(self, timeout_s: float) -> float:
        """Round trip, in milliseconds, of a call without content to a tail; SERVICE_UNAVAILABLE when none accepts."""
        _, stream = self._choose(set())
        begun = time.monotonic()
        await stream.ping(timeout_s)
        return (time.monotonic() - begun) * 1e3

    @property
    def in_flight(self) -> int:
        """Frames without an answer, over all tails."""
        return sum(stream.in_flight for stream in self._streams.values())

    async def run(self, frame: Frame, *, trace_context: bytes, deadline_s: float) -> SegmentResult:
        """The tail's outputs for one frame.

        Raises MeshError SERVICE_UNAVAILABLE (no tail, or the stream broke and no other tail is left), QUEUE_FULL (every
        tail has its credit in flight), DEADLINE_EXPIRED, or what the tail answered.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        tried: set[str] = set()
        while True:
            address, stream = self._choose(tried)
            try:
                result = await stream.run(frame, trace_context, deadline_s - (loop.time() - begun))
            except MeshError as error:
                # Computing a segment twice is harmless, so a frame whose stream broke goes to another tail at once.
                retryable = error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.QUEUE_FULL)
                tried.add(address)
                if retryable and self._streams.keys() - tried and loop.time() - begun < deadline_s:
                    continue
                raise
            return SegmentResult(
                outputs=tensors_from_messages(result.outputs, ANSWER_LIMITS),
                node=stream.node,
                queue_ms=result.queue_ms,
                compute_ms=result.compute_ms,
                batch_size=result.batch_size,
                round_trip_ms=(loop.time() - begun) * 1000,
                onward=tuple(result.onward),
            )

    def _choose(self, tried: set[str]) -> tuple[str, _TailStream]:
        candidates = [(address, stream) for address, stream in self._streams.items() if address not in tried]
        accepted = [pair for pair in candidates if pair[1].credit]
        if not accepted:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no tail has accepted this version", retry_after_s=1.0)
        free = [pair for pair in accepted if pair[1].free]
        if not free:
            raise MeshError(
                Reason.QUEUE_FULL, "every tail has as many unanswered frames as it allows", retry_after_s=0.1
            )
        return min(free, key=lambda pair: pair[1].in_flight)

    async def _watch(self) -> None:
        instances: AsyncIterator[tuple[Instance, ...]] = self._channels.discovery.watch(self._service)
        async for known in instances:
            addresses = {instance.address for instance in known}
            for address in addresses - self._streams.keys():
                self._streams[address] = _TailStream(
                    self._channels, address, self._opening, self._accepted, self._estimator
                )
            for address in self._streams.keys() - addresses:
                stream = self._streams.pop(address)
                await stream.close()
