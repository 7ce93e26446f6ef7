"""Where whole contents are: what a place must do so that :mod:`staged` can make a content store of it.

``folder_shelf`` is a folder of this machine, ``bucket_shelf`` an object store. A shelf knows nothing of uploads, quotas or ages;
every digest that it is given is one. Whatever it shows is whole, verified and durable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Room = Callable[[int], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Shelved:
    """One whole content."""

    sha256: str
    size_bytes: int


class Shelf(Protocol):
    """One writer at a time per content, and one :meth:`put`, :meth:`remove` or :meth:`set_aside` at a time at all: the caller
    sees to it."""

    @property
    def shown(self) -> str:
        """Where it is, as anybody may read it."""

    async def start(self) -> None:
        """Ready when it returns; SERVICE_UNAVAILABLE or NOT_READY."""

    async def stop(self) -> None:
        """Waits for work in progress."""

    async def owner(self) -> str | None:
        """Whose these contents are, as :meth:`belong` left it; None: nobody said."""

    async def belong(self, mark: str) -> None:
        """Leaves a durable mark of whose these contents are, one line."""

    async def size(self, sha256: str) -> int | None:
        """Bytes of a whole content; None: there is none."""

    async def sizes(self, sha256s: Sequence[str]) -> dict[str, int]:
        """Those that are whole here, with their bytes. A caller who is cancelled waits only for what is in progress."""

    async def stamp(self, sha256: str) -> str | None:
        """Another one whenever a whole content has been written anew; None: there is none."""

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        """Fewer than ``length`` bytes only at the end; ARTIFACT_NOT_FOUND."""

    async def take(self, part: Path, sha256: str, size_bytes: int) -> int:
        """Makes a verified, durable file the content, and the file go away; bytes more kept than before. Where it fails
        the file is still there."""

    async def put(self, contents: Sequence[tuple[str, bytes]]) -> int:
        """Keeps verified contents, none of them twice in the batch; bytes more kept than before."""

    async def remove(self, sha256: str) -> int | None:
        """Bytes freed; None: it was not there."""

    async def set_aside(self, sha256: str) -> int:
        """Takes a damaged content out of view, for people to look at (:mod:`damaged` bounds how much); bytes that it had, 0 when
        it is gone."""

    def listing(self) -> AsyncIterator[Shelved]:
        """Every whole content, in no order; what is no content is passed over."""

    def local(self, sha256: str, room: Room) -> AbstractAsyncContextManager[Path]:
        """As a file of this machine while the block lasts; ARTIFACT_NOT_FOUND.

        Args:
            sha256: of the content.
            room: entered with the bytes of a copy while it is made, where that is needed; its errors.
        """
