"""Versions of datasets in the registry: made from manifests, signed and verified where there is a trust.

Knows the service DatasetService and manifests. Pictures are ``dataset_push``'s and ``dataset_pull``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from uuid import uuid4

from splitmesh.api.datasets.v1 import datasets_pb2 as pb
from splitmesh.api.datasets.v1.datasets_pb2_grpc import DatasetServiceStub
from splitmesh.client.artifacts import SERVICE, TRIES, Artifacts
from splitmesh.client.rate import Rate
from splitmesh.client.registry_values import ArtifactRef, OnProgress
from splitmesh.client.transfer import Patience, is_passing
from splitmesh.datasets.manifest import MAX_MANIFEST_BYTES, Dataset
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors

CREATE_DEADLINE_S = 300.0
"""Deadline of CreateDatasetVersion, seconds: the registry reads the whole manifest first."""
PAGE = 1000
MANIFEST = "manifest.json"


class DatasetTrust(Protocol):
    """Who decides which manifests may be used here, and signs those that are made here: ``client.trust.Trust``."""

    async def verify_dataset(
        self,
        dataset: str,
        sha256: str,
        size_bytes: int,
        signatures: Sequence[bytes],
        *,
        facts: Mapping[str, str] | None = None,
        create_time: datetime | None = None,
    ) -> None:
        """SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED unless the manifest may be used."""

    async def check_dataset_signer(self, dataset: str) -> None:
        """KEY_UNKNOWN, KEY_REVOKED where what :meth:`sign_dataset` makes is known to count for nothing."""

    def sign_dataset(self, dataset: str, sha256: str, size_bytes: int, facts: Mapping[str, str]) -> bytes | None:
        """A DSSE envelope; None where nothing signs here."""


@dataclass(frozen=True)
class SplitCount:
    """Of one split of a version."""

    split: str
    pictures: int
    groups: int
    labels: Mapping[str, int]
    """Pictures by label; of detections: boxes by label."""


@dataclass(frozen=True)
class DatasetVersionInfo:
    """One immutable version."""

    dataset: str
    version: int
    manifest: ArtifactRef
    parent: int
    task: str
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    pictures: int
    picture_bytes: int
    pictures_here: int | None
    """How many of its pictures the registry has; None: nobody asked, or it takes longer to count."""
    splits: tuple[SplitCount, ...]
    created_by: str
    description: str
    create_time: datetime
    signatures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class DatasetInfo:
    """A dataset by name."""

    name: str
    latest_version: int
    create_time: datetime


class DatasetClient:
    """Speaks to the service ``registry`` that ``channels`` can find.

    Args:
        channels: find it.
        trust: verifies manifests before they are handed out, and signs those that are made; None: nobody does.
        rate: one for all transfers of this process; None: as fast as the link.
    """

    def __init__(self, channels: Channels, *, trust: DatasetTrust | None = None, rate: Rate | None = None) -> None:
        self._channels = channels
        self._trust = trust
        self._artifacts = Artifacts(channels, rate)

    async def create(
        self,
        dataset: str,
        manifest: Dataset | bytes,
        *,
        created_by: str,
        parent: int = 0,
        description: str = "",
        request_id: str = "",
        on_progress: OnProgress | None = None,
    ) -> DatasetVersionInfo:
        """Uploads the manifest, signs where there is a key, makes the version; safe to repeat by ``request_id``.

        Raises:
            MeshError: FIELD_INVALID (a name, or bytes that are no manifest), VERSION_NOT_FOUND (of the parent),
                SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED, FRAME_TOO_LARGE, STORAGE_FULL, QUEUE_FULL, or
                what kept the registry from answering.
        """
        if self._trust is not None:
            await self._trust.check_dataset_signer(dataset)
        data = manifest if isinstance(manifest, bytes) else await asyncio.to_thread(manifest.to_json)
        ref = await self._artifacts.push(MANIFEST, data, on_progress)
        request = pb.CreateDatasetVersionRequest(
            dataset=dataset,
            manifest_sha256=ref.sha256,
            parent=parent,
            created_by=created_by,
            description=description,
            # With one of our own a lost answer can be asked for again without making a second version.
            request_id=request_id or uuid4().hex,
            signature=self._sign(dataset, ref, _facts(created_by, parent)),
        )
        patience = Patience(tries=TRIES)
        while True:
            try:
                async with mesh_errors():
                    stub = await self._stub()
                    response = await stub.CreateDatasetVersion(request, timeout=CREATE_DEADLINE_S)
                return _answer_of(response.version, dataset)
            except MeshError as error:
                # A manifest that took too long to read would take too long again.
                if error.reason is Reason.DEADLINE_EXPIRED or not is_passing(error):
                    raise
                await patience.after(error)

    async def get(self, dataset: str, version: int = 0, *, count_pictures: bool = False) -> DatasetVersionInfo:
        """By number, 0: the newest; DATASET_NOT_FOUND, VERSION_NOT_FOUND."""
        request = pb.GetDatasetVersionRequest(dataset=dataset, version=version, count_pictures=count_pictures)
        async with mesh_errors():
            stub = await self._stub()
            response = await stub.GetDatasetVersion(request)
        return _answer_of(response.version, dataset, version)

    async def list(self) -> list[DatasetInfo]:
        """All, by name."""
        found: list[DatasetInfo] = []
        request = pb.ListDatasetsRequest(page_size=PAGE)
        while True:
            async with mesh_errors():
                page = await (await self._stub()).ListDatasets(request)
            found += [
                DatasetInfo(one.name, one.latest_version, one.create_time.ToDatetime(tzinfo=UTC))
                for one in page.datasets
            ]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def versions(self, dataset: str) -> Sequence[DatasetVersionInfo]:
        """All of one dataset, newest first; DATASET_NOT_FOUND."""
        found: list[DatasetVersionInfo] = []
        request = pb.ListDatasetVersionsRequest(dataset=dataset, page_size=PAGE)
        while True:
            async with mesh_errors():
                page = await (await self._stub()).ListDatasetVersions(request)
            found += [_answer_of(message, dataset) for message in page.versions]
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def verify(self, version: DatasetVersionInfo) -> None:
        """Whether the manifest may be used here: SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED."""
        if self._trust is not None:
            await self._trust.verify_dataset(
                version.dataset,
                version.manifest.sha256,
                version.manifest.size_bytes,
                version.signatures,
                facts=_facts(version.created_by, version.parent),
                create_time=version.create_time,
            )

    async def manifest(self, version: DatasetVersionInfo, *, on_progress: OnProgress | None = None) -> Dataset:
        """The manifest of a version, verified by its signatures and its digest.

        Raises:
            MeshError: as :meth:`verify`; ARTIFACT_NOT_FOUND, DIGEST_MISMATCH, FIELD_INVALID for content that is none.
        """
        await self.verify(version)
        if version.manifest.size_bytes > MAX_MANIFEST_BYTES:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"the manifest has {version.manifest.size_bytes} bytes; at most {MAX_MANIFEST_BYTES} are read",
            )
        data = await self._artifacts.pull(version.manifest, on_progress)
        return await asyncio.to_thread(Dataset.from_json, data, sha256=version.manifest.sha256)

    async def delete(
        self, dataset: str, version: int, *, deleted_by: str, reason: str = "", even_if_used: bool = False
    ) -> bool:
        """Takes a version away for ever, with those of its pictures in the registry that no other one names; whether no version
        of any dataset names its manifest any more.

        DATASET_NOT_FOUND, VERSION_NOT_FOUND; VERSION_IN_USE, a model's lineage names it, unless ``even_if_used``.
        """
        request = pb.DeleteDatasetVersionRequest(
            dataset=dataset, version=version, deleted_by=deleted_by, reason=reason, even_if_used=even_if_used
        )
        async with mesh_errors():
            response = await (await self._stub()).DeleteDatasetVersion(request)
        unused: bool = response.manifest_unused
        return unused

    def _sign(self, dataset: str, ref: ArtifactRef, facts: Mapping[str, str]) -> bytes:
        """Empty where nothing signs here."""
        if self._trust is None:
            return b""
        return self._trust.sign_dataset(dataset, ref.sha256, ref.size_bytes, facts) or b""

    async def _stub(self) -> DatasetServiceStub:
        return DatasetServiceStub(await self._channels.to(SERVICE))


def _facts(created_by: str, parent: int) -> dict[str, str]:
    return {"created_by": created_by, "parent": str(parent)}


def _answer_of(message: pb.DatasetVersion, dataset: str, number: int = 0) -> DatasetVersionInfo:
    """PROTOCOL_VIOLATION for a version of another dataset, or another one than was asked for."""
    if message.dataset != dataset or number not in (0, message.version):
        asked = f"version {number} of {dataset!r}" if number else repr(dataset)
        raise MeshError(
            Reason.PROTOCOL_VIOLATION,
            f"asked for {asked}, the registry answers with version {message.version} of {message.dataset!r}",
        )
    return _version(message)


def _version(message: pb.DatasetVersion) -> DatasetVersionInfo:
    return DatasetVersionInfo(
        dataset=message.dataset,
        version=message.version,
        manifest=ArtifactRef(MANIFEST, message.manifest_sha256, message.manifest_bytes),
        parent=message.parent,
        task=message.task,
        classes=tuple(message.classes),
        sites=tuple(message.sites),
        pictures=message.pictures,
        picture_bytes=message.picture_bytes,
        pictures_here=message.pictures_here if message.HasField("pictures_here") else None,
        splits=tuple(SplitCount(one.split, one.pictures, one.groups, dict(one.labels)) for one in message.splits),
        created_by=message.created_by,
        description=message.description,
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
        signatures=tuple(message.signatures),
    )
