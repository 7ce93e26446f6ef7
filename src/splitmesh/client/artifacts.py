"""Artefacts over the link to the registry: up and down, resumed where a broken link left them, verified at both ends.

Knows the streams PushArtifact and PullArtifact. Does not know versions, aliases or signatures (``registry``).
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.blobs.ahead import one_ahead
from splitmesh.client.partial import Partial
from splitmesh.client.rate import Rate
from splitmesh.client.registry_values import ArtifactRef, OnProgress
from splitmesh.client.transfer import PIECE_BYTES, Patience, Source, check_digest, in_thread, is_passing
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

SERVICE = "registry"
TRIES = 8
"""Failures without progress before a transfer gives up; with a registry that refuses connections that is about 8 s (measured)."""
MESSAGE_DEADLINE_S = 30.0
"""Longest wait for one message of a transfer to go or come, seconds."""

FINISH_DEADLINE_S = 300.0
"""Longest wait for the registry's answer to a whole upload, seconds: it may write it to another store first."""
MAX_UNSIZED_BYTES = 256 * 1024 * 1024

UPLOAD_ACCEPTED = (("upload-accepted", "1"),)
"""Initial metadata by which the registry says that it wants the content. Without it the call is answered already, and
data written to it would only hide the answer (measured: a write that fails is reported as INTERNAL, 20 times of 20)."""

SMALLEST_PIECE_BYTES = 16 * 1024
PIECE_S = 0.25
"""A piece is no larger than what the rate lets pass in this time, so that several transfers take turns."""


class Artifacts:
    """The artefacts of the service ``registry`` that ``channels`` can find; ``rate`` bounds both directions together."""

    def __init__(self, channels: Channels, rate: Rate | None = None) -> None:
        self._channels = channels if rate is None else channels.paced()
        self._rate = rate
        self._piece_bytes = PIECE_BYTES
        if rate is not None:
            self._piece_bytes = max(SMALLEST_PIECE_BYTES, min(PIECE_BYTES, int(rate.bytes_per_s * PIECE_S)))

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
                    # A part longer than the whole is somebody's mistake, and a whole that is not as long is damaged; the
                    # registry starts both anew.
                    is_damaged = known.complete and known.offset != source.size_bytes
                    offset = 0 if is_damaged or known.offset > source.size_bytes else known.offset
                    patience.reached(offset)
                    if is_damaged or not known.complete:
                        await self._push_from(stub, source, offset, on_progress)
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
        return await self._pull(ref.name, ref.sha256, ref.size_bytes, on_progress)

    async def pull_unsized(self, sha256: str) -> bytes:
        """A content of which only the digest is known; FRAME_TOO_LARGE above ``MAX_UNSIZED_BYTES``."""
        return await self._pull(sha256, sha256, None, None)

    async def _pull(self, name: str, sha256: str, size_bytes: int | None, on_progress: OnProgress | None) -> bytes:
        content = bytearray()
        async with aclosing(self._pieces(name, sha256, size_bytes, 0)) as pieces:
            async for data, total in pieces:
                content += data
                if on_progress:
                    on_progress(len(content), total)
        check_digest((await asyncio.to_thread(hashlib.sha256, content)).hexdigest(), sha256)
        return bytes(content)

    async def pull_to_file(self, ref: ArtifactRef, path: Path, on_progress: OnProgress | None) -> None:
        """See :meth:`splitmesh.client.registry.RegistryClient.pull_to_file`."""
        opened: list[Partial] = []
        try:
            await in_thread(lambda: opened.append(Partial(path, ref.sha256, ref.size_bytes)))
            while not await self._complete(opened[0], ref, on_progress):
                pass
        finally:
            for partial in opened:
                await in_thread(partial.close)

    async def _complete(self, partial: Partial, ref: ArtifactRef, on_progress: OnProgress | None) -> bool:
        """False when what an earlier process left was damaged: it is gone, and the next try begins at byte 0."""
        resumed = partial.offset > 0
        coming = self._pieces(ref.name, ref.sha256, ref.size_bytes, partial.offset)
        async with aclosing(one_ahead(coming)) as pieces:
            async for data, _ in pieces:
                await in_thread(functools.partial(partial.append, data))
                if on_progress:
                    on_progress(partial.offset, ref.size_bytes)
        try:
            await in_thread(partial.finish)
        except MeshError as error:
            if error.reason is not Reason.DIGEST_MISMATCH:
                raise
            await in_thread(partial.empty)
            if not resumed:
                raise
            return False
        return True

    async def _pieces(
        self, name: str, sha256: str, size_bytes: int | None, offset: int
    ) -> AsyncGenerator[tuple[bytes, int], None]:
        """The content from ``offset`` to its end, across broken links, and its size each time; not verified."""
        patience = Patience(tries=TRIES)
        while True:
            try:
                async with mesh_errors():
                    stub = await self._stub()
                    call = stub.PullArtifact(pb.PullArtifactRequest(sha256=sha256, offset=offset))
                try:
                    while (piece := await _next_piece(call, name, offset, size_bytes)) is not None:
                        data, size_bytes = piece
                        await self._allowed(len(data))
                        offset += len(data)
                        patience.reached(offset)
                        yield data, size_bytes
                finally:
                    call.cancel()
                if offset == size_bytes:
                    return
                raise MeshError(Reason.SERVICE_UNAVAILABLE, f"the download of {name} ended at byte {offset}")
            except MeshError as error:
                if not is_passing(error):
                    raise
                await patience.after(error)

    async def _push_from(
        self, stub: RegistryServiceStub, source: Source, offset: int, on_progress: OnProgress | None
    ) -> None:
        call: Any = stub.PushArtifact()
        start = pb.PushStart(sha256=source.sha256, size_bytes=source.size_bytes, offset=offset)
        try:
            # Written to a call that the registry has already answered; the answer, awaited below, says why.
            with suppress(asyncio.InvalidStateError):
                await in_time(call.write(pb.PushArtifactRequest(start=start)))
                accepted = set(UPLOAD_ACCEPTED) <= set(await in_time(call.initial_metadata()) or ())
                if accepted:
                    async with aclosing(one_ahead(source.pieces(offset, self._piece_bytes))) as pieces:
                        async for data in pieces:
                            await self._allowed(len(data))
                            await in_time(call.write(pb.PushArtifactRequest(data=data)))
                            offset += len(data)
                            if on_progress:
                                on_progress(offset, source.size_bytes)
                    await in_time(call.done_writing())
            await in_time(call, FINISH_DEADLINE_S)
        finally:
            call.cancel()

    async def _allowed(self, size_bytes: int) -> None:
        if self._rate is not None:
            await self._rate.take(size_bytes)

    async def _stub(self) -> RegistryServiceStub:
        return RegistryServiceStub(await self._channels.to(SERVICE))


async def _next_piece(call: Any, name: str, offset: int, size_bytes: int | None) -> tuple[bytes, int] | None:
    """The next bytes and how many there are altogether, None at the end; PROTOCOL_VIOLATION for what does not belong there."""
    async with mesh_errors():
        message = await in_time(call.read())
    if not isinstance(message, pb.PullArtifactResponse):
        return None
    if size_bytes is None:
        size_bytes = message.size_bytes
        if size_bytes > MAX_UNSIZED_BYTES:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"the content {name} has {size_bytes} bytes, at most {MAX_UNSIZED_BYTES} are held in memory",
                metadata={"limit_bytes": str(MAX_UNSIZED_BYTES)},
            )
    if message.size_bytes != size_bytes:
        raise MeshError(
            Reason.DIGEST_MISMATCH,
            f"the registry has {message.size_bytes} bytes of {name}, which has {size_bytes}: its file is damaged, and whole "
            "again when somebody who has the content pushes it",
            metadata={"size_bytes": str(message.size_bytes), "expected_bytes": str(size_bytes)},
        )
    if message.offset != offset or offset + len(message.data) > size_bytes:
        raise MeshError(
            Reason.PROTOCOL_VIOLATION,
            f"asked for byte {offset} of {size_bytes} of {name}, got {len(message.data)} bytes from byte "
            f"{message.offset} of {message.size_bytes}",
        )
    return message.data, size_bytes


async def in_time(operation: Any, deadline_s: float = MESSAGE_DEADLINE_S) -> Any:
    """What the operation gives; DEADLINE_EXPIRED after so long."""
    try:
        async with asyncio.timeout(deadline_s):
            return await operation
    except TimeoutError as error:
        raise MeshError(
            Reason.DEADLINE_EXPIRED, f"the registry did not go on for {deadline_s} s", retry_after_s=0.0
        ) from error
