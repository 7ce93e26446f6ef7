"""What tests of a node's cache share: registries that stand for the client, and versions to keep."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from splitmesh.client.cache import ModelCache
from splitmesh.client.partial import Partial
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from splitmesh.model.manifest import HEAD, MANIFEST
from tests.integration.small_model import small_manifest

HEAD_BYTES = b"the head of version 3"
MANIFEST_BYTES = small_manifest().to_json().encode()


def ref_of(name: str, content: bytes) -> ArtifactRef:
    return ArtifactRef(name, hashlib.sha256(content).hexdigest(), len(content))


VERSION = VersionInfo(
    model="joints",
    version=3,
    parent=2,
    artifacts={HEAD: ref_of(HEAD, HEAD_BYTES), MANIFEST: ref_of(MANIFEST, MANIFEST_BYTES)},
    created_by="compress",
    description="ünïcode",
    aliases=("production", "tested"),
    create_time=datetime(2025, 3, 1, 12, 30, 5, 250_000, tzinfo=UTC),
    lineage=Lineage(
        parents=(VersionName("backbone", 7),),
        datasets=(DatasetUse("boards", 2, "c" * 64, "val"),),
        task="compress",
        code_version="1a2b3c",
        recipe_sha256="d" * 64,
        seeds=(1, -5),
        metrics={"accuracy": 0.9875},
    ),
    signatures=(b'{"payload": "1"}', b"\x00\xff"),
    holders=("deployment/line-4",),
)


class Pulling:
    """Writes files as the client does, and trusts everything until told otherwise."""

    refusal: MeshError | None = None
    signed_since: tuple[bytes, ...] = ()

    def __init__(self) -> None:
        self.bases: list[Path | None] = []

    async def verify(self, version: VersionInfo) -> VersionInfo:
        if self.refusal is not None:
            raise self.refusal
        return replace(version, signatures=self.signed_since) if self.signed_since else version

    async def pull_to_file(
        self, ref: ArtifactRef, path: Path, *, base: Path | None = None, on_progress: Any = None
    ) -> None:
        """Goes on with what is there."""
        self.bases.append(base)
        content = await self.content(ref)
        partial = Partial(path, ref.sha256, ref.size_bytes)
        try:
            partial.append(content[partial.offset :])
            partial.finish()
        finally:
            partial.close()

    async def pull_artifact(self, ref: ArtifactRef) -> bytes:
        return await self.content(ref)

    async def content(self, ref: ArtifactRef) -> bytes:
        raise NotImplementedError


class OneVersion(Pulling):
    """Has one version; counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.reachable = True

    async def content(self, ref: ArtifactRef) -> bytes:
        await self._ask(ref.name)
        return {HEAD: HEAD_BYTES, MANIFEST: MANIFEST_BYTES}[ref.name]

    async def get_version(self, model: str, version: int) -> VersionInfo:
        await self._ask(f"{model}:{version}")
        if (model, version) != (VERSION.model, VERSION.version):
            raise MeshError(Reason.VERSION_NOT_FOUND, f"{model} {version}")
        return VERSION

    async def _ask(self, what: str) -> None:
        self.asked.append(what)
        await asyncio.sleep(0)
        if not self.reachable:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the cable is cut")


def cache_in(folder: Path, registry: Any, **options: Any) -> ModelCache:
    return ModelCache(folder, cast(RegistryClient, registry), **options)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


SIZE = 100


def numbered(version: int) -> VersionInfo:
    """With one part of 100 bytes that no other version has."""
    return replace(VERSION, version=version, artifacts={HEAD: ref_of(HEAD, content_of(version))})


def content_of(version: int) -> bytes:
    return bytes([version]) * SIZE


class ManyVersions(Pulling):
    """A registry of all the numbered versions."""

    async def content(self, ref: ArtifactRef) -> bytes:
        return next(content for content in map(content_of, range(256)) if ref_of(HEAD, content) == ref)

    async def get_version(self, model: str, version: int) -> VersionInfo:
        return numbered(version)
