"""RegistryService on the wire, the part that moves contents: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from services.registry.messages import content_messages, from_contents, from_count, from_piece, upload_messages
from services.registry.rules import Rules
from services.registry.send import send
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from splitmesh.client.artifacts import UPLOAD_ACCEPTED


class ContentServicer(RegistryServiceServicer):
    """See the contract for each."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    async def PushArtifact(
        self, request_iterator: AsyncIterator[pb.PushArtifactRequest], context: grpc.aio.ServicerContext
    ) -> pb.PushArtifactResponse:
        """See the contract."""
        async with aclosing(upload_messages(request_iterator)) as messages:
            done = await self._rules.push.receive(messages, lambda: context.send_initial_metadata(UPLOAD_ACCEPTED))
        return pb.PushArtifactResponse(sha256=done.sha256, size_bytes=done.size_bytes)

    async def GetUpload(self, request: pb.GetUploadRequest, context: grpc.aio.ServicerContext) -> pb.GetUploadResponse:
        """See the contract."""
        progress = await self._rules.contents.progress(request.sha256)
        # The caller will not send it but name it: from now on it counts as asked for, and the collector leaves it.
        if progress.complete and await self._rules.contents.missing([request.sha256]):
            return pb.GetUploadResponse()
        return pb.GetUploadResponse(offset=progress.offset, complete=progress.complete)

    # The stubs know only handlers that yield; those that stream write, because a write can have a deadline.
    async def PullArtifact(  # type: ignore[override]
        self, request: pb.PullArtifactRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """See the contract."""
        pieces = self._rules.pull.pieces(request.sha256, request.offset)
        await send(context, pieces, from_piece, self._rules.send_idle_s)

    async def FindMissing(
        self, request: pb.FindMissingRequest, context: grpc.aio.ServicerContext
    ) -> pb.FindMissingResponse:
        """See the contract."""
        return pb.FindMissingResponse(sha256s=await self._rules.small.missing(request.sha256s))

    async def PushContents(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.PushContentsRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """See the contract."""
        async with aclosing(content_messages(request_iterator)) as messages:
            await send(context, self._rules.small.receive(messages), from_count, self._rules.send_idle_s)

    async def PullContents(  # type: ignore[override]
        self, request: pb.PullContentsRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """See the contract."""
        await send(context, self._rules.small.pieces(request.sha256s), from_contents, self._rules.send_idle_s)

    async def MakeDelta(self, request: pb.MakeDeltaRequest, context: grpc.aio.ServicerContext) -> pb.MakeDeltaResponse:
        """See the contract."""
        made = await self._rules.deltas.make(request.base_sha256, request.sha256)
        if made is None:
            return pb.MakeDeltaResponse()
        sha256, size_bytes = made
        return pb.MakeDeltaResponse(delta=pb.Artifact(name="delta", sha256=sha256, size_bytes=size_bytes))

    async def ApplyDelta(
        self, request: pb.ApplyDeltaRequest, context: grpc.aio.ServicerContext
    ) -> pb.ApplyDeltaResponse:
        """See the contract."""
        await self._rules.deltas.apply(request.base_sha256, request.delta_sha256, request.sha256, request.size_bytes)
        return pb.ApplyDeltaResponse()
