"""Following aliases over outages: every move once, in order, from the last sequence that was told.

Each stream tells as well where the aliases point now. That is no news as long as the registry goes on; one that was set back to
a backup has another history, and is followed from there.

Knows the stream WatchModel. Does not know what the follower does with a move.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Set
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.artifacts import SERVICE
from splitmesh.client.registry_calls import RegistryCalls
from splitmesh.client.registry_messages import change_from_message
from splitmesh.client.registry_trust import TrustPort
from splitmesh.client.registry_values import AliasChange, AliasMove, VersionInfo
from splitmesh.client.transfer import Patience
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

MAX_MISSED = 100_000
"""Moves that a watch makes up for at once, when it was broken before the registry had told it any sequence."""
FORGOTTEN = "the registry knows of no such alias any more"
_FINAL = frozenset({Reason.FIELD_INVALID, Reason.UNIMPLEMENTED, Reason.PROTOCOL_VIOLATION})


class Watch:
    """One watch of a model's alias, or of all its aliases, over as many streams as it takes.

    Args:
        channels: find the registry.
        trust: hears of new keyrings.
        model: by name.
        alias: by name; empty: all.
        after: sequence of the last move that is known; 0: none.
    """

    def __init__(self, channels: Channels, trust: TrustPort | None, model: str, alias: str, after: int) -> None:
        self._channels = channels
        self._calls = RegistryCalls(channels)
        self._trust = trust
        self._model = model
        self._alias = alias
        self._told = after
        self._begun = False
        self._known: dict[str, AliasMove] = {}
        self._keyring_version = 0

    async def changes(self) -> AsyncGenerator[AliasChange, None]:
        """See :meth:`splitmesh.client.registry.RegistryClient.watch_model`."""
        patience = Patience(tries=None)
        while True:
            try:
                async with aclosing(self._stream()) as stream:
                    async for change in stream:
                        patience.renewed()
                        if change is not None:
                            yield change
                raise MeshError(Reason.SERVICE_UNAVAILABLE, "the registry ended the watch")
            except MeshError as error:
                if error.reason in _FINAL:
                    raise
                await patience.after(error)

    async def _stream(self) -> AsyncGenerator[AliasChange | None, None]:
        """What one stream tells; None for a message without news."""
        if self._begun and not self._told:
            # The registry cannot be asked for what follows sequence 0: that means where aliases point now.
            for missed in await self._missed():
                self._told = missed.sequence
                yield self._take(missed)
        asked, present = self._told, set[str]()
        call: Any = None
        try:
            request = pb.WatchModelRequest(model=self._model, alias=self._alias, after_sequence=asked)
            async with mesh_errors():
                call = RegistryServiceStub(await self._channels.to(SERVICE)).WatchModel(request)
            while (message := await self._next(call)) is not None:
                change = change_from_message(message, self._model, self._alias)
                if change.present and self._begun and not asked:
                    return  # moved between the question and the stream: the history knows all of it
                if change.present and change.move is not None:
                    present.add(change.move.alias)
                news = self._is_news(change)
                self._told = max(self._told, change.sequence)
                yield self._take(change) if news else None
                if message.present_complete:
                    for gone in self._gone(present, change):
                        yield self._take(gone)
                    # Less than was told, where the registry was set back to a backup: from here on its history counts.
                    self._told, self._begun = change.sequence, True
        finally:
            if call is not None:
                call.cancel()

    async def _next(self, call: Any) -> pb.WatchModelResponse | None:
        """None at the end of the stream. Waits as long as nothing changes: keepalive notices a dead link (ADR 0005)."""
        async with mesh_errors():
            message = await call.read()
        if not isinstance(message, pb.WatchModelResponse):
            return None
        self._keyring_version = message.keyring_version
        if self._trust is not None:
            self._trust.heard(message.keyring_version)
        return message

    def _is_news(self, change: AliasChange) -> bool:
        if change.move is None:
            return False
        if not change.present:
            return change.move.sequence > self._told
        # The same move, its time included, has the same history before it.
        return self._known.get(change.move.alias) != change.move

    def _take(self, change: AliasChange) -> AliasChange:
        """The change, which the caller is told now."""
        if change.move is not None:
            self._known[change.move.alias] = change.move
        return change

    def _gone(self, present: Set[str], last: AliasChange) -> Iterator[AliasChange]:
        """What the caller knows and the registry does not: only one that was set back has lost it."""
        for move in list(self._known.values()):
            if move.version and move.alias not in present:
                away = replace(
                    move, sequence=last.sequence, previous=move.version, version=0, moved_by="", reason=FORGOTTEN
                )
                yield replace(last, move=away, version=None, present=True)
        if not (self._begun or self._known):
            yield replace(last, move=None, version=None)

    async def _missed(self) -> list[AliasChange]:
        try:
            moves = await self._calls.alias_moves(self._model, self._alias, most=MAX_MISSED)
        except MeshError as error:
            if error.reason is not Reason.MODEL_NOT_FOUND:
                raise
            return []
        return [
            AliasChange(move, await self._version(move.version), move.sequence, self._keyring_version)
            for move in reversed(moves)
        ]

    async def _version(self, number: int) -> VersionInfo | None:
        """None for none, and for one that was deleted since."""
        try:
            return await self._calls.get_version(self._model, number) if number else None
        except MeshError as error:
            if error.reason is not Reason.VERSION_NOT_FOUND:
                raise
            return None


async def states(changes: AsyncGenerator[AliasChange, None]) -> AsyncGenerator[VersionInfo | None, None]:
    """Where one alias points, as a caller who may be busy wants it: the newest state that is here, none of them twice."""
    newest = _Newest()
    reading = asyncio.ensure_future(newest.read(changes))
    known: _State | None = None
    try:
        while True:
            await newest.came.wait()
            newest.came.clear()
            state = newest.state
            if state is not None and (known is None or not state.is_same(known)):
                known = state
                yield state.version
            elif reading.done():
                reading.result()
                return
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class _State:
    version: VersionInfo | None

    def is_same(self, other: _State) -> bool:
        if self.version is None or other.version is None:
            return self.version is other.version
        return self.version.same_as(other.version)


class _Newest:
    """The last state of an alias that was heard of."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.state: _State | None = None

    async def read(self, changes: AsyncGenerator[AliasChange, None]) -> None:
        try:
            async with aclosing(changes):
                async for change in changes:
                    if change.move is not None and change.move.version and change.version is None:
                        continue  # deleted since, so the alias has moved on
                    self.state = _State(change.version)
                    self.came.set()
        finally:
            self.came.set()
