"""The registry for everyone who uses it: push and pull artefacts, make versions, move and follow aliases.

Uploads and downloads resume where a broken link left them, and give up only after several failures without progress.
Everything raises MeshError. Content is verified by its SHA-256 before anyone sees it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.artifacts import SERVICE, TRIES, ArtifactRef, Artifacts, OnProgress
from splitmesh.client.profiles import profile_from_message, profile_to_message
from splitmesh.client.transfer import Patience, is_passing
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.model.profile_data import Profile

CREATE_DEADLINE_S = 300.0
"""Deadline of CreateVersion, seconds: the registry reads every model file in a child process first."""
PAGE = 1000

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""As :data:`splitmesh.model.manifest.ArtifactName`, whose module needs Pillow: a name becomes a file at who pulls it."""

__all__ = ["ArtifactRef", "ModelInfo", "RegistryClient", "VersionInfo"]


@dataclass(frozen=True)
class VersionInfo:
    """One immutable version; ``aliases`` are those that pointed at it when it was read."""

    model: str
    version: int
    parent: int
    artifacts: Mapping[str, ArtifactRef]
    created_by: str
    description: str
    aliases: tuple[str, ...]
    create_time: datetime


@dataclass(frozen=True)
class ModelInfo:
    """A model and where its aliases point."""

    name: str
    latest_version: int
    aliases: Mapping[str, int]
    create_time: datetime


class RegistryClient:
    """Speaks to the service ``registry`` that ``channels`` can find."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._artifacts = Artifacts(channels)

    async def push_artifact(
        self, name: str, content: bytes | Path, *, on_progress: OnProgress | None = None
    ) -> ArtifactRef:
        """Uploads what the registry does not have yet.

        Raises:
            MeshError: FIELD_INVALID (the file cannot be read), FRAME_TOO_LARGE, STORAGE_FULL, DIGEST_MISMATCH (the file
                changed meanwhile), or what kept the registry from answering.
        """
        return await self._artifacts.push(name, content, on_progress)

    async def pull_artifact(self, ref: ArtifactRef, *, on_progress: OnProgress | None = None) -> bytes:
        """The content, verified. ARTIFACT_NOT_FOUND, DIGEST_MISMATCH, or what kept the registry from answering."""
        return await self._artifacts.pull(ref, on_progress)

    async def pull_to_file(self, ref: ArtifactRef, path: Path, *, on_progress: OnProgress | None = None) -> None:
        """The content at ``path``, which changes only when everything is verified and synced; resumes an earlier try.

        Raises:
            MeshError: as :meth:`pull_artifact`, and STORAGE_FULL when the file cannot be written.
        """
        await self._artifacts.pull_to_file(ref, path, on_progress)

    async def create_version(
        self,
        model: str,
        artifacts: Mapping[str, bytes | Path | ArtifactRef],
        *,
        parent: int = 0,
        created_by: str,
        description: str = "",
        request_id: str = "",
        on_progress: OnProgress | None = None,
    ) -> VersionInfo:
        """Pushes what is not there yet, then makes the version; safe to repeat with the same ``request_id``.

        A reference stands for what another version holds already. ``on_progress`` is told the bytes of one artefact after
        the other.
        """
        refs = [
            replace(content, name=name)
            if isinstance(content, ArtifactRef)
            else await self.push_artifact(name, content, on_progress=on_progress)
            for name, content in artifacts.items()
        ]
        request = pb.CreateVersionRequest(
            model=model,
            artifacts=[pb.Artifact(name=ref.name, sha256=ref.sha256, size_bytes=ref.size_bytes) for ref in refs],
            parent=parent,
            created_by=created_by,
            description=description,
            # With one of our own a lost answer can be asked for again without making a second version.
            request_id=request_id or uuid4().hex,
        )
        patience = Patience(tries=TRIES)
        while True:
            try:
                async with mesh_errors():
                    stub = await self._stub()
                    response = await stub.CreateVersion(request, timeout=CREATE_DEADLINE_S)
                return _version(response.version)
            except MeshError as error:
                # A check that took too long would take too long again.
                if error.reason is Reason.DEADLINE_EXPIRED or not is_passing(error):
                    raise
                await patience.after(error)

    async def get_version(self, model: str, version: int | None = None, *, alias: str | None = None) -> VersionInfo:
        """By number, by alias, or the newest; MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND."""
        if version is not None and alias is not None:
            raise field_error("alias", "ask by version or by alias, not both")
        request = pb.GetVersionRequest(model=model)
        if alias is not None:
            request.alias = alias
        elif version is not None:
            request.version = version
        async with mesh_errors():
            stub = await self._stub()
            response = await stub.GetVersion(request)
        return _version(response.version)

    async def fetch(self, version: VersionInfo, name: str) -> bytes:
        """One artefact of a version; MODEL_INCOMPLETE when it has none of that name."""
        ref = version.artifacts.get(name)
        if ref is None:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                f"version {version.version} of {version.model!r} has no {name!r}",
                metadata={"missing": name},
            )
        return await self.pull_artifact(ref)

    async def list_models(self) -> list[ModelInfo]:
        """All, by name."""
        found: list[ModelInfo] = []
        request = pb.ListModelsRequest(page_size=PAGE)
        while True:
            async with mesh_errors():
                stub = await self._stub()
                page = await stub.ListModels(request)
            found += [_model(message) for message in page.models]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def list_versions(self, model: str) -> list[VersionInfo]:
        """All of one model, newest first; MODEL_NOT_FOUND."""
        found: list[VersionInfo] = []
        request = pb.ListVersionsRequest(model=model, page_size=PAGE)
        while True:
            async with mesh_errors():
                stub = await self._stub()
                page = await stub.ListVersions(request)
            found += [_version(message) for message in page.versions]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def set_alias(self, model: str, alias: str, version: int) -> int:
        """Points an alias; the version it pointed at before, 0: none. MODEL_NOT_FOUND, VERSION_NOT_FOUND."""
        async with mesh_errors():
            stub = await self._stub()
            response = await stub.SetAlias(pb.SetAliasRequest(model=model, alias=alias, version=version))
        return int(response.previous_version)

    async def put_profile(self, model: str, version: int, profile: Profile) -> None:
        """Keeps a profile; an earlier one with its key is replaced.

        Raises MeshError MODEL_NOT_FOUND, VERSION_NOT_FOUND, FIELD_INVALID, STORAGE_FULL.
        """
        request = pb.PutProfileRequest(model=model, version=version, profile=profile_to_message(profile))
        async with mesh_errors():
            stub = await self._stub()
            await stub.PutProfile(request)

    async def list_profiles(self, model: str, version: int, node: str = "") -> list[Profile]:
        """Every profile of a version's whole model, newest first; only one node's unless ``node`` is empty.

        Raises MeshError MODEL_NOT_FOUND, VERSION_NOT_FOUND.
        """
        async with mesh_errors():
            stub = await self._stub()
            answer = await stub.ListProfiles(pb.ListProfilesRequest(model=model, version=version, node=node))
        return [profile_from_message(one.profile) for one in answer.profiles]

    async def watch_alias(self, model: str, alias: str) -> AsyncIterator[VersionInfo | None]:
        """Where the alias points now (None: it does not exist), then where it points after each change.

        Never ends by itself and outlives outages of the registry, during which nothing comes. Several moves in a row
        may arrive as one; an unchanged state is never repeated. Raises MeshError only when the request is wrong, or the
        answer (PROTOCOL_VIOLATION).
        """
        patience = Patience(tries=None)
        known: int | None = None
        while True:
            call: Any = None
            try:
                async with mesh_errors():
                    call = (await self._stub()).WatchAlias(pb.WatchAliasRequest(model=model, alias=alias))
                while (message := await _next_state(call)) is not None:
                    patience.renewed()
                    number = message.version.version
                    if number != known:
                        known = number
                        yield _version(message.version) if number else None
                raise MeshError(Reason.SERVICE_UNAVAILABLE, "the registry ended the watch")
            except MeshError as error:
                if error.reason in (Reason.FIELD_INVALID, Reason.UNIMPLEMENTED, Reason.PROTOCOL_VIOLATION):
                    raise
                await patience.after(error)
            finally:
                if call is not None:
                    call.cancel()

    async def _stub(self) -> RegistryServiceStub:
        return RegistryServiceStub(await self._channels.to(SERVICE))


async def _next_state(call: Any) -> pb.WatchAliasResponse | None:
    """None at the end of the stream. Waits as long as nothing changes: keepalive notices a dead link (ADR 0005)."""
    async with mesh_errors():
        message = await call.read()
    return message if isinstance(message, pb.WatchAliasResponse) else None


def _version(message: pb.ModelVersion) -> VersionInfo:
    for one in message.artifacts:
        if not _PLAIN_NAME.fullmatch(one.name):
            raise MeshError(
                Reason.PROTOCOL_VIOLATION, f"the registry names an artefact {one.name!r}: no plain file name"
            )
    return VersionInfo(
        model=message.model,
        version=message.version,
        parent=message.parent,
        artifacts={one.name: ArtifactRef(one.name, one.sha256, one.size_bytes) for one in message.artifacts},
        created_by=message.created_by,
        description=message.description,
        aliases=tuple(message.aliases),
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
    )


def _model(message: pb.Model) -> ModelInfo:
    return ModelInfo(
        name=message.name,
        latest_version=message.latest_version,
        aliases=dict(message.aliases),
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
    )
