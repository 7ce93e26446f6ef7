"""Which head a gateway talks to: the nearest that is well, the same one while it stays so.

Knows addresses from discovery and asks every head by grpc.health.v1 how it is, once a second, as soon as there is a choice.
A single head is not asked: its calls say how it is. Knows no frames; ``client/conversation.py`` and ``client/mesh.py`` do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.discovery import Discovery
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.kernel.large_fields import INFER_REQUEST, STREAM_INFER_REQUEST

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
STATIC_SERVICE = "head"
"""What listed addresses are entered as."""

ASK_S = 1.0
"""Between two questions how a head is."""
ANSWER_S = 1.0
"""Longest wait for its answer."""
REMEMBERED = 8
"""Answers of which the quickest says how near a head is: the others waited for the head's own work."""
JUDGED = 3
"""Answers of both before one is called nearer: the first also took the time to connect."""
NEARER = 0.7
"""A head is nearer when it answers in this share of the other's time …"""
NEARER_MS = 2.0
"""… and by this much sooner."""
STEADY_S = 10.0
"""A nearer head must have been well so long before frames move to it, so that one that comes and goes draws none."""
DISTRUST_S = (0.5, 10.0)
"""First and longest time for which a head that broke its word is not used while another one is well."""


class Head:
    """One head: its channel, how near it is and whether it is well."""

    def __init__(self, address: str, max_frame_bytes: int) -> None:
        self.address = address
        self.channel = open_channel(address, max_frame_bytes=max_frame_bytes)
        self.infer = self.channel.unary_unary(
            f"/{SERVICE}/Infer",
            request_serializer=INFER_REQUEST.serialize,
            response_deserializer=pb.InferResponse.FromString,
        )
        self.stream_infer = self.channel.stream_stream(
            f"/{SERVICE}/StreamInfer",
            request_serializer=STREAM_INFER_REQUEST.serialize,
            response_deserializer=pb.StreamInferResponse.FromString,
        )
        self.health = health_pb2_grpc.HealthStub(self.channel)
        self.well_since: float | None = None
        self.problem = "has not answered yet"
        self.failures = 0
        self.distrusted_until = 0.0
        self.gone = False
        self.users = 0
        self.round_trips_ms: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def well(self) -> bool:
        """It answered that it serves, and has not failed since."""
        return self.well_since is not None and not self.gone

    @property
    def distance_ms(self) -> float:
        """Its quickest answer of late."""
        return min(self.round_trips_ms, default=float("inf"))


class Heads:
    """The heads of one gateway. Nothing runs before the first :meth:`pick`."""

    def __init__(self, discovery: Discovery, service: str, *, max_frame_bytes: int) -> None:
        self._discovery = discovery
        self._service = service
        self._max_frame_bytes = max_frame_bytes
        self._known: dict[str, Head] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._following: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False

    async def pick(self, within_s: float | None = None) -> Head:
        """The only head, or the nearest that is well; waits for one.

        Raises:
            MeshError: SERVICE_UNAVAILABLE, none is known or well after ``within_s`` seconds; CANCELLED, closed; and what
                discovery raises.
        """
        if not self._closed and (self._following is None or self._following.done()):
            self._following = asyncio.create_task(self._follow(), name="heads")
            self._following.add_done_callback(self._followed)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    if self._closed:
                        raise MeshError(Reason.CANCELLED, "the mesh is closed")
                    if (found := self._best()) is not None:
                        return found
                    if self._following is not None and self._following.done():
                        self._following.result()
                    await self.changed()
        said = "; ".join(f"{head.address} {head.problem}" for head in self._known.values())
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"no head is well: {said or f'none is known as {self._service!r}'}")

    def rival(self, head: Head) -> Head | None:
        """Who should be used in the place of ``head``; None while it is the right one."""
        if head.gone:
            return self._best()
        best = self.other({head})
        if best is None or not head.well:
            return best
        assert best.well_since is not None
        steady = asyncio.get_running_loop().time() - best.well_since >= STEADY_S
        steady = steady and min(len(best.round_trips_ms), len(head.round_trips_ms)) >= JUDGED
        nearer = best.distance_ms < min(NEARER * head.distance_ms, head.distance_ms - NEARER_MS)
        return best if steady and nearer else None

    def other(self, tried: Collection[Head]) -> Head | None:
        """The nearest that is well and none of ``tried``."""
        others = [head for head in self._known.values() if head not in tried and head.well]
        return min(others, key=lambda head: head.distance_ms, default=None)

    async def changed(self) -> None:
        """Until something new is known of a head."""
        await self._changed.wait()

    @contextmanager
    def use(self, head: Head) -> Iterator[None]:
        """Its channel stays open meanwhile, also when discovery no longer knows it."""
        head.users += 1
        try:
            yield
        finally:
            head.users -= 1
            self._close_if_done(head)

    def worked(self, head: Head) -> None:
        """It answered a frame."""
        head.failures = 0

    def failed(self, head: Head, error: MeshError) -> None:
        """It is away, or about to go: it counts as not well until it has been trusted again and says that it serves."""
        first_s, longest_s = DISTRUST_S
        head.failures += 1
        distrust_s = min(longest_s, first_s * 2.0 ** min(head.failures - 1, 10))
        head.distrusted_until = asyncio.get_running_loop().time() + distrust_s
        head.well_since, head.problem = None, error.message
        self._wake()

    async def close(self) -> None:
        """End the questions and close every channel; calls in progress fail."""
        self._closed = True
        self._wake()
        tasks = [*self._asking.values(), *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._discovery.close()
        await asyncio.gather(*(head.channel.close() for head in self._known.values()))

    def _best(self) -> Head | None:
        if len(self._known) == 1:
            return next(iter(self._known.values()))
        well = [head for head in self._known.values() if head.well]
        return min(well, key=lambda head: head.distance_ms, default=None)

    async def _follow(self) -> None:
        async for instances in self._discovery.watch(self._service):
            addresses = {instance.address for instance in instances}
            for address in self._known.keys() - addresses:
                head = self._known.pop(address)
                head.gone, head.problem = True, "is gone"
                self._close_if_done(head)
            for address in addresses - self._known.keys():
                self._known[address] = Head(address, self._max_frame_bytes)
            self._ask_those_there_is_a_choice_of()
            self._wake()

    def _followed(self, task: asyncio.Task[None]) -> None:
        """Whoever asks next begins anew; until then the heads stay that are known."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("the heads known as %r are not followed any more: %r", self._service, error)
        self._wake()

    def _ask_those_there_is_a_choice_of(self) -> None:
        wanted = self._known.keys() if len(self._known) > 1 else set()
        for address in self._asking.keys() - wanted:
            self._asking.pop(address).cancel()
        now = asyncio.get_running_loop().time()
        for address in wanted - self._asking.keys():
            head = self._known[address]
            if head.users and now >= head.distrusted_until:
                head.well_since = head.well_since or now  # whoever is being used need not prove itself to a newcomer
            self._asking[address] = asyncio.create_task(self._ask(head), name=f"ask {address}")

    async def _ask(self, head: Head) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            problem = await _problem(head)
            now = loop.time()
            if problem:
                head.well_since, head.problem = None, problem
            else:
                head.round_trips_ms.append((now - begun) * 1000)
                if head.well_since is None and now >= head.distrusted_until:
                    head.well_since = now
            self._wake()
            await asyncio.sleep(max(0.0, begun + ASK_S - now))

    def _close_if_done(self, head: Head) -> None:
        if head.gone and not head.users:
            closing = asyncio.create_task(head.channel.close())
            _CLOSING.add(closing)
            closing.add_done_callback(_CLOSING.discard)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


_CLOSING: set[asyncio.Task[None]] = set()
"""The loop itself holds tasks only weakly."""


async def _problem(head: Head) -> str:
    """Why it should not be used; empty when it serves. Whoever knows no health service serves: it answered."""
    try:
        reply = await head.health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=ANSWER_S)
    except grpc.aio.AioRpcError as error:
        return "" if error.code() is grpc.StatusCode.UNIMPLEMENTED else f"does not answer: {error.code().name}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return "" if reply.status == health_pb2.HealthCheckResponse.SERVING else f"is {status}"


def listed_heads(heads: str) -> StaticDiscovery:
    """Discovery of ``host:port,host:port``.

    Raises:
        MeshError: FIELD_INVALID, no address, or one that is none or stands twice.
    """
    addresses = [address.strip() for address in heads.split(",")]
    if len(set(addresses)) != len(addresses):
        raise field_error("heads", f"{heads!r} names an address twice")
    try:
        return StaticDiscovery({STATIC_SERVICE: addresses})
    except MeshError as error:
        raise field_error("heads", f"{heads!r} is not host:port, or several separated by commas") from error
