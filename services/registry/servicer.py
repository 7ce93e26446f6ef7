"""RegistryService on the wire: decode, call, encode. The rules are in ``push``, ``pull``, ``versions``, ``watch``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from services.registry.blobs import BlobFolder
from services.registry.messages import (
    from_model,
    from_piece,
    from_profile,
    from_state,
    from_version,
    to_draft,
    upload_messages,
)
from services.registry.names import check_alias, check_model_name
from services.registry.profiles import Profiles
from services.registry.pull import Pull
from services.registry.push import Push
from services.registry.send import send
from services.registry.versions import Versions
from services.registry.watch import AliasWatch
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from splitmesh.client.artifacts import UPLOAD_ACCEPTED
from splitmesh.client.profiles import profile_from_message


class RegistryServicer(RegistryServiceServicer):
    """One registry."""

    def __init__(
        self,
        blobs: BlobFolder,
        push: Push,
        pull: Pull,
        versions: Versions,
        watch: AliasWatch,
        profiles: Profiles,
        *,
        send_idle_s: float,
    ) -> None:
        self._blobs = blobs
        self._push = push
        self._pull = pull
        self._versions = versions
        self._watch = watch
        self._profiles = profiles
        self._send_idle_s = send_idle_s

    async def PushArtifact(
        self, request_iterator: AsyncIterator[pb.PushArtifactRequest], context: grpc.aio.ServicerContext
    ) -> pb.PushArtifactResponse:
        """See the contract."""
        async with aclosing(upload_messages(request_iterator)) as messages:
            done = await self._push.receive(messages, lambda: context.send_initial_metadata(UPLOAD_ACCEPTED))
        return pb.PushArtifactResponse(sha256=done.sha256, size_bytes=done.size_bytes)

    async def GetUpload(self, request: pb.GetUploadRequest, context: grpc.aio.ServicerContext) -> pb.GetUploadResponse:
        """See the contract."""
        progress = await self._blobs.progress(request.sha256)
        return pb.GetUploadResponse(offset=progress.offset, complete=progress.complete)

    # The stubs know only handlers that yield; these two write, because a write can have a deadline.
    async def PullArtifact(  # type: ignore[override]
        self, request: pb.PullArtifactRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """See the contract."""
        await send(context, self._pull.pieces(request.sha256, request.offset), from_piece, self._send_idle_s)

    async def CreateVersion(
        self, request: pb.CreateVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateVersionResponse:
        """See the contract."""
        return pb.CreateVersionResponse(version=from_version(await self._versions.create(to_draft(request))))

    async def GetVersion(
        self, request: pb.GetVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetVersionResponse:
        """See the contract."""
        version = await self._versions.get(
            request.model,
            version=request.version if request.HasField("version") else None,
            alias=request.alias if request.HasField("alias") else None,
        )
        return pb.GetVersionResponse(version=from_version(version))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """See the contract."""
        models, token = await self._versions.list_models(request.page_size, request.page_token)
        return pb.ListModelsResponse(models=[from_model(model) for model in models], next_page_token=token)

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListVersionsResponse:
        """See the contract."""
        versions, token = await self._versions.list_versions(request.model, request.page_size, request.page_token)
        return pb.ListVersionsResponse(versions=[from_version(one) for one in versions], next_page_token=token)

    async def SetAlias(self, request: pb.SetAliasRequest, context: grpc.aio.ServicerContext) -> pb.SetAliasResponse:
        """See the contract."""
        move = await self._versions.set_alias(request.model, request.alias, request.version)
        return pb.SetAliasResponse(previous_version=move.previous, version=request.version)

    async def WatchAlias(  # type: ignore[override]
        self, request: pb.WatchAliasRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """See the contract."""
        check_model_name(request.model)
        check_alias(request.alias)
        await send(context, self._watch.follow(request.model, request.alias), from_state, self._send_idle_s)

    async def PutProfile(
        self, request: pb.PutProfileRequest, context: grpc.aio.ServicerContext
    ) -> pb.PutProfileResponse:
        """See the contract."""
        await self._profiles.put(request.model, request.version, profile_from_message(request.profile))
        return pb.PutProfileResponse()

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListProfilesResponse:
        """See the contract."""
        found = await self._profiles.list(request.model, request.version, request.node)
        return pb.ListProfilesResponse(profiles=[from_profile(profile, moment) for profile, moment in found])
