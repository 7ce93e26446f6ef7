"""Messages of the registry's contract to records, and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from datetime import datetime

from services.registry.pull import Piece
from services.registry.push import Start
from services.registry.store import AliasState, Artifact, Draft, Model, Version
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.profiles import profile_to_message
from splitmesh.model.profile_data import Profile


async def upload_messages(requests: AsyncIterator[pb.PushArtifactRequest]) -> AsyncGenerator[Start | bytes, None]:
    """The messages of an upload; one without any field reads as empty data, which is refused."""
    async for request in requests:
        if request.HasField("start"):
            yield Start(request.start.sha256, request.start.size_bytes, request.start.offset)
        else:
            yield request.data


def to_draft(request: pb.CreateVersionRequest) -> Draft:
    """What is to become a version."""
    return Draft(
        model=request.model,
        artifacts=tuple(Artifact(one.name, one.sha256, one.size_bytes) for one in request.artifacts),
        parent=request.parent,
        created_by=request.created_by,
        description=request.description,
        request_id=request.request_id,
    )


def from_version(version: Version) -> pb.ModelVersion:
    """A version as a message."""
    message = pb.ModelVersion(
        model=version.model,
        version=version.version,
        parent=version.parent,
        artifacts=[
            pb.Artifact(name=one.name, sha256=one.sha256, size_bytes=one.size_bytes) for one in version.artifacts
        ],
        created_by=version.created_by,
        description=version.description,
        aliases=version.aliases,
    )
    message.create_time.FromDatetime(version.create_time)
    return message


def from_model(model: Model) -> pb.Model:
    """A model as a message."""
    message = pb.Model(name=model.name, latest_version=model.latest_version, aliases=model.aliases)
    message.create_time.FromDatetime(model.create_time)
    return message


def from_piece(piece: Piece) -> pb.PullArtifactResponse:
    """A piece of an artefact as a message."""
    return pb.PullArtifactResponse(offset=piece.offset, data=piece.data, size_bytes=piece.size_bytes)


def from_state(state: AliasState) -> pb.WatchAliasResponse:
    """Where an alias points as a message; the version is absent while the alias does not exist."""
    version = from_version(state.version) if state.version else None
    return pb.WatchAliasResponse(version=version, revision=state.revision)


def from_profile(profile: Profile, update_time: datetime) -> pb.StoredProfile:
    """A kept profile as a message."""
    message = pb.StoredProfile(profile=profile_to_message(profile))
    message.update_time.FromDatetime(update_time)
    return message
