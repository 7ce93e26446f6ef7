"""How an artefact arrives: the rules of one upload stream, from its first message to its last.

Knows order, offsets and time-outs. Does not know files (``content``) or messages on the wire (``servicer``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from services.registry.content.disk import to_the_end
from services.registry.content.port import ContentStore, Upload
from services.registry.limits import Slots
from splitmesh.client.rate import Rate
from splitmesh.errors import MeshError, Reason

PIECE_BYTES = 1024 * 1024
"""Most content in one message, up or down."""


@dataclass(frozen=True, slots=True)
class Start:
    """The first message of an upload."""

    sha256: str
    size_bytes: int
    offset: int


class Push:
    """Receives uploads.

    Args:
        contents: where they go.
        slots: how many at once.
        idle_s: longest wait for a message.
        stream_s: longest life of one stream.
        bytes_per_s: of all uploads together; 0: as fast as they come. What is too fast is not read.
    """

    def __init__(
        self, contents: ContentStore, slots: Slots, *, idle_s: float, stream_s: float, bytes_per_s: float = 0
    ) -> None:
        self._contents = contents
        self._slots = slots
        self._idle_s = idle_s
        self._stream_s = stream_s
        self.rate = Rate(bytes_per_s) if bytes_per_s else None
        """To be shared with what else arrives."""

    async def receive(self, messages: AsyncIterator[Start | bytes], accept: Callable[[], Awaitable[None]]) -> Start:
        """The whole stream; returns what it announced once that is whole, verified and on disk.

        However it fails, the bytes that came are kept (unless their digest was wrong), and errors about them carry the
        ``offset`` to resume from. ``accept`` is called when content is wanted, before any is taken, so that a sender can
        wait for it and see refusals as they are.

        Raises:
            MeshError: PROTOCOL_VIOLATION, UPLOAD_OFFSET_MISMATCH, UPLOAD_TRUNCATED, DIGEST_MISMATCH, FRAME_TOO_LARGE,
                STORAGE_FULL, QUEUE_FULL, DEADLINE_EXPIRED.
        """
        with self._slots.take():
            try:
                start = await self._next(messages)
            except TimeoutError as error:
                raise self._too_slow(0) from error
            if not isinstance(start, Start):
                raise MeshError(Reason.PROTOCOL_VIOLATION, "an upload begins with a start message")
            async with self._contents.upload(start.sha256, start.size_bytes) as upload:
                if upload is not None:
                    _require_offset(upload, start.offset)
                    await accept()
                    await self._fill(upload, messages)
            return start

    async def _fill(self, upload: Upload, messages: AsyncIterator[Start | bytes]) -> None:
        writing = _Writing(upload)
        try:
            async with asyncio.timeout(self._stream_s) as stream:
                while writing.offset < upload.size_bytes:
                    message = await self._next(messages)
                    await writing.done()
                    writing.begin(piece := _piece(message, upload))
                    if self.rate is not None:
                        await self.rate.take(len(piece))
        except TimeoutError as error:
            await writing.done()
            if stream.expired():
                raise too_slow(f"the stream lasted longer than {self._stream_s} s", upload.offset) from error
            raise self._too_slow(upload.offset) from error
        finally:
            await writing.settle()
        await writing.done()
        await upload.finish()

    async def _next(self, messages: AsyncIterator[Start | bytes]) -> Start | bytes | None:
        """None at the end of the stream; TimeoutError."""
        async with asyncio.timeout(self._idle_s):
            return await anext(messages, None)

    def _too_slow(self, offset: int) -> MeshError:
        return too_slow(f"no message came for {self._idle_s} s", offset)


class _Writing:
    """The last piece, on its way to the disk while the next one arrives."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._task: asyncio.Task[None] | None = None
        self.offset = upload.offset
        """Bytes on disk once the last piece is."""

    def begin(self, piece: bytes) -> None:
        """The one before is done."""
        self.offset += len(piece)
        self._task = asyncio.create_task(self._upload.append(piece))

    async def done(self) -> None:
        """Returns when the last piece is written; raises what went wrong with it."""
        await self.settle()
        if self._task is not None:
            task, self._task = self._task, None
            task.result()

    async def settle(self) -> None:
        """Nothing is written any more when it returns."""
        if self._task is not None:
            await to_the_end(asyncio.wait([self._task]))
            if not self._task.cancelled():
                self._task.exception()


def _require_offset(upload: Upload, offset: int) -> None:
    if offset != upload.offset:
        raise MeshError(
            Reason.UPLOAD_OFFSET_MISMATCH,
            f"the upload stands at byte {upload.offset}, not {offset}",
            metadata={"offset": str(upload.offset)},
        )


def _piece(message: Start | bytes | None, upload: Upload) -> bytes:
    if message is None:
        raise MeshError(
            Reason.UPLOAD_TRUNCATED,
            f"the stream ended at byte {upload.offset} of {upload.size_bytes}",
            metadata={"offset": str(upload.offset)},
            retry_after_s=0.0,
        )
    if isinstance(message, Start) or not message:
        raise MeshError(Reason.PROTOCOL_VIOLATION, "after the start message every message carries data")
    if len(message) > PIECE_BYTES:
        raise MeshError(
            Reason.FRAME_TOO_LARGE,
            f"a message carries {len(message)} bytes of content, at most {PIECE_BYTES} are accepted",
            metadata={"limit_bytes": str(PIECE_BYTES)},
        )
    return message


def too_slow(what: str, offset: int) -> MeshError:
    """A deadline of a stream is over."""
    return MeshError(
        Reason.DEADLINE_EXPIRED, f"{what}; what came is kept", metadata={"offset": str(offset)}, retry_after_s=0.0
    )
