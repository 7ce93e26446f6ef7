"""RegistryService on the wire: decode, call, encode. The rules are in ``versions``, ``aliases``, ``watch`` and their kind."""

from __future__ import annotations

import grpc

from services.registry.content_servicer import ContentServicer
from services.registry.messages import (
    NewsMessages,
    from_collected,
    from_event,
    from_model,
    from_move,
    from_profile,
    from_version,
    to_change,
    to_draft,
)
from services.registry.names import check_alias, check_model_name
from services.registry.rules import Rules, actor_of
from services.registry.send import send
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.profiles import profile_from_message


class RegistryServicer(ContentServicer):
    """One registry."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        self._news_messages = NewsMessages()

    async def CreateVersion(
        self, request: pb.CreateVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateVersionResponse:
        """See the contract."""
        actor = actor_of(context, request.created_by)
        version = await self._rules.versions.create(to_draft(request), request.signature, actor)
        return pb.CreateVersionResponse(version=from_version(version))

    async def GetVersion(
        self, request: pb.GetVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetVersionResponse:
        """See the contract."""
        version = await self._rules.versions.get(
            request.model,
            version=request.version if request.HasField("version") else None,
            alias=request.alias if request.HasField("alias") else None,
        )
        return pb.GetVersionResponse(version=from_version(version))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """See the contract."""
        models, token = await self._rules.versions.list_models(request.page_size, request.page_token)
        return pb.ListModelsResponse(models=[from_model(model) for model in models], next_page_token=token)

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListVersionsResponse:
        """See the contract."""
        found, token = await self._rules.versions.list_versions(request.model, request.page_size, request.page_token)
        return pb.ListVersionsResponse(versions=[from_version(one) for one in found], next_page_token=token)

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteVersionResponse:
        """See the contract."""
        actor = actor_of(context, request.deleted_by)
        await self._rules.versions.delete(request.model, request.version, request.reason, actor)
        return pb.DeleteVersionResponse()

    async def HoldVersion(
        self, request: pb.HoldVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.HoldVersionResponse:
        """See the contract."""
        actor = actor_of(context, request.holder)
        await self._rules.versions.hold(request.model, request.version, request.hold_s, actor)
        return pb.HoldVersionResponse()

    async def ReleaseVersion(
        self, request: pb.ReleaseVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReleaseVersionResponse:
        """See the contract."""
        await self._rules.versions.release(request.model, request.version, actor_of(context, request.holder))
        return pb.ReleaseVersionResponse()

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: grpc.aio.ServicerContext
    ) -> pb.CollectGarbageResponse:
        """See the contract."""
        return from_collected(await self._rules.garbage.collect(actor_of(context), dry_run=request.dry_run))

    async def AddSignature(
        self, request: pb.AddSignatureRequest, context: grpc.aio.ServicerContext
    ) -> pb.AddSignatureResponse:
        """See the contract."""
        await self._rules.versions.sign(request.model, request.version, request.signature, actor_of(context))
        return pb.AddSignatureResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: grpc.aio.ServicerContext) -> pb.SetAliasResponse:
        """See the contract."""
        move = await self._rules.aliases.set(to_change(request), actor_of(context, request.moved_by))
        return pb.SetAliasResponse(previous_version=move.previous, version=move.version, sequence=move.sequence)

    async def ListAliasMoves(
        self, request: pb.ListAliasMovesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListAliasMovesResponse:
        """See the contract."""
        asked, token = request.page_size, request.page_token
        moves, token = await self._rules.aliases.moves(request.model, request.alias, asked, token)
        return pb.ListAliasMovesResponse(moves=[from_move(move) for move in moves], next_page_token=token)

    # The stubs know only a handler that yields; this one writes, because a write can have a deadline.
    async def WatchModel(  # type: ignore[override]
        self, request: pb.WatchModelRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """See the contract."""
        check_model_name(request.model)
        if request.alias:
            check_alias(request.alias)
        news = self._rules.watch.follow(request.model, request.alias, request.after_sequence)
        await send(context, news, self._news_messages, self._rules.send_idle_s)

    async def PutKeyring(
        self, request: pb.PutKeyringRequest, context: grpc.aio.ServicerContext
    ) -> pb.PutKeyringResponse:
        """See the contract."""
        version = await self._rules.signatures.put_keyring(request.keyring, actor_of(context))
        return pb.PutKeyringResponse(version=version)

    async def ListKeyrings(
        self, request: pb.ListKeyringsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListKeyringsResponse:
        """See the contract."""
        return pb.ListKeyringsResponse(keyrings=await self._rules.signatures.keyrings(request.after_version))

    async def ListEvents(
        self, request: pb.ListEventsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListEventsResponse:
        """See the contract."""
        events, token = await self._rules.events.list(request.name, request.page_size, request.page_token)
        return pb.ListEventsResponse(events=[from_event(event) for event in events], next_page_token=token)

    async def PutProfile(
        self, request: pb.PutProfileRequest, context: grpc.aio.ServicerContext
    ) -> pb.PutProfileResponse:
        """See the contract."""
        await self._rules.profiles.put(request.model, request.version, profile_from_message(request.profile))
        return pb.PutProfileResponse()

    async def ListProfiles(
        self, request: pb.ListProfilesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListProfilesResponse:
        """See the contract."""
        found = await self._rules.profiles.list(request.model, request.version, request.node)
        return pb.ListProfilesResponse(profiles=[from_profile(profile, moment) for profile, moment in found])
