"""What is in a bucket: single objects asked for, folders listed, and which of the two costs less. Changes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Any

from services.registry.content.port import is_digest
from services.registry.content.remote import CALLS, Remote
from services.registry.content.shelf import Shelved

_ASKED_AT_ONCE = CALLS // 2
"""Of one caller: half of what calls may be at once."""
_LISTED_AT_ONCE = 4
_FOLDERS = 256
_CALL_COSTS, _ENTRY_COSTS = 2.0, 1 / 20
"""Of a listing and of each object in it, in work and in money, where asking for one object costs 1."""
_FOLDER = re.compile(r"[0-9a-f]{2}")


class BucketListing:
    """See the module.

    Args:
        remote: where the objects are.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._objects: int | None = None
        """As many as the last whole listing found and came or went since; None: there was none yet."""

    def path(self, sha256: str) -> str:
        """Of the object that a content is."""
        return f"{self._remote.root}/{sha256[:2]}/{sha256}"

    def size(self, sha256: str) -> int | None:
        """Bytes of an object, or None; blocks."""
        try:
            return int(self._remote.files.info(self.path(sha256))["size"])
        except FileNotFoundError:
            return None

    def ls(self, folder: str) -> dict[str, Any]:
        """What is in a folder of ours, by path; blocks."""
        try:
            found = self._remote.files.ls(f"{self._remote.root}/{folder}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        return {str(info["name"]).rstrip("/"): info for info in found}

    def count(self, more: int) -> None:
        """So many objects have come, or gone."""
        if self._objects is not None:
            self._objects += more

    async def sizes(self, sha256s: Sequence[str]) -> dict[str, int]:
        """Those that are there, with their bytes; asked for one by one, or by listing the folders where they would be when
        that costs less: many of them, among not many more objects."""
        folders = {sha256[:2] for sha256 in sha256s}
        if self._cost_of(len(folders)) < len(sha256s):
            wanted = frozenset(sha256s)
            found = self._listed(folders & await self._folders(), _ASKED_AT_ONCE, wanted)
            return {one.sha256: one.size_bytes async for one in found}
        works = [partial(self.size, sha256) for sha256 in sha256s]
        sizes = await self._remote.each(works, _ASKED_AT_ONCE, self._remote.ask)
        return {sha: size_bytes for sha, size_bytes in zip(sha256s, sizes, strict=True) if size_bytes is not None}

    async def everything(self) -> AsyncIterator[Shelved]:
        """Folder by folder, a few at once: a sixty-fourth of it is in memory."""
        objects = 0
        async for one in self._listed(await self._folders(), _LISTED_AT_ONCE):
            objects += 1
            yield one
        self._objects = objects

    def _cost_of(self, folders: int) -> float:
        """Of listing so many, and which there are; without end where nobody knows how much is in them."""
        if self._objects is None:
            return math.inf
        return (1 + folders) * _CALL_COSTS + self._objects * folders / _FOLDERS * _ENTRY_COSTS

    async def _folders(self) -> set[str]:
        """Those that there are, such as ``aa``."""
        entries = await self._remote.ask(lambda: self.ls(""))
        names = {path.rpartition("/")[2] for path, info in entries.items() if info["type"] == "directory"}
        return {name for name in names if _FOLDER.fullmatch(name)}

    async def _listed(
        self, folders: Collection[str], at_once: int, wanted: frozenset[str] | None = None
    ) -> AsyncIterator[Shelved]:
        """Of these folders; None: everything."""
        ordered = sorted(folders)
        for first in range(0, len(ordered), at_once):
            some = [partial(self._under, folder, wanted) for folder in ordered[first : first + at_once]]
            for found in await self._remote.each(some, at_once, self._remote.ask):
                for one in found:
                    yield one

    def _under(self, folder: str, wanted: frozenset[str] | None) -> list[Shelved]:
        named = ((path.rpartition("/")[2], info) for path, info in self.ls(folder).items())
        return [
            Shelved(name, int(info["size"]))
            for name, info in named
            if (is_digest(name) if wanted is None else name in wanted)
            and name.startswith(folder)
            and info["type"] != "directory"
        ]
