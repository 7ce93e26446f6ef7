"""Keeps the policies that are being watched and pushes each change to whoever watches.

One entry per watched version, however many heads watch it: outcomes are fetched once (a version never changes), new goals
are computed once, and a watcher that is slow sees the latest policy, not every one between. Nothing is polled and nothing
queues up. Policies that are asked for once are kept too, as long as nothing changes, and few of them. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from services.router.goals import Goals, PolicyOverride
from services.router.locks import Locks
from services.router.policy import Policy, make_policy
from services.router.store import RouterStore
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain

FetchOutcomes = Callable[[str, int], Awaitable[bytes | None]]
"""A version's outcomes; None when it has none. MODEL_NOT_FOUND, VERSION_NOT_FOUND, SERVICE_UNAVAILABLE."""
OverridesOf = Callable[[str, int, Goals], tuple[PolicyOverride, ...]]
"""What drifts have tightened of a version, now, under these goals."""

MAX_ASKED = 64
"""Policies of versions that nobody watches that are kept."""


class _Entry:
    """A watched version."""

    def __init__(self) -> None:
        self.watchers = 0
        self.outcomes: bytes | None = None
        self.policy = Latest[Policy]()
        self.lock = asyncio.Lock()


class PolicyBoard:
    """Policies of the versions that are watched now, and of those last asked for."""

    def __init__(
        self,
        store: RouterStore,
        fetch: FetchOutcomes,
        default: Goals,
        *,
        overrides: OverridesOf = lambda model, version, goals: (),
        max_watchers: int,
        watch_stream_s: float,
        drain: Drain,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._default = default
        self._overrides = overrides
        self._max_watchers = max_watchers
        self._watch_stream_s = watch_stream_s
        self._drain = drain
        self._entries: dict[tuple[str, int], _Entry] = {}
        self._asked: OrderedDict[tuple[str, int], Policy] = OrderedDict()
        self._asking = Locks[tuple[str, int]]()
        self._changes = 0

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

    async def get(self, model: str, version: int) -> Policy:
        """The policy now, watched by somebody or not; raises what the fetch raises."""
        place = (model, version)
        async with self._asking.of(place):
            entry = self._entries.get(place)
            if entry is not None and entry.policy.value is not None:
                return entry.policy.value
            if place in self._asked:
                self._asked.move_to_end(place)
                return self._asked[place]
            changes = self._changes
            outcomes = await self._fetch(model, version)
            policy = await self._made(model, version, outcomes)
            if changes == self._changes:
                self._asked[place] = policy
                while len(self._asked) > MAX_ASKED:
                    self._asked.popitem(last=False)
            return policy

    async def goals_of(self, model: str) -> Goals:
        """Those in force: what was stated, or the router's own."""
        return (await self.stated_goals(model)) or self._default

    async def stated_goals(self, model: str) -> Goals | None:
        """None where nobody stated any."""
        text = await self._store.goals(model)
        return Goals.from_json(text, self._default) if text is not None else None

    async def set_goals(self, model: str, goals: Goals) -> None:
        """State them, and push what follows from them; on disk and published when this returns."""
        await self._store.set_goals(model, goals.to_json())
        for name, version in {*self._entries, *self._asked}:
            if name == model:
                await self.recompute(name, version)

    async def recompute(self, model: str, version: int) -> None:
        """Something that the policy follows from has changed; it is published when this returns, where somebody watches."""
        self._changes += 1
        self._asked.pop((model, version), None)
        entry = self._entries.get((model, version))
        if entry is not None:
            async with entry.lock:
                # Without a policy yet, its first watcher is about to compute one from what holds now.
                if entry.policy.value is not None:
                    await self._compute(entry, model, version)

    async def _compute(self, entry: _Entry, model: str, version: int) -> None:
        policy = await self._made(model, version, entry.outcomes)
        if policy != entry.policy.value:
            entry.policy.set(policy)

    async def _made(self, model: str, version: int, outcomes: bytes | None) -> Policy:
        """Numbered."""
        goals = await self.goals_of(model)
        overrides = self._overrides(model, version, goals)
        # In a thread: with many samples the search takes a noticeable part of a second.
        policy = await asyncio.to_thread(make_policy, model, version, goals, outcomes, overrides)
        return replace(policy, revision=await self._store.revision(model, version, policy.content()))

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
