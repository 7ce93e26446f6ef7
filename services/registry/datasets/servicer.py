"""DatasetService on the wire: decode, call, encode. The rules are in ``datasets``."""

from __future__ import annotations

import grpc

from services.registry.datasets.datasets import Datasets
from services.registry.datasets.messages import from_dataset, from_dataset_version, to_wanted
from splitmesh.api.datasets.v1 import datasets_pb2 as pb
from splitmesh.api.datasets.v1.datasets_pb2_grpc import DatasetServiceServicer


class DatasetServicer(DatasetServiceServicer):
    """One registry's datasets. How many pictures are here is counted where a request asks for it."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    async def CreateDatasetVersion(
        self, request: pb.CreateDatasetVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateDatasetVersionResponse:
        """See the contract."""
        version = await self._datasets.create(to_wanted(request), context.peer())
        return pb.CreateDatasetVersionResponse(version=from_dataset_version(version))

    async def GetDatasetVersion(
        self, request: pb.GetDatasetVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetDatasetVersionResponse:
        """See the contract."""
        version = await self._datasets.get(request.dataset, request.version)
        here = await self._datasets.pictures_here(version) if request.count_pictures else None
        return pb.GetDatasetVersionResponse(version=from_dataset_version(version, here))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListDatasetsResponse:
        """See the contract."""
        datasets, token = await self._datasets.list_datasets(request.page_size, request.page_token)
        return pb.ListDatasetsResponse(datasets=[from_dataset(one) for one in datasets], next_page_token=token)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListDatasetVersionsResponse:
        """See the contract."""
        versions, token = await self._datasets.list_versions(request.dataset, request.page_size, request.page_token)
        return pb.ListDatasetVersionsResponse(
            versions=[from_dataset_version(version) for version in versions], next_page_token=token
        )

    async def DeleteDatasetVersion(
        self, request: pb.DeleteDatasetVersionRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteDatasetVersionResponse:
        """See the contract."""
        unused = await self._datasets.delete(
            request.dataset,
            request.version,
            request.reason,
            request.deleted_by,
            context.peer(),
            even_if_used=request.even_if_used,
        )
        return pb.DeleteDatasetVersionResponse(manifest_unused=unused)
