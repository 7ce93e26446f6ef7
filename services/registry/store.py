"""The metadata port: models, versions, aliases as records, and what every store of them promises.

Knows nothing of artefact bytes (``blobs``), of gRPC, or of who may do what. ``sqlite_store`` is durable,
``memory_store`` forgets; one conformance suite holds for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from splitmesh.errors import MeshError, Reason

MAX_PROFILES = 100
"""Profiles kept of one model, each with a key of its own."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a version, by content."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is not made yet."""

    model: str
    artifacts: tuple[Artifact, ...]
    parent: int
    """Version of the same model it derives from; 0: none."""
    created_by: str
    description: str
    request_id: str
    """Empty: every call makes a version. Otherwise one value makes one version of the model, ever."""


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version, with the aliases that point at it at the time of reading."""

    model: str
    version: int
    parent: int
    artifacts: tuple[Artifact, ...]
    created_by: str
    description: str
    create_time: datetime
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A model, the number of its newest version, and where its aliases point."""

    name: str
    latest_version: int
    aliases: Mapping[str, int]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class AliasState:
    """Where an alias points; ``revision`` counts its changes, 0 while it does not exist."""

    model: str
    alias: str
    version: Version | None
    revision: int


@dataclass(frozen=True, slots=True)
class AliasMove:
    """What setting an alias did."""

    previous: int
    """Version number before; 0: the alias did not exist."""
    state: AliasState


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """One profile, as text."""

    sha256: str
    """Of the whole model that was profiled: versions that hold the same one share their profiles."""
    key: str
    """Where and how it was measured; another profile of the model with this key is replaced."""
    node: str
    """The node in that key."""
    content: str
    update_time: datetime


class MetadataStore(Protocol):
    """Every method is atomic; a write is durable when it returns (in a store that keeps anything)."""

    async def start(self) -> None:
        """Ready when it returns."""

    async def stop(self) -> None:
        """Finishes what was accepted and lets go."""

    async def find_request(self, model: str, request_id: str) -> Version | None:
        """The version a request made, or None."""

    async def create_version(self, draft: Draft, create_time: datetime) -> Version:
        """The next version of the model (numbers count from 1 without gaps), or the one its request_id made first.

        Raises:
            MeshError: VERSION_NOT_FOUND, the parent is no version of this model; STORAGE_FULL.
        """

    async def newest(self, model: str) -> Version:
        """The version with the highest number; MODEL_NOT_FOUND."""

    async def get_version(self, model: str, version: int) -> Version:
        """One version; MODEL_NOT_FOUND, VERSION_NOT_FOUND."""

    async def version_at(self, model: str, alias: str) -> Version:
        """The version an alias points at; MODEL_NOT_FOUND, ALIAS_NOT_FOUND."""

    async def list_models(self, after: str, limit: int) -> Sequence[Model]:
        """At most ``limit`` models whose names sort after ``after``, by name."""

    async def list_versions(self, model: str, before: int, limit: int) -> Sequence[Version]:
        """At most ``limit`` versions with numbers below ``before`` (0: all), newest first; MODEL_NOT_FOUND."""

    async def set_alias(self, model: str, alias: str, version: int) -> AliasMove:
        """Points an alias; the revision grows only if it moved. MODEL_NOT_FOUND, VERSION_NOT_FOUND, STORAGE_FULL."""

    async def alias_state(self, model: str, alias: str) -> AliasState:
        """Where an alias points, also when it or the model does not exist."""

    async def put_profile(self, record: ProfileRecord) -> None:
        """Keeps a profile; STORAGE_FULL at the ``MAX_PROFILES``-th key of a model, or on a full disk."""

    async def list_profiles(self, sha256: str, node: str, max_bytes: int | None = None) -> Sequence[ProfileRecord]:
        """Those of a model, newest first; only one node's unless ``node`` is empty.

        The first in any case, further ones while all together have at most ``max_bytes``.
        """


def model_not_found(model: str) -> MeshError:
    """No version of this model was ever made."""
    return MeshError(Reason.MODEL_NOT_FOUND, f"there is no model {model!r}", metadata={"model": model})


def version_not_found(model: str, version: int) -> MeshError:
    """The model has no such version."""
    return MeshError(
        Reason.VERSION_NOT_FOUND,
        f"model {model!r} has no version {version}",
        metadata={"model": model, "version": str(version)},
    )


def alias_not_found(model: str, alias: str) -> MeshError:
    """The model has no such alias."""
    return MeshError(
        Reason.ALIAS_NOT_FOUND, f"model {model!r} has no alias {alias!r}", metadata={"model": model, "alias": alias}
    )


def too_many_profiles() -> MeshError:
    """No room for a profile with a new key."""
    return MeshError(
        Reason.STORAGE_FULL,
        f"this model has {MAX_PROFILES} profiles already; one measured the same way as an earlier one replaces it",
        metadata={"limit": str(MAX_PROFILES)},
    )


def up_to(records: Iterable[ProfileRecord], max_bytes: int | None) -> list[ProfileRecord]:
    """The first record and those after it while all together have at most ``max_bytes``; the rest is not looked at."""
    found: list[ProfileRecord] = []
    size = 0
    for record in records:
        size += len(record.content.encode())
        if found and max_bytes is not None and size > max_bytes:
            break
        found.append(record)
    return found
