"""A detector by the Open Inference Protocol: as many boxes as there are, none included, never another sample's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.client import AnsweredBy, Reason
from splitmesh.oip.servicer import SERVICE
from tests.integration.test_head_detector import NAME, Frames, until
from tests.support.exit_nets import finding_detector
from tests.support.oip import OipClient, arrays, oip_client, refusal, request, said
from tests.support.worlds import World, serving, world

SERVERS = ("head", "tail")


@pytest.fixture(scope="module")
def frames() -> Frames:
    return Frames()


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.registry.create_version(NAME, finding_detector().artifacts(), created_by="compressor")
        await made.registry.set_alias(NAME, "production", 1)
        await made.start("tail")
        await made.start("head", models=NAME)
        await serving(made.addresses["head"], SERVICE)
        yield made


async def boxes(client: OipClient, frames: Frames, index: int) -> None:
    """Asserts that the answer is what the whole model finds."""
    response = await client.infer(request(NAME, {"x": frames.pictures[[index]]}))
    assert said(response)["answered_by"] in ("CLOUD_TAIL", "CLOUD_WHOLE")
    for name, found in arrays(response).items():
        expected = frames.whole[index][name]
        assert found.shape == expected.shape, name
        np.testing.assert_allclose(found.astype(float), expected.astype(float), atol=1e-5)


@pytest.mark.parametrize("server", SERVERS)
async def test_any_number_of_boxes_comes_back(edge: World, frames: Frames, server: str) -> None:
    counts = np.array([len(given["chosen"]) for given in frames.whole])
    chosen = [int(np.flatnonzero(counts == kind)[0]) for kind in np.unique(counts)]
    assert counts[chosen[0]] == 0
    async with oip_client(edge.addresses[server]) as client:
        await asyncio.gather(*(boxes(client, frames, index) for index in chosen))


@pytest.mark.parametrize("server", SERVERS)
async def test_samples_whose_answers_have_no_rows_of_their_own_come_one_by_one(
    edge: World, frames: Frames, server: str
) -> None:
    async with oip_client(edge.addresses[server]) as client:
        several = await refusal(client, request(NAME, {"x": frames.pictures[:2]}))
        assert several.reason in (Reason.TENSOR_SHAPE_MISMATCH, Reason.FIELD_INVALID)
        config = (await client.call("ModelConfig", pb.ModelConfigRequest(name=NAME))).config
        assert config.max_batch_size <= 1 or server == "head"


async def test_an_exit_that_can_only_say_nothing_never_answers_for_the_outputs(edge: World, frames: Frames) -> None:
    gateway = await edge.ready_mesh()
    surest = int(np.argmax(frames.rows[:, 0]))
    await until(gateway, frames.pictures[[surest]], AnsweredBy.EDGE_EXIT)
    async with oip_client(edge.addresses["head"]) as client:
        await boxes(client, frames, surest)
