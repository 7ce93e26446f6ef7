"""Metadata in a database, SQLite or PostgreSQL: durable. Knows which calls write, and nothing of how.

What each call does is in ``sql_versions``, ``sql_changes``, ``sql_needs``, ``sql_aliases``, ``sql_datasets``, ``sql_log`` and
``sql_profiles``; threads, connections and transactions are in ``splitmesh.sql``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection

from services.registry.metadata import (
    sql_aliases,
    sql_changes,
    sql_datasets,
    sql_log,
    sql_needs,
    sql_profiles,
    sql_versions,
)
from services.registry.metadata.picture_sets import PictureSets
from services.registry.metadata.port import Removal
from services.registry.metadata.records import (
    Actor,
    AliasChange,
    AliasMove,
    Dataset,
    DatasetDraft,
    DatasetVersion,
    Draft,
    Event,
    Model,
    ProfileRecord,
    Signature,
    Version,
)
from services.registry.metadata.schema import SCHEMA
from splitmesh.model.lineage import VersionName
from splitmesh.sql.database import DatabaseLostError, Threads
from splitmesh.sql.database_url import database_at
from splitmesh.sql.fields import check_fields
from splitmesh.sql.times import utc_now

T = TypeVar("T")
P = ParamSpec("P")


class SqlStore:
    """A :class:`~services.registry.metadata.port.MetadataStore` in a database.

    Args:
        url: ``postgresql://user:password@host/database`` or ``sqlite:////absolute/path``.
        now: the clock that says which holds have ended when a version is read.
        lock_wait_s: how long a start on PostgreSQL waits for the registry before it to let go of the database.
        check_every_s: how often it is looked whether this is still PostgreSQL's one registry.
        on_lost: told, maybe several times, when another registry has begun on PostgreSQL: this store is of no use any more.

    Raises:
        MeshError: FIELD_INVALID, the URL names no database that this store knows.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        now: Callable[[], datetime] = utc_now,
        lock_wait_s: float = 5.0,
        check_every_s: float = 2.0,
        on_lost: Callable[[DatabaseLostError], None] = lambda _error: None,
    ) -> None:
        self._threads = Threads(
            database_at(url, SCHEMA), open_wait_s=lock_wait_s, check_every_s=check_every_s, on_lost=on_lost
        )
        self._pictures = PictureSets(self._threads)
        self._now = now

    @classmethod
    def sqlite(cls, path: Path, *, now: Callable[[], datetime] = utc_now) -> SqlStore:
        """In one file, made when it is not there; its folder is."""
        return cls(URL.create("sqlite", database=str(path)), now=now)

    async def start(self) -> None:
        """Opens the database, brings its tables up to date and removes what a killed process left unfinished.

        Raises:
            MeshError: NOT_READY, it is a newer program's, no registry's, or refuses this user; SERVICE_UNAVAILABLE, it does
                not answer or another registry runs on it; STORAGE_FULL.
        """
        await self._threads.start()
        await self._pictures.clean()

    async def stop(self) -> None:
        """Finishes what was accepted and closes."""
        await self._pictures.stop()
        await self._threads.stop()

    async def check(self) -> None:
        """SERVICE_UNAVAILABLE when the database does not answer or another registry has taken over; runs by itself too."""
        await self._threads.check()

    async def identity(self) -> str:
        """See the port."""
        return await self._read(sql_log.identity)

    async def find_request(self, model: str, request_id: str) -> Version | None:
        """See the port."""
        return await self._read(sql_versions.find_request, model=model, request_id=request_id, now=self._now())

    async def create_version(self, draft: Draft, actor: Actor, create_time: datetime) -> Version:
        """See the port."""
        return await self._write(
            sql_versions.create_version, draft=draft, actor=actor, create_time=create_time, now=self._now()
        )

    async def newest(self, model: str) -> Version:
        """See the port."""
        return await self._read(sql_versions.newest, model=model, now=self._now())

    async def get_version(self, model: str, version: int) -> Version:
        """See the port."""
        return await self._read(sql_versions.get_version, model=model, version=version, now=self._now())

    async def version_at(self, model: str, alias: str) -> Version:
        """See the port."""
        return await self._read(sql_versions.version_at, model=model, alias=alias, now=self._now())

    async def list_models(self, after: str, limit: int) -> Sequence[Model]:
        """See the port."""
        return await self._read(sql_versions.list_models, after=after, limit=limit)

    async def list_versions(self, model: str, before: int, limit: int) -> Sequence[Version]:
        """See the port."""
        return await self._read(sql_versions.list_versions, model=model, before=before, limit=limit, now=self._now())

    async def add_signature(self, model: str, version: int, signature: Signature, actor: Actor, time: datetime) -> None:
        """See the port."""
        await self._write(
            sql_changes.add_signature, model=model, version=version, signature=signature, actor=actor, time=time
        )

    async def hold_version(
        self, model: str, version: int, holder: str, until: datetime | None, actor: Actor, time: datetime
    ) -> None:
        """See the port."""
        await self._write(
            sql_changes.hold_version,
            model=model,
            version=version,
            holder=holder,
            until=until,
            actor=actor,
            time=time,
        )

    async def release_version(self, model: str, version: int, holder: str, actor: Actor, time: datetime) -> None:
        """See the port."""
        await self._write(
            sql_changes.release_version, model=model, version=version, holder=holder, actor=actor, time=time
        )

    async def delete_version(self, model: str, version: int, reason: str, actor: Actor, time: datetime) -> None:
        """See the port."""
        await self._write(
            sql_changes.delete_version, model=model, version=version, reason=reason, actor=actor, time=time
        )

    async def without_needs(self, artifact: str, after: VersionName, limit: int) -> Sequence[tuple[VersionName, str]]:
        """See the port."""
        return await self._read(sql_needs.without_needs, artifact=artifact, after=after, limit=limit)

    async def set_needs(self, model: str, version: int, needs: Sequence[VersionName]) -> None:
        """See the port."""
        await self._write(sql_needs.set_needs, model=model, version=version, needs=needs)

    async def set_alias(self, change: AliasChange, actor: Actor, time: datetime) -> AliasMove:
        """See the port."""
        return await self._write(sql_aliases.set_alias, change=change, actor=actor, time=time)

    async def alias_moves_after(self, model: str, alias: str, after: int, limit: int) -> Sequence[AliasMove]:
        """See the port."""
        return await self._read(sql_aliases.alias_moves_after, model=model, alias=alias, after=after, limit=limit)

    async def alias_moves_before(self, model: str, alias: str, before: int, limit: int) -> Sequence[AliasMove]:
        """See the port."""
        return await self._read(sql_aliases.alias_moves_before, model=model, alias=alias, before=before, limit=limit)

    async def alias_states(self, model: str, alias: str) -> tuple[Sequence[AliasMove], int]:
        """See the port."""
        return await self._read(sql_aliases.alias_states, model=model, alias=alias)

    async def unused(self, sha256s: Sequence[str]) -> set[str]:
        """See the port."""
        return await self._read(sql_datasets.unused, sha256s=sha256s)

    @asynccontextmanager
    async def removing(self, sha256s: Sequence[str]) -> AsyncIterator[Removal]:
        """See the port."""
        async with self._threads.held() as check:
            yield Removal(frozenset(await self.unused(sha256s)), check)

    async def put_keyring(
        self, version: int, envelope: bytes, actor: Actor, time: datetime, *, first: bool = False
    ) -> None:
        """See the port."""
        await self._write(sql_log.put_keyring, version=version, envelope=envelope, actor=actor, time=time, first=first)

    async def keyrings(self, after: int) -> Sequence[bytes]:
        """See the port."""
        return await self._read(sql_log.list_keyrings, after=after)

    async def record(self, kind: str, name: str, subject: str, actor: Actor, detail: str, time: datetime) -> None:
        """See the port."""
        await self._write(sql_log.record, kind=kind, name=name, subject=subject, actor=actor, detail=detail, time=time)

    async def list_events(self, name: str, before: int, limit: int) -> Sequence[Event]:
        """See the port."""
        return await self._read(sql_log.list_events, name=name, before=before, limit=limit)

    async def find_dataset_request(self, dataset: str, request_id: str) -> DatasetVersion | None:
        """See the port."""
        return await self._read(sql_datasets.find_dataset_request, dataset=dataset, request_id=request_id)

    async def create_dataset_version(self, draft: DatasetDraft, actor: Actor, create_time: datetime) -> DatasetVersion:
        """See the port."""
        if first := await self._read(sql_datasets.made_first, draft=draft):
            return first
        async with self._pictures.filled(draft.contents) as picture_set:
            return await self._write(
                sql_datasets.create_dataset_version,
                draft=draft,
                picture_set=picture_set,
                actor=actor,
                create_time=create_time,
            )

    async def get_dataset_version(self, dataset: str, version: int) -> DatasetVersion:
        """See the port."""
        return await self._read(sql_datasets.get_dataset_version, dataset=dataset, version=version)

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """See the port."""
        return await self._read(sql_datasets.list_datasets, after=after, limit=limit)

    async def list_dataset_versions(self, dataset: str, before: int, limit: int) -> Sequence[DatasetVersion]:
        """See the port."""
        return await self._read(sql_datasets.list_dataset_versions, dataset=dataset, before=before, limit=limit)

    async def delete_dataset_version(
        self, dataset: str, version: int, reason: str, actor: Actor, time: datetime, *, even_if_used: bool
    ) -> None:
        """See the port."""
        await self._pictures.delete(
            lambda connection: _call(
                connection,
                sql_datasets.delete_dataset_version,
                dataset=dataset,
                version=version,
                reason=reason,
                actor=actor,
                time=time,
                even_if_used=even_if_used,
            )
        )

    async def put_profile(self, record: ProfileRecord) -> None:
        """See the port."""
        await self._write(sql_profiles.put_profile, record=record)

    async def list_profiles(self, sha256: str, node: str, max_bytes: int | None = None) -> Sequence[ProfileRecord]:
        """See the port."""
        return await self._read(sql_profiles.list_profiles, sha256=sha256, node=node, max_bytes=max_bytes)

    async def _read(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **values: P.kwargs) -> T:
        return await self._threads.read(lambda connection: _call(connection, work, *args, **values))

    async def _write(self, work: Callable[Concatenate[Connection, P], T], *args: P.args, **values: P.kwargs) -> T:
        return await self._threads.write(lambda connection: _call(connection, work, *args, **values))


def _call(
    connection: Connection, work: Callable[Concatenate[Connection, P], T], *args: P.args, **values: P.kwargs
) -> T:
    """All values come by name, so that what is wrong with one can name it."""
    assert not args, "pass arguments by name"
    check_fields(**values)
    return work(connection, *args, **values)
