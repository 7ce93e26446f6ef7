"""The registry's messages as values, and back. What a registry may not say is refused: PROTOCOL_VIOLATION."""

from __future__ import annotations

import re
from datetime import UTC
from typing import Any

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry_values import (
    AliasChange,
    AliasMove,
    ArtifactRef,
    Garbage,
    ModelInfo,
    RegistryEvent,
    VersionInfo,
)
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""As :data:`splitmesh.model.manifest.ArtifactName`, whose module needs Pillow: a name becomes a file at who pulls it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def artifact_to_message(ref: ArtifactRef) -> pb.Artifact:
    """A file by content."""
    return pb.Artifact(name=ref.name, sha256=ref.sha256, size_bytes=ref.size_bytes)


def artifact_from_message(message: pb.Artifact) -> ArtifactRef:
    """A file by content, whose name and digest can be made files of."""
    if not is_plain_name(message.name):
        raise _violation(f"the registry names an artefact {message.name!r}: no plain file name")
    return ArtifactRef(message.name, digest_from_message(message.sha256), message.size_bytes)


def is_plain_name(name: str) -> bool:
    """Whether an artefact can be kept under this name in any folder."""
    return _PLAIN_NAME.fullmatch(name) is not None


def is_digest(sha256: str) -> bool:
    """Whether it is 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(sha256) is not None


def digest_from_message(sha256: str) -> str:
    """What is 64 lower-case hexadecimal digits."""
    if not is_digest(sha256):
        raise _violation(f"the registry sends {sha256[:80]!r} for a SHA-256")
    return sha256


def lineage_to_message(lineage: Lineage) -> pb.Lineage:
    """What a version was made from and how."""
    return pb.Lineage(
        parents=[pb.VersionName(model=one.model, version=one.version) for one in lineage.parents],
        datasets=[
            pb.DatasetUse(dataset=one.dataset, version=one.version, sha256=one.sha256, role=one.role)
            for one in lineage.datasets
        ],
        task=lineage.task,
        code_version=lineage.code_version,
        recipe_sha256=lineage.recipe_sha256,
        seeds=lineage.seeds,
        metrics=dict(lineage.metrics),
    )


def lineage_from_message(message: pb.Lineage) -> Lineage:
    """What a version was made from and how."""
    return Lineage(
        parents=tuple(VersionName(one.model, one.version) for one in message.parents),
        datasets=tuple(DatasetUse(one.dataset, one.version, one.sha256, one.role) for one in message.datasets),
        task=message.task,
        code_version=message.code_version,
        recipe_sha256=message.recipe_sha256,
        seeds=tuple(message.seeds),
        metrics=dict(message.metrics),
    )


def version_from_message(message: pb.ModelVersion) -> VersionInfo:
    """One version; each artefact's name is a plain file name and comes once."""
    refs = [artifact_from_message(one) for one in message.artifacts]
    artifacts = {ref.name: ref for ref in refs}
    if len(artifacts) != len(refs):
        raise _violation(f"the registry names an artefact of {message.model!r} version {message.version} twice")
    return VersionInfo(
        model=message.model,
        version=message.version,
        parent=message.parent,
        artifacts=artifacts,
        created_by=message.created_by,
        description=message.description,
        aliases=tuple(message.aliases),
        create_time=_time(message.create_time),
        lineage=lineage_from_message(message.lineage),
        signatures=tuple(message.signatures),
        holders=tuple(message.holders),
    )


def answer_of(message: pb.ModelVersion, model: str, number: int | None = None) -> VersionInfo:
    """The version, which must be of the model that was asked for, and have this number if one was asked for.

    A signature tells only whose a version is, not that it answers the question.
    """
    version = version_from_message(message)
    if version.model != model or (number is not None and version.version != number):
        asked = repr(model) if number is None else f"version {number} of {model!r}"
        raise _violation(f"asked for {asked}, the registry answers with version {version.version} of {version.model!r}")
    return version


def model_from_message(message: pb.Model) -> ModelInfo:
    """One model."""
    return ModelInfo(
        name=message.name,
        latest_version=message.latest_version,
        aliases=dict(message.aliases),
        create_time=_time(message.create_time),
    )


def move_from_message(message: pb.AliasMove, model: str, alias: str = "") -> AliasMove:
    """One move of an alias of the model that was asked about, and of this alias unless it is empty."""
    if message.model != model or alias not in ("", message.alias):
        asked = f"{model}@{alias}" if alias else model
        raise _violation(f"asked about {asked}, the registry answers about {message.model}@{message.alias}")
    return AliasMove(
        sequence=message.sequence,
        model=message.model,
        alias=message.alias,
        previous=message.previous_version,
        version=message.version,
        moved_by=message.moved_by,
        reason=message.reason,
        move_time=_time(message.move_time),
    )


def change_from_message(message: pb.WatchModelResponse, model: str, alias: str = "") -> AliasChange:
    """What a watcher of the model, or of one alias of it, hears; a version, if there is one, is the one that the move names."""
    move = move_from_message(message.move, model, alias) if message.HasField("move") else None
    if message.HasField("version") and move is None:
        raise _violation(f"the registry tells of no move and sends version {message.version.version} of {model!r}")
    version = answer_of(message.version, model, move.version) if move and message.HasField("version") else None
    return AliasChange(move, version, message.sequence, message.keyring_version, message.present)


def event_from_message(message: pb.Event) -> RegistryEvent:
    """Something that was done."""
    return RegistryEvent(
        sequence=message.sequence,
        time=_time(message.time),
        kind=message.kind,
        subject=message.subject,
        by=message.by,
        key_ids=tuple(message.key_ids),
        peer=message.peer,
        detail=message.detail,
    )


def garbage_from_message(message: pb.CollectGarbageResponse) -> Garbage:
    """What a collection removed."""
    return Garbage(message.contents, message.size_bytes, message.kept, message.too_young)


def _time(message: Any) -> Any:
    return message.ToDatetime(tzinfo=UTC)


def _violation(text: str) -> MeshError:
    return MeshError(Reason.PROTOCOL_VIOLATION, text)
