"""What the metadata stores keep, as plain values: versions, aliases, datasets, keyrings' events, profiles. Knows no store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from splitmesh.model.lineage import Lineage, VersionName


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file of a version, by content."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Actor:
    """Who says to do something, and what is known about that."""

    by: str = ""
    peer: str = ""
    """Network address."""
    key_ids: tuple[str, ...] = ()
    """Of verified signatures."""


@dataclass(frozen=True, slots=True)
class Signature:
    """An envelope over a version's statement."""

    key_id: str
    envelope: bytes


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
    lineage: Lineage = field(default_factory=Lineage)
    signature: Signature | None = None
    needs: tuple[VersionName, ...] = ()
    """Versions that this one runs with, such as its alternatives: they stay while it does."""


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version, with the aliases, signatures and holders it has at the time of reading."""

    model: str
    version: int
    parent: int
    artifacts: tuple[Artifact, ...]
    created_by: str
    description: str
    create_time: datetime
    aliases: tuple[str, ...] = ()
    lineage: Lineage = field(default_factory=Lineage)
    signatures: tuple[Signature, ...] = ()
    """By key id."""
    holders: tuple[str, ...] = ()
    """By name; those whose hold has not ended."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model, the highest number a version of it ever had, and where its aliases point."""

    name: str
    latest_version: int
    aliases: Mapping[str, int]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class AliasChange:
    """What an alias shall point at."""

    model: str
    alias: str
    version: int
    """0: the alias is taken away."""
    expected: int | None = None
    """Where it must point before, 0: nowhere; None: wherever."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of an alias; kept for ever."""

    sequence: int
    """Grows with every move of any alias of the store; never used twice."""
    model: str
    alias: str
    previous: int
    """0: it did not exist."""
    version: int
    """0: it was taken away."""
    moved_by: str
    reason: str
    move_time: datetime


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done. The store writes it in the same transaction as the act."""

    sequence: int
    time: datetime
    kind: str
    """See ``registry.proto``."""
    name: str
    """Of the model or dataset, or ``keyring``, ``registry``."""
    subject: str
    """``name:version``, ``name@alias`` or ``name``."""
    actor: Actor
    detail: str


@dataclass(frozen=True, slots=True)
class DatasetDraft:
    """A version of a dataset that is not made yet."""

    dataset: str
    manifest: Artifact
    parent: int
    created_by: str
    description: str
    request_id: str
    summary: str
    """JSON of what the manifest says in short; the store keeps it as it is."""
    contents: tuple[str, ...]
    """Digests of the pictures, each once."""
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """One immutable version of a dataset."""

    dataset: str
    version: int
    manifest: Artifact
    parent: int
    created_by: str
    description: str
    summary: str
    create_time: datetime
    signatures: tuple[Signature, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset and the highest number a version of it ever had."""

    name: str
    latest_version: int
    create_time: datetime


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
