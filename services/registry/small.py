"""Small contents, many in a message: what is missing, how batches arrive and how they leave.

Knows limits, order and time-outs. Does not know files (``content``) or messages on the wire (``servicer``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from services.registry.content.disk import to_the_end
from services.registry.content.port import ContentStore
from services.registry.limits import Slots
from services.registry.push import PIECE_BYTES, too_slow
from splitmesh.blobs.ahead import drop, one_ahead
from splitmesh.client.rate import Rate
from splitmesh.errors import MeshError, Reason, field_error

MAX_ASKED = 10_000
"""Most digests in one request."""
MAX_CONTENTS = 256
"""Most contents in one message."""
_READ_AT_ONCE = 8
"""So that a store with a long way to it is not asked for one content after the other."""

Batch = Sequence[tuple[str, bytes]]


class SmallContents:
    """Sends and receives them.

    Args:
        contents: where they are and go.
        push_slots: how many upload streams at once, with two messages in memory each.
        pull_slots: how many download streams at once, with two messages and 8 contents in memory each.
        idle_s: longest wait for a message.
        stream_s: longest life of one upload stream.
        max_message_bytes: most content in one message.
        up: rate that uploads share; None: as fast as they come.
        down: rate that downloads share.
    """

    def __init__(
        self,
        contents: ContentStore,
        push_slots: Slots,
        pull_slots: Slots,
        *,
        idle_s: float,
        stream_s: float,
        max_message_bytes: int = PIECE_BYTES,
        up: Rate | None = None,
        down: Rate | None = None,
    ) -> None:
        self._contents = contents
        self._push_slots = push_slots
        self._pull_slots = pull_slots
        self._idle_s = idle_s
        self._stream_s = stream_s
        self._max_message_bytes = max_message_bytes
        self._up = up
        self._down = down

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        """Those that are not here, in the order asked; FIELD_INVALID."""
        _require_few(sha256s)
        return await self._contents.missing(sha256s)

    async def receive(self, messages: AsyncIterator[Batch]) -> AsyncGenerator[int, None]:
        """The whole stream: how many messages are verified and on disk, each time that one more is.

        The next message is read while the last one is written, and no more. However the stream fails, what was counted
        stays; of a message with a wrong digest nothing is kept.

        Raises:
            MeshError: DIGEST_MISMATCH, FRAME_TOO_LARGE, FIELD_INVALID, PROTOCOL_VIOLATION, STORAGE_FULL, QUEUE_FULL,
                DEADLINE_EXPIRED.
        """
        with self._push_slots.take():
            ends_at = asyncio.get_running_loop().time() + self._stream_s
            reading = asyncio.create_task(_next(messages))
            putting: asyncio.Task[None] | None = None
            done = 0
            try:
                while True:
                    if putting is None and reading.done():
                        batch = reading.result()
                        if batch is None:
                            return
                        if done and asyncio.get_running_loop().time() >= ends_at:
                            raise self._too_long()
                        await self._admit(batch)
                        putting = asyncio.create_task(self._contents.put(batch))
                        reading = asyncio.create_task(_next(messages))
                    await self._either(reading, putting, ends_at)
                    if putting is not None and putting.done():
                        putting.result()
                        putting, done = None, done + 1
                        yield done
            finally:
                await drop(reading)
                if putting is not None:
                    await to_the_end(asyncio.wait([putting]))
                    putting.exception()

    async def pieces(self, sha256s: Sequence[str]) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        """Contents in the order asked for, as few messages as the limits allow; the next one is read while one is sent.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND, FRAME_TOO_LARGE, FIELD_INVALID, QUEUE_FULL; INTERNAL, a content is damaged.
        """
        _require_few(sha256s)
        with self._pull_slots.take():
            async with aclosing(one_ahead(self._batches(sha256s))) as batches:
                async for batch in batches:
                    if self._down is not None:
                        await self._down.take(_bytes_of(batch))
                    yield batch

    async def _batches(self, sha256s: Sequence[str]) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        batch: list[tuple[str, bytes]] = []
        size_bytes = 0
        for first in range(0, len(sha256s), _READ_AT_ONCE):
            most = self._pull_slots.piece_bytes(self._max_message_bytes, self._down)
            some = sha256s[first : first + _READ_AT_ONCE]
            for sha256, data in zip(some, await self._read_all(some), strict=True):
                if batch and (len(batch) == MAX_CONTENTS or size_bytes + len(data) > most):
                    yield batch
                    batch, size_bytes = [], 0
                batch.append((sha256, data))
                size_bytes += len(data)
        if batch:
            yield batch

    async def _read_all(self, sha256s: Sequence[str]) -> list[bytes]:
        tasks = [asyncio.create_task(self._read(sha256)) for sha256 in sha256s]
        try:
            return [await task for task in tasks]
        finally:
            for task in tasks:
                await drop(task)

    async def _read(self, sha256: str) -> bytes:
        data = await self._contents.read(sha256, 0, self._max_message_bytes + 1)
        if len(data) > self._max_message_bytes:
            raise _too_large(
                f"the content {sha256} is not small:", self._max_message_bytes, "bytes are; pull it as an artefact"
            )
        return data

    async def _either(
        self, reading: asyncio.Task[Batch | None], putting: asyncio.Task[None] | None, ends_at: float
    ) -> None:
        """Returns when a message is there to be read and nothing is put, or when a put is over."""
        waiting: list[asyncio.Task[Any]] = [task for task in (reading, putting) if task is not None and not task.done()]
        # A sender may wait for what is put: its silence counts from when that is done, and a put is never given up.
        left_s = max(0.0, ends_at - asyncio.get_running_loop().time())
        timeout = min(self._idle_s, left_s) if putting is None else None
        if waiting and not (await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED))[0]:
            raise self._too_long() if left_s <= self._idle_s else too_slow(f"no message came for {self._idle_s} s", 0)

    def _too_long(self) -> MeshError:
        return too_slow(f"the stream lasted longer than {self._stream_s} s", 0)

    async def _admit(self, batch: Batch) -> None:
        if not batch:
            raise MeshError(Reason.PROTOCOL_VIOLATION, "every message carries contents")
        if len(batch) > MAX_CONTENTS:
            raise _too_large(f"a message carries {len(batch)} contents,", MAX_CONTENTS, "are accepted")
        if (size_bytes := _bytes_of(batch)) > self._max_message_bytes:
            raise _too_large(
                f"a message carries {size_bytes} bytes of content,", self._max_message_bytes, "are accepted"
            )
        if self._up is not None:
            await self._up.take(size_bytes)


async def _next(messages: AsyncIterator[Batch]) -> Batch | None:
    """None at the end of the stream."""
    return await anext(messages, None)


def _bytes_of(batch: Batch) -> int:
    return sum(len(data) for _, data in batch)


def _require_few(sha256s: Sequence[str]) -> None:
    if len(sha256s) > MAX_ASKED:
        raise field_error("sha256s", f"has {len(sha256s)} entries, at most {MAX_ASKED} are answered at once")


def _too_large(what: str, limit: int, then: str) -> MeshError:
    return MeshError(Reason.FRAME_TOO_LARGE, f"{what} at most {limit} {then}", metadata={"limit": str(limit)})
