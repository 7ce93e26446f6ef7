"""How an artefact arrives: the rules of one upload stream, from its first message to its last.

Knows order, offsets and time-outs. Does not know files (``blobs``) or messages on the wire (``servicer``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from services.registry.blobs import BlobFolder, Upload
from services.registry.limits import Slots
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
        blobs: where they go.
        slots: how many at once.
        idle_s: longest wait for a message.
        stream_s: longest life of one stream.
    """

    def __init__(self, blobs: BlobFolder, slots: Slots, *, idle_s: float, stream_s: float) -> None:
        self._blobs = blobs
        self._slots = slots
        self._idle_s = idle_s
        self._stream_s = stream_s

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
            start = await self._next(messages, 0)
            if not isinstance(start, Start):
                raise MeshError(Reason.PROTOCOL_VIOLATION, "an upload begins with a start message")
            async with self._blobs.upload(start.sha256, start.size_bytes) as upload:
                if upload is not None:
                    _require_offset(upload, start.offset)
                    await accept()
                    await self._fill(upload, messages)
            return start

    async def _fill(self, upload: Upload, messages: AsyncIterator[Start | bytes]) -> None:
        try:
            async with asyncio.timeout(self._stream_s):
                while upload.offset < upload.size_bytes:
                    await upload.append(_piece(await self._next(messages, upload.offset), upload))
        except TimeoutError as error:
            raise _too_slow(f"the stream lasted longer than {self._stream_s} s", upload.offset) from error
        await upload.finish()

    async def _next(self, messages: AsyncIterator[Start | bytes], offset: int) -> Start | bytes | None:
        """None at the end of the stream."""
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(messages, None)
        except TimeoutError as error:
            raise _too_slow(f"no message came for {self._idle_s} s", offset) from error


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


def _too_slow(what: str, offset: int) -> MeshError:
    return MeshError(
        Reason.DEADLINE_EXPIRED, f"{what}; what came is kept", metadata={"offset": str(offset)}, retry_after_s=0.0
    )
