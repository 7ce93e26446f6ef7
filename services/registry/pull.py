"""How an artefact leaves: pieces of a whole content, from any byte."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from services.registry.content.port import ContentStore
from services.registry.limits import Slots
from services.registry.push import PIECE_BYTES
from splitmesh.blobs.ahead import one_ahead
from splitmesh.client.rate import Rate
from splitmesh.errors import MeshError, Reason, field_error

CHECK_AGAIN_S = 3600.0
"""A content that was found undamaged is not hashed again for so long: half of what a fast download costs the registry."""
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes, where they begin, and how many there are altogether."""

    offset: int
    data: bytes
    size_bytes: int


class Pull:
    """Reads artefacts, at most ``slots`` at once, and the next piece while the last one is sent.

    Args:
        contents: where they are.
        slots: how many at once, with two pieces in memory each.
        bytes_per_s: of all downloads together; 0: as fast as clients read.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        contents: ContentStore,
        slots: Slots,
        *,
        bytes_per_s: float = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._contents = contents
        self._slots = slots
        self._now = now
        self._sound: OrderedDict[str, float] = OrderedDict()
        """When contents were last found undamaged."""
        self.rate = Rate(bytes_per_s) if bytes_per_s else None
        """To be shared with what else leaves."""

    async def pieces(self, sha256: str, offset: int) -> AsyncGenerator[Piece, None]:
        """From byte ``offset`` to the end; one empty piece when nothing is left, so that the size is known.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND; FIELD_INVALID, the offset is beyond the end; QUEUE_FULL; INTERNAL, the content is
                damaged (its last piece does not come then; one read from some byte on, or again soon, is checked by the client
                alone).
        """
        with self._slots.take():
            size_bytes = await self._contents.size_of(sha256)
            if offset > size_bytes:
                raise field_error("offset", f"{offset} is beyond the end of the artefact, which has {size_bytes} bytes")
            async with aclosing(one_ahead(self._read(sha256, offset, size_bytes))) as pieces:
                async for piece in pieces:
                    if self.rate is not None:
                        await self.rate.take(len(piece.data))
                    yield piece

    async def _read(self, sha256: str, offset: int, size_bytes: int) -> AsyncGenerator[Piece, None]:
        digest = hashlib.sha256() if offset == 0 and self._is_due(sha256) else None
        while True:
            data = await self._contents.read(sha256, offset, self._slots.piece_bytes(PIECE_BYTES, self.rate))
            if digest is not None:
                await asyncio.to_thread(digest.update, data)
            end = offset + len(data)
            whole = end >= size_bytes
            if (not data and not whole) or (whole and digest is not None and digest.hexdigest() != sha256):
                await self._contents.doubt(sha256)
                raise MeshError(Reason.INTERNAL, f"the stored artefact {sha256} could not be read as it is")
            if whole and digest is not None:
                self._remember(sha256)
            yield Piece(offset, data, size_bytes)
            offset = end
            if whole:
                return

    def _is_due(self, sha256: str) -> bool:
        last = self._sound.get(sha256)
        return last is None or self._now() - last >= CHECK_AGAIN_S

    def _remember(self, sha256: str) -> None:
        self._sound[sha256] = self._now()
        self._sound.move_to_end(sha256)
        if len(self._sound) > _REMEMBERED:
            self._sound.popitem(last=False)
