"""The datasets of a registry over gRPC, for tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import pytest

from splitmesh.api.datasets.v1 import datasets_pb2 as pb
from splitmesh.api.datasets.v1.datasets_pb2_grpc import DatasetServiceStub
from splitmesh.api.registry.v1 import registry_pb2
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import item_of
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from tests.integration.registry_world import WAIT_S, World
from tests.unit.dataset_items import encoded, scene

PICTURES = [encoded(scene(n)) for n in range(6)]


def version_of(*pictures: bytes, label: str = "good") -> Dataset:
    """Of pictures that exist; two sites' turn and turn about."""
    items = [item_of(data, label=label, group=f"g{n}", site=("lyon", "oulu")[n % 2]) for n, data in enumerate(pictures)]
    return freeze_items(items, seed=1, shares={"train": 1})


@dataclass
class Sets:
    """The datasets of a registry."""

    world: World

    @property
    def stub(self) -> DatasetServiceStub:
        return DatasetServiceStub(self.world.channels.at(self.world.address))

    async def push(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        await self.world.push([data], sha256=sha256, size_bytes=len(data))
        return sha256

    async def create(self, manifest: Dataset | bytes, name: str = "joints", **fields: Any) -> pb.DatasetVersion:
        """Uploads the manifest and makes a version."""
        data = manifest if isinstance(manifest, bytes) else manifest.to_json()
        return await self.create_of(await self.push(data), name, **fields)

    async def create_of(self, sha256: str, name: str = "joints", **fields: Any) -> pb.DatasetVersion:
        request = pb.CreateDatasetVersionRequest(
            dataset=name, manifest_sha256=sha256, **{"created_by": "ana", **fields}
        )
        async with mesh_errors():
            answer: pb.CreateDatasetVersionResponse = await self.stub.CreateDatasetVersion(request, timeout=WAIT_S)
        return answer.version

    async def get(self, version: int = 0, name: str = "joints", *, count: bool = False) -> pb.DatasetVersion:
        async with mesh_errors():
            request = pb.GetDatasetVersionRequest(dataset=name, version=version, count_pictures=count)
            answer: pb.GetDatasetVersionResponse = await self.stub.GetDatasetVersion(request, timeout=WAIT_S)
        return answer.version

    async def versions(self, name: str = "joints", size: int = 0) -> list[int]:
        """Numbers, page by page."""
        found: list[int] = []
        request = pb.ListDatasetVersionsRequest(dataset=name, page_size=size)
        while True:
            async with mesh_errors():
                page = await self.stub.ListDatasetVersions(request, timeout=WAIT_S)
            assert len(page.versions) <= (size or 100)
            found += [one.version for one in page.versions]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def delete(self, version: int, name: str = "joints", **fields: Any) -> bool:
        """Whether nothing names its manifest any more."""
        request = pb.DeleteDatasetVersionRequest(dataset=name, version=version, deleted_by="ana", **fields)
        async with mesh_errors():
            answer = await self.stub.DeleteDatasetVersion(request, timeout=WAIT_S)
        return bool(answer.manifest_unused)

    async def collect(self) -> int:
        """Contents that a collection removed."""
        answer = await self.world.stub.CollectGarbage(registry_pb2.CollectGarbageRequest(), timeout=WAIT_S)
        return int(answer.contents)


async def refusal(attempt: Any) -> MeshError:
    with pytest.raises(MeshError) as error:
        await attempt
    return error.value
