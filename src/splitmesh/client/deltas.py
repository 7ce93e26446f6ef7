"""Patches between contents, so that a version that differs little from another one costs little to push or pull.

The format is ``splitmesh.blobs.delta``'s. Every way through here ends in a digest that is verified, or in None: then the whole
content is moved instead. Knows no versions.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.blobs.delta import apply_delta, make_delta
from splitmesh.client.artifacts import SERVICE, Artifacts
from splitmesh.client.registry_messages import artifact_from_message
from splitmesh.client.registry_values import ArtifactRef, OnProgress
from splitmesh.client.transfer import Patience, Source, check_digest
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels, mesh_errors

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)

DELTA_DEADLINE_S = 120.0
"""Deadline of MakeDelta and ApplyDelta, seconds: the registry reads, compares and writes contents for it."""
MIN_BYTES, MAX_BYTES = 64 * 1024, 128 * 1024 * 1024
"""Contents that are patched: a smaller one is sent at once, and base, content and patch of a larger one are much memory."""
MAX_SHARE = 0.5
"""A patch above this share of the whole is not worth its trouble."""


class Deltas:
    """Patches to and from the service ``registry`` that ``channels`` can find; at most ``most`` are computed at once."""

    def __init__(self, channels: Channels, artifacts: Artifacts, *, most: int = 1) -> None:
        self._channels = channels
        self._artifacts = artifacts
        self._computing = asyncio.Semaphore(most)

    async def make(self, base_sha256: str, sha256: str) -> ArtifactRef | None:
        """See :meth:`splitmesh.client.registry.RegistryClient.make_delta`."""
        request = pb.MakeDeltaRequest(base_sha256=base_sha256, sha256=sha256)
        async with mesh_errors():
            answer = await (await self._stub()).MakeDelta(request, timeout=DELTA_DEADLINE_S)
        return artifact_from_message(answer.delta) if answer.HasField("delta") else None

    async def apply(self, base_sha256: str, delta_sha256: str, sha256: str, size_bytes: int) -> None:
        """See :meth:`splitmesh.client.registry.RegistryClient.apply_delta`."""
        request = pb.ApplyDeltaRequest(
            base_sha256=base_sha256, delta_sha256=delta_sha256, sha256=sha256, size_bytes=size_bytes
        )
        async with mesh_errors():
            await (await self._stub()).ApplyDelta(request, timeout=DELTA_DEADLINE_S)

    async def pull(self, ref: ArtifactRef, base: Path, left_bytes: int) -> bytes | None:
        """The content, made of the file ``base`` and a patch; None where that is not possible, or no less than ``left_bytes``."""
        if min(ref.size_bytes, left_bytes) < MIN_BYTES or ref.size_bytes > MAX_BYTES:
            return None
        try:
            async with self._computing:
                old = await asyncio.to_thread(_read, base)
                was = await Source(old).measure()
                delta = await _when_free(lambda: self.make(was.sha256, ref.sha256))
                if delta is None or delta.size_bytes > left_bytes * MAX_SHARE:
                    return None
                patch = await self._artifacts.pull(delta, None)
                return await asyncio.to_thread(_apply, old, patch, ref)
        except MeshError as error:
            log.info("%s is fetched whole, not as a patch: %s", ref.name, error)
            return None

    async def push(
        self, name: str, content: bytes | Path, base: bytes | Path, on_progress: OnProgress
    ) -> ArtifactRef | None:
        """The registry has the content now, by a patch to ``base``; None where that is not possible, or not worth it."""
        try:
            async with self._computing:
                old, new = await asyncio.to_thread(_read, base), await asyncio.to_thread(_read, content)
                return await self._push(name, old, new, on_progress)
        except MeshError as error:
            log.info("%s is sent whole, not as a patch: %s", name, error)
            return None

    async def _push(self, name: str, old: bytes, new: bytes, on_progress: OnProgress) -> ArtifactRef | None:
        was, is_now = await Source(old).measure(), await Source(new).measure()
        if was.sha256 == is_now.sha256 or len(new) < MIN_BYTES:
            return None
        missing = await self._missing(was.sha256, is_now.sha256)
        if was.sha256 in missing or is_now.sha256 not in missing:
            return None
        patch = await asyncio.to_thread(make_delta, old, new)
        if len(patch) > len(new) * MAX_SHARE:
            return None

        def told(done: int, total: int) -> None:
            # The last byte counts when the registry has made the content of it.
            on_progress(min(len(new) * done // max(total, 1), len(new) - 1), len(new))

        delta = await self._artifacts.push(f"{name}.delta", patch, told)
        await _when_free(lambda: self.apply(was.sha256, delta.sha256, is_now.sha256, len(new)))
        on_progress(len(new), len(new))
        return ArtifactRef(name, is_now.sha256, len(new))

    async def _missing(self, *sha256s: str) -> set[str]:
        async with mesh_errors():
            answer = await (await self._stub()).FindMissing(pb.FindMissingRequest(sha256s=sha256s))
        return set(answer.sha256s)

    async def _stub(self) -> RegistryServiceStub:
        return RegistryServiceStub(await self._channels.to(SERVICE))


async def _when_free(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The registry makes few patches at once; waiting for it costs less than moving the whole."""
    patience = Patience(tries=2)
    while True:
        try:
            return await ask()
        except MeshError as error:
            if error.reason is not Reason.QUEUE_FULL:
                raise
            await patience.after(error)


def _read(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        with content.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise field_error("base", f"cannot read {content.name}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise field_error("base", f"{content.name} has more than {MAX_BYTES} bytes")
    return data


def _apply(old: bytes, patch: bytes, ref: ArtifactRef) -> bytes:
    content = apply_delta(old, patch, ref.size_bytes)
    check_digest(hashlib.sha256(content).hexdigest(), ref.sha256)
    return content
