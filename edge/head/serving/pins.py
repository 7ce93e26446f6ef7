"""What of a model's versions stays in the cache however full it is, so that going back, or on after a restart, needs no link."""

from __future__ import annotations

from collections.abc import Sequence

from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo

ACTIVE, PREVIOUS, CANDIDATE, WANTED, COMPARED = "_active", "_previous", "_candidate", "_wanted", "_compared"
"""Names of notes that no alias can have. What is on its way is not kept in the place of what answers until it does."""
ROLES = (ACTIVE, PREVIOUS, CANDIDATE, WANTED, COMPARED)
MOST_PARTS = 16
"""Versions whose parts one version may need: itself and its alternatives."""


class Pins:
    """Of one model, which follows ``alias`` where nothing else is told."""

    def __init__(self, model: str, alias: str, cache: ModelCache) -> None:
        self._model = model
        self._alias = alias
        self._cache = cache
        self._kept: dict[str, tuple[int, ...]] = {}

    async def keep(self, role: str, versions: Sequence[VersionInfo]) -> None:
        """These for the role, in the place of those before; MeshError STORAGE_FULL."""
        numbers = tuple(one.version for one in versions[:MOST_PARTS])
        if self._kept.get(role) == numbers:
            return
        for number, version in enumerate(versions[:MOST_PARTS]):
            await self._cache.remember(version, self.name(role, number))
        await self.forget(role, since=len(versions))
        self._kept[role] = numbers

    async def forget_all(self) -> None:
        """None for any role."""
        for role in ROLES:
            await self.forget(role)

    async def forget(self, role: str, *, since: int = 0) -> None:
        """None for the role any more, but the first so many."""
        self._kept.pop(role, None)
        for number in range(since, MOST_PARTS):
            await self._cache.forget(self.name(role, number))

    async def find(self, version: int) -> VersionInfo | None:
        """A version that is known on this disk: kept for some role, what the alias stood for, or asked for by number before."""
        for suffix in (*ROLES, self._alias, str(version)):
            known = await self._cache.recall(f"{self._model}@{suffix}")
            if known is not None and known.version == version:
                return known
        return None

    def name(self, role: str, number: int = 0) -> str:
        """Of a note."""
        return f"{self._model}@{role}" + (f".{number}" if number else "")
