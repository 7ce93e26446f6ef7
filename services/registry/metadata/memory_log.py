"""Events, keyrings, profiles and a name in memory: a part of ``memory_store``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import uuid4

from services.registry.metadata.acts import Act, keyring_put, keyrings_removed
from services.registry.metadata.records import Actor, Event, ProfileRecord
from services.registry.metadata.refusals import MAX_PROFILES, keyring_stale, too_many_profiles, up_to
from splitmesh.sql.fields import check_fields


class MemoryLog:
    """See the port."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._keyrings: dict[int, bytes] = {}
        self._profiles: dict[str, dict[str, ProfileRecord]] = {}
        self._identity = uuid4().hex

    async def identity(self) -> str:
        """See the port."""
        return self._identity

    async def put_keyring(
        self, version: int, envelope: bytes, actor: Actor, time: datetime, *, first: bool = False
    ) -> None:
        """See the port."""
        check_fields(version=version, actor=actor)
        if self._keyrings.get(version) == envelope:
            return
        newest = max(self._keyrings, default=0)
        if first and newest:
            self._log(keyrings_removed(newest, await self.keyrings(0)), actor, time)
            self._keyrings.clear()
        elif not first and version != newest + 1:
            raise keyring_stale(version, newest)
        self._keyrings[version] = envelope
        self._log(keyring_put(version), actor, time)

    async def keyrings(self, after: int) -> Sequence[bytes]:
        """See the port."""
        check_fields(after=after)
        return [envelope for version, envelope in sorted(self._keyrings.items()) if version > after]

    async def record(self, kind: str, name: str, subject: str, actor: Actor, detail: str, time: datetime) -> None:
        """See the port."""
        check_fields(kind=kind, name=name, subject=subject, actor=actor, detail=detail)
        self._log(Act(kind, name, subject, detail), actor, time)

    async def list_events(self, name: str, before: int, limit: int) -> Sequence[Event]:
        """See the port."""
        check_fields(name=name, before=before)
        return [
            event
            for event in reversed(self._events)
            if name in ("", event.name) and (not before or event.sequence < before)
        ][:limit]

    async def put_profile(self, record: ProfileRecord) -> None:
        """See the port."""
        check_fields(record=record)
        kept = self._profiles.setdefault(record.sha256, {})
        if record.key not in kept and len(kept) >= MAX_PROFILES:
            raise too_many_profiles()
        kept[record.key] = record

    async def list_profiles(self, sha256: str, node: str, max_bytes: int | None = None) -> list[ProfileRecord]:
        """See the port."""
        check_fields(sha256=sha256, node=node)
        found = [one for one in self._profiles.get(sha256, {}).values() if node in ("", one.node)]
        return up_to(sorted(found, key=lambda one: (one.update_time, one.key), reverse=True), max_bytes)

    def _log(self, act: Act, actor: Actor, time: datetime) -> None:
        sequence = len(self._events) + 1
        self._events.append(Event(sequence, time, act.kind, act.name, act.subject, actor, act.detail))
