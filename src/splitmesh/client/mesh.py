"""The SDK of camera gateways: pictures in, answers out.

``async with Mesh("mec-host:7010") as mesh: answer = await mesh.infer(jpeg)``. Connection, deadlines, retries, resending
and traces are inside. :class:`SyncMesh` is the same for programs without an event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from opentelemetry.trace import Span as OtelSpan

from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.client.answers import Answer, FrameFailure, answer_from_message
from splitmesh.client.frames import RESEND, CameraStream
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors, open_channel
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import AttrValue, Telemetry, traceparent_of
from splitmesh.kernel.tensors import tensor_to_message
from splitmesh.tensor.spec import Array

T = TypeVar("T")

Frame = bytes | Array | Mapping[str, Array]
"""A picture, an input, or several inputs by name."""

ANSWER_MARGIN_S = 0.5
"""How much longer than the frame's deadline the caller waits: the head's own answer or error should come first."""
RETRY_WAIT_S = 0.2
LONGEST_RETRY_WAIT_S = 5.0
"""Whatever a peer asks for."""


class Mesh:
    """A connection to one head."""

    def __init__(
        self,
        head: str,
        *,
        model: str = "",
        deadline_ms: int = 1000,
        otlp_endpoint: str = "",
        max_frame_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        """Nothing is connected before the first call.

        Args:
            head: address of the edge head, ``host:port``.
            model: which model to ask; empty means the head's first.
            deadline_ms: time within which an answer is useful, measured at the head, milliseconds.
            otlp_endpoint: where the gateway's own spans go, ``host:port``; empty: nowhere (the head's still go).
            max_frame_bytes: larger frames are refused here, before they are sent.
        """
        self._channel = open_channel(head, max_frame_bytes=max_frame_bytes)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._model = model
        self._deadline_ms = deadline_ms
        self._max_frame_bytes = max_frame_bytes
        self._telemetry = Telemetry("gateway", otlp_endpoint=otlp_endpoint)

    async def __aenter__(self) -> Mesh:
        """The mesh itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in progress fail."""
        await self._channel.close()
        await asyncio.to_thread(self._telemetry.shutdown)

    async def infer(
        self, frame: Frame | Path, *, camera: str = "", deadline_ms: int | None = None, retries: int = 2
    ) -> Answer:
        """Answer one picture (encoded bytes, or a file), one preprocessed input ``[1, ...]``, or, for a model that takes
        several, all of its inputs by name.

        Raises MeshError with the reason. Answering a frame twice is harmless, so a head that is away is tried again
        ``retries`` times.
        """
        content = await asyncio.to_thread(frame.read_bytes) if isinstance(frame, Path) else frame
        request, span = self._request(0, content, camera, deadline_ms)
        timeout_s = request.deadline_ms / 1000 + ANSWER_MARGIN_S
        with self._telemetry.use(span):
            for attempt in range(retries + 1):
                try:
                    async with mesh_errors():
                        return answer_from_message(await self._stub.Infer(request, timeout=timeout_s))
                except MeshError as error:
                    if error.reason not in RESEND or attempt == retries:
                        raise
                    await asyncio.sleep(min(error.retry_after_s or RETRY_WAIT_S, LONGEST_RETRY_WAIT_S))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def stream(
        self,
        frames: AsyncIterable[bytes] | Iterable[bytes],
        *,
        camera: str = "",
        deadline_ms: int | None = None,
        window: int = 16,
        give_up_s: float = 30.0,
    ) -> AsyncIterator[Answer | FrameFailure]:
        """Answer encoded pictures as they come; one outcome per frame, as soon as it is ready.

        Frames are numbered from 0 in the order of the source. Two clocks: ``deadline_ms`` is the head's, from each arrival
        there; ``give_up_s`` is ours, from the source to the outcome: while the head is away frames wait and are sent again
        so long, then become a FrameFailure. At most ``window`` frames are under way.
        """
        stream = CameraStream(
            self._stub,
            lambda number, content: self._request(number, content, camera, deadline_ms),
            window=window,
            give_up_s=give_up_s,
        )
        async with aclosing(stream.run(frames)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    def _request(
        self, frame_id: int, content: Frame, camera: str, deadline_ms: int | None
    ) -> tuple[pb.InferRequest, OtelSpan]:
        size = _size(content)
        if size > self._max_frame_bytes:
            raise MeshError(Reason.FRAME_TOO_LARGE, f"the frame has {size} bytes; at most {self._max_frame_bytes}")
        attributes: dict[Attr, AttrValue] = {Attr.CAMERA_ID: camera, Attr.FRAME_ID: frame_id, Attr.INPUT_BYTES: size}
        span = self._telemetry.start(Span.GATEWAY_FRAME, attributes=attributes)
        request = pb.InferRequest(
            model=self._model,
            camera_id=camera,
            frame_id=frame_id,
            deadline_ms=deadline_ms or self._deadline_ms,
            traceparent=traceparent_of(span),
        )
        if isinstance(content, np.ndarray):
            request.tensor.CopyFrom(tensor_to_message("", content))
        elif isinstance(content, bytes):
            request.image = content
        else:
            request.tensors.tensors.extend(tensor_to_message(name, array) for name, array in content.items())
        return request, span


def _size(content: Frame) -> int:
    match content:
        case bytes():
            return len(content)
        case np.ndarray():
            return content.nbytes
        case _:
            return sum(array.nbytes for array in content.values())


class SyncMesh:
    """:class:`Mesh` for programs without an event loop: the same calls, blocking. One background thread."""

    def __init__(self, head: str, **options: Any) -> None:
        """Takes what :class:`Mesh` takes."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="splitmesh", daemon=True)
        self._thread.start()

        async def make() -> Mesh:
            return Mesh(head, **options)

        self._mesh = self._wait(make())

    def __enter__(self) -> SyncMesh:
        """The mesh itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread."""
        if self._loop.is_closed():
            return
        self._wait(self._mesh.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def infer(self, frame: Frame | Path, **options: Any) -> Answer:
        """As :meth:`Mesh.infer`."""
        return self._wait(self._mesh.infer(frame, **options))

    def stream(self, frames: Iterable[bytes], **options: Any) -> Iterator[Answer | FrameFailure]:
        """As :meth:`Mesh.stream`."""
        outcomes = self._mesh.stream(frames, **options)

        async def following() -> Answer | FrameFailure | None:
            return await anext(outcomes, None)

        async def close() -> None:
            await outcomes.aclose()  # type: ignore[attr-defined]

        try:
            while (outcome := self._wait(following())) is not None:
                yield outcome
        finally:
            self._wait(close())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
