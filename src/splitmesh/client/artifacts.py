"""Artefacts over the link to the registry: up and down, resumed where a broken link left them, verified at both ends.

Knows the streams PushArtifact and PullArtifact. Does not know versions or aliases (``registry``).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.transfer import Partial, Patience, Source, check_digest, is_passing
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

SERVICE = "registry"
TRIES = 8
"""Failures without progress before a transfer gives up; with a registry that refuses connections that is about 8 s (measured)."""
MESSAGE_DEADLINE_S = 30.0
"""Longest wait for one message of a transfer to go or come, seconds."""

UPLOAD_ACCEPTED = (("upload-accepted", "1"),)
"""Initial metadata by which the registry says that it wants the content. Without it the call is answered already, and
data written to it would only hide the answer (measured: a write that fails is reported as INTERNAL, 20 times of 20)."""

OnProgress = Callable[[int, int], None]
"""Told bytes done and bytes altogether."""


@dataclass(frozen=True)
class ArtifactRef:
    """A file by content."""

    name: str
    sha256: str
    size_bytes: int


class Artifacts:
    """The artefacts of the service ``registry`` that ``channels`` can find."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    async def push(self, name: str, content: bytes | Path, on_progress: OnProgress | None) -> ArtifactRef:
        """See :meth:`splitmesh.client.registry.RegistryClient.push_artifact`."""
        source = await Source(content).measure()
        patience = Patience(tries=TRIES)
        offset, started_anew = 0, False
        while True:
            try:
                async with mesh_errors():
                    stub = await self._stub()
                    known = await stub.GetUpload(pb.GetUploadRequest(sha256=source.sha256))
                    # A part longer than the whole is somebody's mistake; the registry starts it anew.
                    offset = known.offset if known.offset <= source.size_bytes else 0
                    patience.reached(offset)
                    if not known.complete:
                        await _push_from(stub, source, offset, on_progress)
                break
            except MeshError as error:
                if error.reason is Reason.DIGEST_MISMATCH and offset and not started_anew:
                    # The first bytes were not ours; the registry has dropped them.
                    started_anew = True
                elif is_passing(error):
                    await patience.after(error)
                else:
                    raise
        if on_progress:
            on_progress(source.size_bytes, source.size_bytes)
        return ArtifactRef(name, source.sha256, source.size_bytes)

    async def pull(self, ref: ArtifactRef, on_progress: OnProgress | None) -> bytes:
        """See :meth:`splitmesh.client.registry.RegistryClient.pull_artifact`."""
        content = bytearray()
        async with aclosing(self._pieces(ref, 0)) as pieces:
            async for data in pieces:
                content += data
                if on_progress:
                    on_progress(len(content), ref.size_bytes)
        check_digest((await asyncio.to_thread(hashlib.sha256, content)).hexdigest(), ref.sha256)
        return bytes(content)

    async def pull_to_file(self, ref: ArtifactRef, path: Path, on_progress: OnProgress | None) -> None:
        """See :meth:`splitmesh.client.registry.RegistryClient.pull_to_file`."""
        partial = await asyncio.to_thread(Partial, path, ref.sha256, ref.size_bytes)
        try:
            while not await self._complete(partial, ref, on_progress):
                pass
        finally:
            await asyncio.to_thread(partial.close)

    async def _complete(self, partial: Partial, ref: ArtifactRef, on_progress: OnProgress | None) -> bool:
        """False when what an earlier process left was damaged: it is gone, and the next try begins at byte 0."""
        resumed = partial.offset > 0
        async with aclosing(self._pieces(ref, partial.offset)) as pieces:
            async for data in pieces:
                await asyncio.to_thread(partial.append, data)
                if on_progress:
                    on_progress(partial.offset, ref.size_bytes)
        try:
            await asyncio.to_thread(partial.finish)
        except MeshError:
            await asyncio.to_thread(partial.empty)
            if not resumed:
                raise
            return False
        return True

    async def _pieces(self, ref: ArtifactRef, offset: int) -> AsyncGenerator[bytes, None]:
        """The content from ``offset`` to its end, across broken links; not verified."""
        patience = Patience(tries=TRIES)
        while True:
            try:
                async with mesh_errors():
                    stub = await self._stub()
                    call = stub.PullArtifact(pb.PullArtifactRequest(sha256=ref.sha256, offset=offset))
                try:
                    while (data := await _next_piece(call, ref, offset)) is not None:
                        offset += len(data)
                        patience.reached(offset)
                        yield data
                finally:
                    call.cancel()
                if offset == ref.size_bytes:
                    return
                raise MeshError(Reason.SERVICE_UNAVAILABLE, f"the download of {ref.name} ended at byte {offset}")
            except MeshError as error:
                if not is_passing(error):
                    raise
                await patience.after(error)

    async def _stub(self) -> RegistryServiceStub:
        return RegistryServiceStub(await self._channels.to(SERVICE))


async def _push_from(stub: RegistryServiceStub, source: Source, offset: int, on_progress: OnProgress | None) -> None:
    call: Any = stub.PushArtifact()
    start = pb.PushStart(sha256=source.sha256, size_bytes=source.size_bytes, offset=offset)
    try:
        # Written to a call that the registry has already answered; the answer, awaited below, says why.
        with suppress(asyncio.InvalidStateError):
            await _in_time(call.write(pb.PushArtifactRequest(start=start)))
            accepted = set(UPLOAD_ACCEPTED) <= set(await _in_time(call.initial_metadata()) or ())
            while accepted and offset < source.size_bytes and (data := await source.read(offset)):
                await _in_time(call.write(pb.PushArtifactRequest(data=data)))
                offset += len(data)
                if on_progress:
                    on_progress(offset, source.size_bytes)
            if accepted:
                await _in_time(call.done_writing())
        await _in_time(call)
    finally:
        call.cancel()


async def _next_piece(call: Any, ref: ArtifactRef, offset: int) -> bytes | None:
    """None at the end of the stream; PROTOCOL_VIOLATION for bytes that do not belong there."""
    async with mesh_errors():
        message = await _in_time(call.read())
    if not isinstance(message, pb.PullArtifactResponse):
        return None
    if (message.offset, message.size_bytes) != (offset, ref.size_bytes) or offset + len(message.data) > ref.size_bytes:
        raise MeshError(
            Reason.PROTOCOL_VIOLATION,
            f"asked for byte {offset} of {ref.size_bytes} of {ref.name}, got {len(message.data)} bytes from byte "
            f"{message.offset} of {message.size_bytes}",
        )
    return message.data


async def _in_time(operation: Any) -> Any:
    try:
        async with asyncio.timeout(MESSAGE_DEADLINE_S):
            return await operation
    except TimeoutError as error:
        raise MeshError(
            Reason.DEADLINE_EXPIRED, f"the registry did not go on for {MESSAGE_DEADLINE_S} s", retry_after_s=0.0
        ) from error
