"""Which version an alias stands for, for clients that name none: asked once, then watched.

A version that an alias moves to is verified and loaded before it is used; until then, and when it is refused or cannot be
loaded, the one before goes on answering. What was heard last is kept on disk, so that a tail that restarts without a registry
still knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.transfer import is_passing
from splitmesh.client.trust import is_refusal
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

RETRY_S = 1.0
PAUSE_S = 30.0
"""Before another try at what only an operator can mend."""

Key = tuple[str, str]
"""Model and alias."""


@dataclass(slots=True)
class _Alias:
    current: VersionInfo
    wanted: VersionInfo
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Followed:
    """The aliases that clients asked for.

    Args:
        registry: knows where they point.
        cache: remembers it.
        load: makes a version ready to answer.
        most: aliases followed at once; above it the one unused for longest is let go, and asked for anew when needed.
    """

    def __init__(
        self,
        registry: RegistryClient,
        cache: ModelCache,
        load: Callable[[VersionInfo], Awaitable[None]],
        *,
        most: int,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._load = load
        self._most = most
        self._aliases: OrderedDict[Key, _Alias] = OrderedDict()
        self._asking: dict[Key, asyncio.Future[VersionInfo]] = {}

    async def start(self) -> None:
        """Nothing is followed before a client asks."""

    async def stop(self) -> None:
        """Follow nothing any more."""
        asking = list(self._asking.values())
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for key in list(self._aliases):
            await self._drop(key)

    async def version(self, model: str, alias: str) -> VersionInfo:
        """What the alias stands for. MODEL_NOT_FOUND, ALIAS_NOT_FOUND, or what kept the registry from answering."""
        key = (model, alias)
        known = self._aliases.get(key)
        if known is not None:
            self._aliases.move_to_end(key)
            return known.current
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.ensure_future(self._begin(model, alias))
            asking.add_done_callback(lambda done: self._asked(key, done))
        # Several may wait for the one answer: one that gives up must not take it from the others.
        return await asyncio.shield(asking)

    async def forget(self, model: str) -> bool:
        """Follow no alias of the model any more; whether one was."""
        keys = [key for key in self._aliases if key[0] == model]
        for key in keys:
            await self._drop(key)
        return bool(keys)

    def models(self) -> dict[str, VersionInfo]:
        """What is followed, by model."""
        return {model: alias.current for (model, _), alias in self._aliases.items()}

    def _asked(self, key: Key, done: asyncio.Future[VersionInfo]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # seen, also when nobody waits any more

    async def _begin(self, model: str, alias: str) -> VersionInfo:
        note = f"{model}@{alias}"
        try:
            version = await self._registry.get_version(model, alias=alias)
            await self._registry.verify(version)
            await self._remember(version, note)
        except MeshError as error:
            is_known = is_passing(error) or is_refusal(error) or error.reason is Reason.PROTOCOL_VIOLATION
            recalled = await self._cache.recall(note) if is_known else None
            if recalled is None:
                raise
            log.warning("%s: going on with version %d: %s", note, recalled.version, error)
            version = recalled
        while len(self._aliases) >= self._most:
            await self._drop(next(iter(self._aliases)))
        entry = _Alias(version, version)
        self._aliases[model, alias] = entry
        entry.tasks = [
            asyncio.create_task(self._watch(model, alias, entry)),
            asyncio.create_task(self._apply(note, entry)),
        ]
        return version

    async def _watch(self, model: str, alias: str, entry: _Alias) -> None:
        while True:
            try:
                async for version in self._registry.watch_alias(model, alias):
                    if version is not None:
                        entry.wanted = version
                        entry.moved.set()
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.error("%s@%s cannot be followed: %s", model, alias, error, exc_info=unforeseen)
            await asyncio.sleep(PAUSE_S)

    async def _apply(self, note: str, entry: _Alias) -> None:
        while True:
            await entry.moved.wait()
            entry.moved.clear()
            wanted = entry.wanted
            if wanted.version == entry.current.version:
                continue
            try:
                await self._registry.verify(wanted)
                await self._load(wanted)
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.warning("%s version %d cannot be used yet: %s", note, wanted.version, error, exc_info=unforeseen)
                pause_s = PAUSE_S if is_refusal(error) else RETRY_S
                asyncio.get_running_loop().call_later(pause_s, entry.moved.set)
                continue
            entry.current = wanted
            log.info("%s is version %d now", note, wanted.version)
            await self._remember(wanted, note)

    async def _remember(self, version: VersionInfo, note: str) -> None:
        try:
            await self._cache.remember(version, note)
        except MeshError as error:
            log.warning("%s: a restart without a registry would not know version %d: %s", note, version.version, error)

    async def _drop(self, key: Key) -> None:
        entry = self._aliases.pop(key, None)
        if entry is None:  # somebody else was quicker
            return
        for task in entry.tasks:
            task.cancel()
        await asyncio.gather(*entry.tasks, return_exceptions=True)
