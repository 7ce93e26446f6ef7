"""Keeps the policies that are being watched and pushes each change to whoever watches.

One entry per watched version, however many heads watch it: outcomes are fetched once (a version never changes), a new
tolerance is computed once, and a watcher that is slow sees the latest policy, not every one between. Nothing is polled
and nothing queues up. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from services.router.policy import Policy, make_policy
from services.router.store import RouterStore, Tolerance
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain

FetchOutcomes = Callable[[str, int], Awaitable[bytes | None]]
"""A version's outcomes; None when it has none. MODEL_NOT_FOUND, VERSION_NOT_FOUND, SERVICE_UNAVAILABLE."""


class _Entry:
    """A watched version."""

    def __init__(self) -> None:
        self.watchers = 0
        self.outcomes: bytes | None = None
        self.policy = Latest[Policy]()
        self.lock = asyncio.Lock()


class PolicyBoard:
    """Policies of the versions that are watched now."""

    def __init__(
        self,
        store: RouterStore,
        fetch: FetchOutcomes,
        default: Tolerance,
        *,
        max_watchers: int,
        watch_stream_s: float,
        drain: Drain,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._default = default
        self._max_watchers = max_watchers
        self._watch_stream_s = watch_stream_s
        self._drain = drain
        self._entries: dict[tuple[str, int], _Entry] = {}

    async def watch(self, model: str, version: int) -> AsyncGenerator[Policy]:
        """The policy now, then each change, until the stream's longest life is over.

        Raises what the fetch raises, QUEUE_FULL when too many watch, NOT_READY when the server stops.
        """
        async with self._entry(model, version) as entry:
            async with entry.lock:
                if entry.policy.value is None:
                    entry.outcomes = await self._fetch(model, version)
                    await self._compute(entry, model, version)
            async with aclosing(entry.policy.follow(self._drain, longest_s=self._watch_stream_s)) as policies:
                async for policy in policies:
                    yield policy

    async def set_tolerance(self, model: str, tolerance: Tolerance) -> None:
        """State it, and push what follows from it; on disk and published when this returns."""
        await self._store.set_tolerance(model, tolerance)
        for (name, version), entry in list(self._entries.items()):
            if name == model:
                async with entry.lock:
                    # Without a policy yet, its first watcher is about to compute one with the tolerance just stored.
                    if entry.policy.value is not None:
                        await self._compute(entry, model, version)

    async def _compute(self, entry: _Entry, model: str, version: int) -> None:
        tolerance = await self._store.tolerance(model) or self._default
        # In a thread: with many samples the search takes a noticeable part of a second.
        policy = await asyncio.to_thread(make_policy, model, version, tolerance, entry.outcomes)
        policy = replace(policy, revision=await self._store.revision(model, version, policy.content()))
        if policy != entry.policy.value:
            entry.policy.set(policy)

    @asynccontextmanager
    async def _entry(self, model: str, version: int) -> AsyncIterator[_Entry]:
        if sum(entry.watchers for entry in self._entries.values()) >= self._max_watchers:
            raise MeshError(
                Reason.QUEUE_FULL, f"{self._max_watchers} heads watch already; no more are taken", retry_after_s=5.0
            )
        entry = self._entries.setdefault((model, version), _Entry())
        entry.watchers += 1
        try:
            yield entry
        finally:
            entry.watchers -= 1
            if entry.watchers == 0:
                del self._entries[model, version]
