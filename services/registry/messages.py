"""Messages of the registry's contract to records, and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime

from services.registry.garbage import Collected
from services.registry.metadata.records import AliasChange, AliasMove, Artifact, Draft, Event, Model, Version
from services.registry.pull import Piece
from services.registry.push import Start
from services.registry.watch import News
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.profiles import profile_to_message
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from splitmesh.model.profile_data import Profile


async def upload_messages(requests: AsyncIterator[pb.PushArtifactRequest]) -> AsyncGenerator[Start | bytes, None]:
    """The messages of an upload; one without any field reads as empty data, which is refused."""
    async for request in requests:
        if request.HasField("start"):
            yield Start(request.start.sha256, request.start.size_bytes, request.start.offset)
        else:
            yield request.data


async def content_messages(
    requests: AsyncIterator[pb.PushContentsRequest],
) -> AsyncGenerator[Sequence[tuple[str, bytes]], None]:
    """The messages of an upload of small contents."""
    async for request in requests:
        yield [(one.sha256, one.data) for one in request.contents]


def from_contents(contents: Sequence[tuple[str, bytes]]) -> pb.PullContentsResponse:
    """Some small contents as a message."""
    return pb.PullContentsResponse(contents=[pb.Content(sha256=sha256, data=data) for sha256, data in contents])


def from_count(messages: int) -> pb.PushContentsResponse:
    """How many messages are on disk, as a message."""
    return pb.PushContentsResponse(messages=messages)


def to_draft(request: pb.CreateVersionRequest) -> Draft:
    """What is to become a version; its signature is not judged yet."""
    return Draft(
        model=request.model,
        artifacts=tuple(Artifact(one.name, one.sha256, one.size_bytes) for one in request.artifacts),
        parent=request.parent,
        created_by=request.created_by,
        description=request.description,
        request_id=request.request_id,
        lineage=_to_lineage(request.lineage),
    )


def to_change(request: pb.SetAliasRequest) -> AliasChange:
    """Where an alias shall point."""
    expected = request.expected_version if request.HasField("expected_version") else None
    return AliasChange(request.model, request.alias, request.version, expected, request.reason)


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
        lineage=_from_lineage(version.lineage),
        signatures=[one.envelope for one in version.signatures],
        holders=version.holders,
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


def from_move(move: AliasMove) -> pb.AliasMove:
    """A move of an alias as a message."""
    message = pb.AliasMove(
        sequence=move.sequence,
        model=move.model,
        alias=move.alias,
        previous_version=move.previous,
        version=move.version,
        moved_by=move.moved_by,
        reason=move.reason,
    )
    message.move_time.FromDatetime(move.move_time)
    return message


def from_news(news: News) -> pb.WatchModelResponse:
    """What a watcher is told as a message."""
    return pb.WatchModelResponse(
        move=from_move(news.move) if news.move else None,
        version=from_version(news.version) if news.version else None,
        sequence=news.sequence,
        keyring_version=news.keyring_version,
        present=news.present,
        present_complete=news.complete,
    )


class NewsMessages:
    """Makes a message once for all watchers who are told the same one after the other: what thousands of them cost most."""

    def __init__(self) -> None:
        self._news: News | None = None
        self._message = pb.WatchModelResponse()

    def __call__(self, news: News) -> pb.WatchModelResponse:
        """As :func:`from_news`; not to be changed."""
        if news != self._news:
            self._news, self._message = news, from_news(news)
        return self._message


def from_event(event: Event) -> pb.Event:
    """Something that was done as a message."""
    message = pb.Event(
        sequence=event.sequence,
        kind=event.kind,
        subject=event.subject,
        by=event.actor.by,
        key_ids=event.actor.key_ids,
        peer=event.actor.peer,
        detail=event.detail,
    )
    message.time.FromDatetime(event.time)
    return message


def from_collected(collected: Collected) -> pb.CollectGarbageResponse:
    """What was removed as a message."""
    return pb.CollectGarbageResponse(
        contents=collected.contents,
        size_bytes=collected.size_bytes,
        kept=collected.kept,
        too_young=collected.too_young,
    )


def from_profile(profile: Profile, update_time: datetime) -> pb.StoredProfile:
    """A kept profile as a message."""
    message = pb.StoredProfile(profile=profile_to_message(profile))
    message.update_time.FromDatetime(update_time)
    return message


def _to_lineage(message: pb.Lineage) -> Lineage:
    return Lineage(
        parents=tuple(VersionName(one.model, one.version) for one in message.parents),
        datasets=tuple(DatasetUse(one.dataset, one.version, one.sha256, one.role) for one in message.datasets),
        task=message.task,
        code_version=message.code_version,
        recipe_sha256=message.recipe_sha256,
        seeds=tuple(message.seeds),
        metrics=dict(message.metrics),
    )


def _from_lineage(lineage: Lineage) -> pb.Lineage:
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
        metrics=lineage.metrics,
    )
