"""What a registry answers about datasets: a version of another one, or another version, is refused whoever signed it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from splitmesh.api.datasets.v1 import datasets_pb2 as pb
from splitmesh.api.datasets.v1.datasets_pb2_grpc import add_DatasetServiceServicer_to_server
from splitmesh.client.datasets import DatasetClient
from splitmesh.errors import MeshError, Reason
from tests.support.scripted_registry import serving


class Lying:
    """Answers every question with the same version."""

    def __init__(self, dataset: str, version: int) -> None:
        self.message = pb.DatasetVersion(dataset=dataset, version=version)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None  # calls that nobody makes here

    async def GetDatasetVersion(self, request: Any, context: Any) -> pb.GetDatasetVersionResponse:
        return pb.GetDatasetVersionResponse(version=self.message)

    async def ListDatasetVersions(self, request: Any, context: Any) -> pb.ListDatasetVersionsResponse:
        return pb.ListDatasetVersionsResponse(versions=[self.message])


ASK: dict[str, Callable[[DatasetClient], Awaitable[object]]] = {
    "by number": lambda client: client.get("boards", 3),
    "the newest": lambda client: client.get("boards"),
    "all": lambda client: client.versions("boards"),
}


@pytest.mark.parametrize("ask", ASK)
async def test_a_version_of_another_dataset_answers_no_question(ask: str) -> None:
    async with serving(Lying("boards", 3), add_DatasetServiceServicer_to_server) as channels:
        await ASK[ask](DatasetClient(channels))
    async with serving(Lying("cats", 3), add_DatasetServiceServicer_to_server) as channels:
        with pytest.raises(MeshError) as caught:
            await ASK[ask](DatasetClient(channels))
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION


async def test_another_number_than_asked_for_is_no_answer() -> None:
    async with serving(Lying("boards", 3), add_DatasetServiceServicer_to_server) as channels:
        with pytest.raises(MeshError) as caught:
            await DatasetClient(channels).get("boards", 4)
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
