"""The SDK of camera gateways: pictures in, answers out.

``async with Mesh("mec-host:7010") as mesh: answer = await mesh.infer(jpeg)``. Connection, choice of the head, deadlines,
retries, sending again and traces are inside. :class:`~splitmesh.client.sync.SyncMesh` is the same without an event loop.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from weakref import WeakSet

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.client.answers import Answer, answer_from_message
from splitmesh.client.conversation import RESEND
from splitmesh.client.heads import STATIC_SERVICE, Head, Heads, listed_heads
from splitmesh.client.requests import Frame, Prepared, Requests, check_max_labels
from splitmesh.client.stream import Drop, Order, Stream
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.discovery import Discovery
from splitmesh.kernel.discovery_consul import ConsulDiscovery
from splitmesh.kernel.telemetry import Telemetry
from splitmesh.kernel.wire import Lifted

ANSWER_MARGIN_S = 0.5
"""How much longer than the frame's deadline the caller waits: the head's own answer or error should come first."""
RETRY_WAIT_S = 0.2
"""Before a second try where the head did not say when."""


class Mesh:
    """A connection to the heads of a site."""

    def __init__(
        self,
        heads: str = "",
        *,
        consul_address: str = "",
        consul_token: str = "",
        service: str = STATIC_SERVICE,
        model: str = "",
        deadline_ms: int = 1000,
        otlp_endpoint: str = "",
        max_frame_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        """Nothing is connected before the first call.

        With several heads the nearest that is well is used: the first that answers, later the one with the shortest round trip.
        Frames go to another one when it dies, drains or is gone from Consul, and to a clearly nearer one when that has been
        well for ten seconds.

        Args:
            heads: address of the edge head, ``host:port``, or of several, separated by commas.
            consul_address: of a Consul agent that knows the heads, ``host:port``; in the place of ``heads``.
            consul_token: ACL token for the agent.
            service: the heads' name in Consul.
            model: which model to ask; empty means the head's first.
            deadline_ms: time within which an answer is useful, measured at the head, milliseconds.
            otlp_endpoint: where the gateway's own spans go, ``host:port``; empty: nowhere (the head's still go).
            max_frame_bytes: larger frames are refused here, before they are sent.

        Raises:
            MeshError: FIELD_INVALID, no head is named, or an address is none.
        """
        _check_deadline(deadline_ms)
        self._heads = Heads(
            _discovery(heads, consul_address, consul_token),
            service if consul_address else STATIC_SERVICE,
            max_frame_bytes=max_frame_bytes,
        )
        self._deadline_ms = deadline_ms
        self._telemetry = Telemetry("gateway", otlp_endpoint=otlp_endpoint)
        self._requests = Requests(self._telemetry, model=model, max_frame_bytes=max_frame_bytes)
        self._closed = False
        self._streams: WeakSet[Stream] = WeakSet()

    async def __aenter__(self) -> Mesh:
        """The mesh itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls and streams in progress fail with CANCELLED."""
        self._closed = True
        await asyncio.gather(*(stream.close() for stream in list(self._streams)))
        await self._heads.close()
        await asyncio.to_thread(self._telemetry.shutdown)

    async def infer(
        self,
        frame: Frame | Path,
        *,
        camera: str = "",
        deadline_ms: int | None = None,
        retries: int = 2,
        max_labels: int = 0,
    ) -> Answer:
        """Answer one picture (encoded bytes, or a file), one preprocessed input ``[1, ...]``, or, for a model that takes
        several, all of its inputs by name.

        It returns or raises within ``deadline_ms`` and half a second, retries included. Answering a frame twice is harmless, so
        SERVICE_UNAVAILABLE, NOT_READY and QUEUE_FULL are tried again up to ``retries`` times, after the time that the head asks
        for, or at once where another head is well; not when that time does not fit. A cancelled call is not tried again.

        Args:
            frame: what to look at.
            camera: which camera took it, for traces and counts; at most 128 characters.
            deadline_ms: time within which an answer is useful; None: the mesh's.
            retries: further tries at most; not negative.
            max_labels: most classes in the answer, the probable ones; 0: as many as the head gives, 1,000.

        Raises:
            MeshError: with a reason; docs/sdk.md says which.
        """
        content = await asyncio.to_thread(frame.read_bytes) if isinstance(frame, Path) else frame
        limit_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        _check_deadline(limit_ms)
        check_max_labels(max_labels)
        if retries < 0:
            raise field_error("retries", f"is {retries}; 0 means a single try")
        ends = asyncio.get_running_loop().time() + limit_ms / 1000 + ANSWER_MARGIN_S
        lifted, span = self._requests.call(content, camera=camera, max_labels=max_labels)
        with self._telemetry.use(span):
            tried: set[Head] = set()
            for tries_left in range(retries, -1, -1):
                head = self._heads.other(tried) if tried else None
                head = head or await self._heads.pick(ends - asyncio.get_running_loop().time())
                tried.add(head)
                try:
                    return await self._ask(head, lifted, ends)
                except MeshError as error:
                    if error.reason not in RESEND or not tries_left:
                        raise
                    if self._heads.other(tried) is None:
                        tried.clear()
                        await _wait_to_retry(error, ends)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stream(
        self,
        camera: str = "",
        *,
        order: Order = "as-ready",
        drop: Drop = "none",
        max_waiting: int = 1,
        window: int = 16,
        deadline_ms: int | None = None,
        give_up_s: float = 30.0,
        max_labels: int = 0,
    ) -> Stream:
        """A stream of encoded pictures of one camera, to be opened by ``async with``.

        ``async for outcome in stream.run(frames)`` answers a source; ``await stream.send(picture)`` and ``async for outcome in
        stream`` are its two halves, for two tasks. Every frame has exactly one outcome: an Answer or a FrameFailure.

        Two clocks: ``deadline_ms`` is the head's, from each arrival there; ``give_up_s`` is ours, from the camera to the
        outcome: while no head is well frames wait and are sent again so long, then become a FrameFailure.

        Args:
            camera: which camera it is, for traces and counts; at most 128 characters.
            order: outcomes "as-ready", or "in-order" of sending: then a slow frame holds up those behind it.
            drop: "none": the camera waits; "oldest": the oldest frame that waits gives way (FRAME_SUPERSEDED).
            max_waiting: with "oldest", frames that may wait for their turn, here and at the head each.
            window: frames under way at once, at most as many as the head's credit.
            deadline_ms: time within which an answer is useful, at the head; None: the mesh's.
            give_up_s: longest time from the camera to an outcome, seconds.
            max_labels: as in :meth:`infer`.

        Raises:
            MeshError: FIELD_INVALID, an option is out of range.
        """
        limit_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        _check_deadline(limit_ms)
        check_max_labels(max_labels)

        def prepare(frame_id: int, picture: bytes) -> Prepared:
            return self._requests.frame(frame_id, picture, camera=camera, deadline_ms=limit_ms, max_labels=max_labels)

        stream = Stream(
            self._heads,
            prepare,
            order=order,
            drop=drop,
            window=window,
            max_waiting=max_waiting,
            give_up_s=give_up_s,
        )
        self._streams.add(stream)
        return stream

    async def _ask(self, head: Head, lifted: Lifted[pb.InferRequest], ends: float) -> Answer:
        """One try, in what is left of the time."""
        left_s = ends - asyncio.get_running_loop().time()
        lifted.message.deadline_ms = max(1, round((left_s - ANSWER_MARGIN_S) * 1000))
        try:
            with self._heads.use(head):
                async with mesh_errors():
                    answer = answer_from_message(await head.infer(lifted, timeout=left_s))
        except MeshError as error:
            # Its own SERVICE_UNAVAILABLE is about a tail: the head is there.
            away = error.reason is Reason.SERVICE_UNAVAILABLE and "grpc_status" in error.metadata
            if away or error.reason is Reason.NOT_READY:
                self._heads.failed(head, error)
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise MeshError(Reason.CANCELLED, "the mesh is closed") from None
            raise
        self._heads.worked(head)
        return answer


async def _wait_to_retry(error: MeshError, ends: float) -> None:
    """Until the next try; raises the error where that would be too late."""
    wait_s = error.retry_after_s or RETRY_WAIT_S
    if asyncio.get_running_loop().time() + wait_s >= ends - ANSWER_MARGIN_S:
        raise error
    await asyncio.sleep(wait_s)


def _discovery(heads: str, consul_address: str, consul_token: str) -> Discovery:
    if bool(heads) == bool(consul_address):
        raise field_error("heads", "name the heads, or the Consul agent that knows them, and not both")
    if heads:
        return listed_heads(heads)
    return ConsulDiscovery(consul_address, token=consul_token or None)


def _check_deadline(deadline_ms: int) -> None:
    if not 1 <= deadline_ms < 1 << 32:
        raise field_error("deadline_ms", f"{deadline_ms} is outside 1 to {(1 << 32) - 1}")
