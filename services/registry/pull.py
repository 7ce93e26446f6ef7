"""How an artefact leaves: pieces of a whole content, from any byte."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from services.registry.blobs import BlobFolder
from services.registry.limits import Slots
from services.registry.push import PIECE_BYTES
from splitmesh.errors import MeshError, Reason, field_error


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes, where they begin, and how many there are altogether."""

    offset: int
    data: bytes
    size_bytes: int


class Pull:
    """Reads artefacts, at most ``slots`` at once."""

    def __init__(self, blobs: BlobFolder, slots: Slots) -> None:
        self._blobs = blobs
        self._slots = slots

    async def pieces(self, sha256: str, offset: int) -> AsyncGenerator[Piece, None]:
        """From byte ``offset`` to the end; one empty piece when nothing is left, so that the size is known.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND; FIELD_INVALID, the offset is beyond the end; QUEUE_FULL.
        """
        with self._slots.take():
            size_bytes = await self._blobs.size_of(sha256)
            if offset > size_bytes:
                raise field_error("offset", f"{offset} is beyond the end of the artefact, which has {size_bytes} bytes")
            while True:
                data = await self._blobs.read(sha256, offset, PIECE_BYTES)
                if not data and offset < size_bytes:
                    raise MeshError(Reason.INTERNAL, f"the stored artefact {sha256} has become shorter")
                yield Piece(offset, data, size_bytes)
                offset += len(data)
                if offset >= size_bytes:
                    return
