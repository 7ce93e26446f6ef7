"""The SDK for programs without an event loop: the same calls as :mod:`splitmesh.client.mesh`, blocking.

One background thread runs the loop; every other thread may call. Knows nothing that the asynchronous SDK does not.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar

from splitmesh.client.answers import Answer, FrameFailure, StreamCounts
from splitmesh.client.heads import STATIC_SERVICE
from splitmesh.client.mesh import Mesh
from splitmesh.client.requests import Frame
from splitmesh.client.stream import Drop, Order, Stream
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.loops import ForgivingLoop

T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = ForgivingLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="splitmesh", daemon=True)
        self._thread.start()
        self._gate = threading.Lock()
        self.closed = False

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result, or what it raises; interrupted by Ctrl-C it is cancelled. The caller's context is the work's."""
        with self._gate:
            if self.closed:
                work.close()
                raise MeshError(Reason.CANCELLED, "the mesh is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return _result(future)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run the last work, end what is left and the thread; a second call does nothing."""
        with self._gate:
            if self.closed:
                last.close()
                return
            self.closed = True
            future = asyncio.run_coroutine_threadsafe(_finish(last), self._loop)
        try:
            _result(future)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise
    except CancelledError:
        raise MeshError(Reason.CANCELLED, "the mesh is closed") from None


async def _finish(last: Coroutine[Any, Any, None]) -> None:
    try:
        await last
    finally:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()


class SyncMesh:
    """:class:`Mesh` for programs without an event loop; any thread may call it."""

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
        """As :class:`Mesh`."""
        self._mesh = Mesh(
            heads,
            consul_address=consul_address,
            consul_token=consul_token,
            service=service,
            model=model,
            deadline_ms=deadline_ms,
            otlp_endpoint=otlp_endpoint,
            max_frame_bytes=max_frame_bytes,
        )
        self._loop = _Loop()

    def __enter__(self) -> SyncMesh:
        """The mesh itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread; calls and streams in progress fail with CANCELLED."""
        self._loop.close(self._mesh.close())

    def infer(
        self,
        frame: Frame | Path,
        *,
        camera: str = "",
        deadline_ms: int | None = None,
        retries: int = 2,
        max_labels: int = 0,
    ) -> Answer:
        """As :meth:`Mesh.infer`."""
        return self._loop.wait(
            self._mesh.infer(frame, camera=camera, deadline_ms=deadline_ms, retries=retries, max_labels=max_labels)
        )

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
    ) -> SyncStream:
        """As :meth:`Mesh.stream`, to be opened by ``with``."""
        stream = self._mesh.stream(
            camera,
            order=order,
            drop=drop,
            max_waiting=max_waiting,
            window=window,
            deadline_ms=deadline_ms,
            give_up_s=give_up_s,
            max_labels=max_labels,
        )
        return SyncStream(self._loop, stream)


class SyncStream:
    """:class:`Stream`, blocking; made by :meth:`SyncMesh.stream`. One thread may send while others read or cancel."""

    def __init__(self, loop: _Loop, stream: Stream) -> None:
        self._loop = loop
        self._stream = stream

    def __enter__(self) -> SyncStream:
        """The stream itself; the head is called from now on."""
        self._loop.wait(self._stream.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """As :meth:`Stream.close`; nothing once the mesh is closed."""
        if not self._loop.closed:
            self._loop.wait(self._stream.close())

    @property
    def counts(self) -> StreamCounts:
        """As :attr:`Stream.counts`."""
        return self._stream.counts

    def send(self, picture: bytes) -> int:
        """As :meth:`Stream.send`."""
        return self._loop.wait(self._stream.send(picture))

    def cancel(self, frame_id: int) -> bool:
        """As :meth:`Stream.cancel`."""

        async def cancel() -> bool:
            return self._stream.cancel(frame_id)

        return self._loop.wait(cancel())

    def end(self) -> None:
        """As :meth:`Stream.end`."""

        async def end() -> None:
            self._stream.end()

        self._loop.wait(end())

    def __iter__(self) -> Iterator[Answer | FrameFailure]:
        """The outcomes, one per frame; several threads may read."""
        while (outcome := self._loop.wait(_following(self._stream))) is not None:
            yield outcome

    def run(self, frames: Iterable[bytes]) -> Iterator[Answer | FrameFailure]:
        """As :meth:`Stream.run`."""
        outcomes = self._stream.run(frames)
        try:
            while (outcome := self._loop.wait(_following(outcomes))) is not None:
                yield outcome
        finally:
            if not self._loop.closed:
                self._loop.wait(outcomes.aclose())


async def _following(outcomes: AsyncIterator[Answer | FrameFailure]) -> Answer | FrameFailure | None:
    return await anext(outcomes, None)
