"""What the registry knows, as values: versions, models, moves of aliases, events.

Knows no messages (``registry_messages``) and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage

OnProgress = Callable[[int, int], None]
"""Told bytes done and bytes altogether."""


@dataclass(frozen=True)
class ArtifactRef:
    """A file by content."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class VersionInfo:
    """One immutable version; ``aliases``, ``signatures`` and ``holders`` are those it had when it was read."""

    model: str
    version: int
    parent: int
    artifacts: Mapping[str, ArtifactRef]
    created_by: str
    description: str
    aliases: tuple[str, ...]
    create_time: datetime
    lineage: Lineage = field(default_factory=Lineage)
    signatures: tuple[bytes, ...] = ()
    """DSSE envelopes, JSON."""
    holders: tuple[str, ...] = ()
    """Who keeps it from being deleted, beside aliases."""

    def same_as(self, other: VersionInfo) -> bool:
        """Whether both are one version, read twice; after a backup was brought back a number can be given anew."""
        passing: dict[str, Any] = {"aliases": (), "signatures": (), "holders": ()}
        return replace(self, **passing) == replace(other, **passing)

    def artifact(self, name: str) -> ArtifactRef:
        """The one of this name; MODEL_INCOMPLETE when the version has none."""
        ref = self.artifacts.get(name)
        if ref is None:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                f"version {self.version} of {self.model!r} has no {name!r}",
                metadata={"missing": name},
            )
        return ref


@dataclass(frozen=True)
class ModelInfo:
    """A model and where its aliases point."""

    name: str
    latest_version: int
    aliases: Mapping[str, int]
    create_time: datetime


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias."""

    sequence: int
    """Grows with every move of any alias of the registry."""
    model: str
    alias: str
    previous: int
    """0: nowhere."""
    version: int
    """0: nowhere."""
    moved_by: str
    reason: str
    move_time: datetime


@dataclass(frozen=True)
class AliasChange:
    """What a watcher hears: where an alias points now, or that it moved."""

    move: AliasMove | None
    """None where no alias points anywhere, which only the first change of a watch says."""
    version: VersionInfo | None
    """What the alias points at since; None where that is nowhere, or was deleted since."""
    sequence: int
    """What to watch from again: everything up to here has been told."""
    keyring_version: int
    """Of the registry's newest keyring; 0: it has none."""
    present: bool = False
    """The move has not happened now: it is where the alias points, which a caller who comes back may know already."""


@dataclass(frozen=True)
class RegistryEvent:
    """Something that was done; ``kind`` and ``subject`` are those of ``registry.proto``."""

    sequence: int
    time: datetime
    kind: str
    subject: str
    by: str
    key_ids: tuple[str, ...]
    """Of verified signatures."""
    peer: str
    detail: str


@dataclass(frozen=True)
class Garbage:
    """What a collection removed, or would."""

    contents: int
    size_bytes: int
    kept: int
    """Contents that stay."""
    too_young: int
    """Unused contents that stay because somebody pushed or asked for them lately."""
