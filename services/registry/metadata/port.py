"""The metadata port: what every store of models, versions, aliases, datasets, keyrings and events promises.

Knows nothing of contents (``content``), of gRPC, or of who may do what. ``sql_store`` is durable (SQLite or PostgreSQL),
``memory_store`` forgets; one conformance suite holds for all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

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
from splitmesh.model.lineage import VersionName


@dataclass(frozen=True, slots=True)
class Removal:
    """What may be removed now; see :meth:`MetadataStore.removing`."""

    unused: frozenset[str]
    check: Callable[[], Awaitable[None]]
    """SERVICE_UNAVAILABLE when it is no longer known that no other process owns the database; asked before each removal."""


class MetadataStore(Protocol):
    """Every method is atomic; a write, with its event, is durable when it returns (in a store that keeps anything).

    FIELD_INVALID for text that not every store can keep (NUL, halves of surrogate pairs) and numbers beyond 64 bits, in any
    argument. What depends on the present time (holders) goes by the store's own clock when it is read.

    A version that was deleted is as if it had never been made, except that its number is not used again and that its
    request_id makes no version any more: VERSION_NOT_FOUND says that it was deleted.
    """

    async def start(self) -> None:
        """Ready when it returns."""

    async def stop(self) -> None:
        """Finishes what was accepted and lets go."""

    async def identity(self) -> str:
        """A random name, made once with the database and kept in it: copies and restored backups have it too."""

    # Versions

    async def find_request(self, model: str, request_id: str) -> Version | None:
        """The version a request made, or None; VERSION_NOT_FOUND when that was deleted."""

    async def create_version(self, draft: Draft, actor: Actor, create_time: datetime) -> Version:
        """The next version of the model (numbers count from 1 without gaps), or the one its request_id made first.

        Raises:
            MeshError: VERSION_NOT_FOUND, the parent is no version of this model; MODEL_NOT_FOUND, DATASET_NOT_FOUND or
                VERSION_NOT_FOUND, the lineage or ``needs`` names what does not exist at this moment; STORAGE_FULL.
        """

    async def newest(self, model: str) -> Version:
        """The version with the highest number; MODEL_NOT_FOUND, VERSION_NOT_FOUND when all were deleted."""

    async def get_version(self, model: str, version: int) -> Version:
        """One version; MODEL_NOT_FOUND, VERSION_NOT_FOUND."""

    async def version_at(self, model: str, alias: str) -> Version:
        """The version an alias points at; MODEL_NOT_FOUND, ALIAS_NOT_FOUND."""

    async def list_models(self, after: str, limit: int) -> Sequence[Model]:
        """At most ``limit`` models whose names sort after ``after`` (by code point), by name."""

    async def list_versions(self, model: str, before: int, limit: int) -> Sequence[Version]:
        """At most ``limit`` versions with numbers below ``before`` (0: all), newest first; MODEL_NOT_FOUND."""

    async def add_signature(self, model: str, version: int, signature: Signature, actor: Actor, time: datetime) -> None:
        """Adds one, or replaces the one of its key; the same again is fine and no event.

        MODEL_NOT_FOUND, VERSION_NOT_FOUND; STORAGE_FULL, also at the ``MAX_SIGNATURES``-th key.
        """

    async def hold_version(
        self, model: str, version: int, holder: str, until: datetime | None, actor: Actor, time: datetime
    ) -> None:
        """Holds until then (None: until released); replaces an earlier hold of this holder on this version, which is no
        event when that has not ended at ``time``.

        MODEL_NOT_FOUND, VERSION_NOT_FOUND; STORAGE_FULL, also at the ``MAX_HOLDERS``-th holder.
        """

    async def release_version(self, model: str, version: int, holder: str, actor: Actor, time: datetime) -> None:
        """Ends a hold; fine when there is none. MODEL_NOT_FOUND, VERSION_NOT_FOUND."""

    async def delete_version(self, model: str, version: int, reason: str, actor: Actor, time: datetime) -> None:
        """Takes a version away; MODEL_NOT_FOUND, VERSION_NOT_FOUND; VERSION_IN_USE (:func:`version_in_use`) when an alias
        points at it, a hold has not ended at ``time``, or a version that exists needs it."""

    async def without_needs(self, artifact: str, after: VersionName, limit: int) -> Sequence[tuple[VersionName, str]]:
        """At most ``limit`` versions that have an artefact of this name, need no version, and sort after ``after``, by model and
        number; with the digest of the artefact."""

    async def set_needs(self, model: str, version: int, needs: Sequence[VersionName]) -> None:
        """What a version needs, as ``needs`` of a draft, in place of what was kept; what does not exist is passed over.
        MODEL_NOT_FOUND, VERSION_NOT_FOUND; STORAGE_FULL."""

    # Aliases

    async def set_alias(self, change: AliasChange, actor: Actor, time: datetime) -> AliasMove:
        """Points an alias. Where it points there already: its last move again, and no event.

        Raises:
            MeshError: MODEL_NOT_FOUND, VERSION_NOT_FOUND; ALIAS_NOT_FOUND, taken away where there is none; ALIAS_MOVED,
                it is not where ``expected`` says (also when it already is where it shall be); STORAGE_FULL.
        """

    async def alias_moves_after(self, model: str, alias: str, after: int, limit: int) -> Sequence[AliasMove]:
        """At most ``limit`` moves with sequences above ``after``, oldest first; of all aliases when ``alias`` is empty. None of
        a model that does not exist."""

    async def alias_moves_before(self, model: str, alias: str, before: int, limit: int) -> Sequence[AliasMove]:
        """At most ``limit`` moves with sequences below ``before`` (0: all), newest first; MODEL_NOT_FOUND."""

    async def alias_states(self, model: str, alias: str) -> tuple[Sequence[AliasMove], int]:
        """The last move of each alias that exists now (all when ``alias`` is empty), by sequence, and the sequence of the
        newest move in the store, both of one moment. Empty for a model that does not exist."""

    # Contents that are named

    async def unused(self, sha256s: Sequence[str]) -> set[str]:
        """Those that no artefact of a version, no manifest and no picture of a dataset version names."""

    def removing(self, sha256s: Sequence[str]) -> AbstractAsyncContextManager[Removal]:
        """As :meth:`unused`, and while the block lasts no other process can become the owner of the database, so that what it
        says stays true but for what this process writes. SERVICE_UNAVAILABLE, also when another process owns it already."""

    # Keyrings and events

    async def put_keyring(
        self, version: int, envelope: bytes, actor: Actor, time: datetime, *, first: bool = False
    ) -> None:
        """Keeps the next keyring; KEYRING_STALE unless ``version`` is one more than the newest (1 for the first); the same
        envelope again is fine. STORAGE_FULL.

        ``first``: it begins a chain, with whatever version it has, in place of all that are kept; their end is an event.
        """

    async def keyrings(self, after: int) -> Sequence[bytes]:
        """Envelopes of newer versions, oldest first."""

    async def record(self, kind: str, name: str, subject: str, actor: Actor, detail: str, time: datetime) -> None:
        """An event of something the store does not do itself."""

    async def list_events(self, name: str, before: int, limit: int) -> Sequence[Event]:
        """At most ``limit`` events with sequences below ``before`` (0: all), newest first; only of ``name`` unless empty."""

    # Datasets

    async def find_dataset_request(self, dataset: str, request_id: str) -> DatasetVersion | None:
        """As :meth:`find_request`."""

    async def create_dataset_version(self, draft: DatasetDraft, actor: Actor, create_time: datetime) -> DatasetVersion:
        """As :meth:`create_version`."""

    async def get_dataset_version(self, dataset: str, version: int) -> DatasetVersion:
        """One version, 0: the newest; DATASET_NOT_FOUND, VERSION_NOT_FOUND."""

    async def list_datasets(self, after: str, limit: int) -> Sequence[Dataset]:
        """At most ``limit`` datasets whose names sort after ``after``, by name."""

    async def list_dataset_versions(self, dataset: str, before: int, limit: int) -> Sequence[DatasetVersion]:
        """At most ``limit`` versions with numbers below ``before`` (0: all), newest first; DATASET_NOT_FOUND."""

    async def delete_dataset_version(
        self, dataset: str, version: int, reason: str, actor: Actor, time: datetime, *, even_if_used: bool
    ) -> None:
        """Takes a version away; DATASET_NOT_FOUND, VERSION_NOT_FOUND; VERSION_IN_USE when the lineage of a model version
        that exists names it, unless ``even_if_used``."""

    # Profiles

    async def put_profile(self, record: ProfileRecord) -> None:
        """Keeps a profile; STORAGE_FULL at the ``MAX_PROFILES``-th key of a model, or on a full disk."""

    async def list_profiles(self, sha256: str, node: str, max_bytes: int | None = None) -> Sequence[ProfileRecord]:
        """Those of a model, newest first; only one node's unless ``node`` is empty.

        The first in any case, further ones while all together have at most ``max_bytes``.
        """
