"""The head by the Open Inference Protocol at its edges: no model yet, no tail, a restart, a stop, several inputs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.client import Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import MANIFEST
from splitmesh.oip.servicer import SERVICE
from splitmesh.runtime import open_session
from tests.support.models import EASY, HARD
from tests.support.oip import arrays, oip_client, planes, refusal, request, said
from tests.support.worlds import MODEL, NO_EXIT, WAIT_S, World, serving, world
from tests.unit.onnx_nets import siamese


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        await made.start("tail")
        yield made


async def test_a_head_without_a_model_is_live_and_not_ready(edge: World) -> None:
    await edge.start("head", models="nowhere")
    async with oip_client(edge.addresses["head"]) as client:
        assert (await client.call("ServerLive", pb.ServerLiveRequest())).live
        assert not (await client.call("ServerReady", pb.ServerReadyRequest())).ready
        assert (await refusal(client, request("nowhere", planes(EASY)))).reason is Reason.NOT_READY
        (listed,) = (await client.call("RepositoryIndex", pb.RepositoryIndexRequest())).models
        assert (listed.name, listed.state) == ("nowhere", "UNAVAILABLE")
        assert listed.reason


async def test_an_exit_answers_once_it_is_known_what_the_output_holds_and_also_after_a_restart(edge: World) -> None:
    head = await edge.start("head")
    await serving(head.address, SERVICE)
    async with oip_client(head.address) as client:
        await _policy_is_kept(edge.folder / "head" / "policies" / f"{MODEL}-1.json")
        ways = [said(await client.infer(request(MODEL, planes(EASY))))["answered_by"] for _ in range(2)]
        assert ways == ["CLOUD_TAIL", "EDGE_EXIT"]
    await edge.stop("head")
    await edge.stop("tail")
    again = await edge.start("head", name="head")
    async with oip_client(again.address) as client:
        easy, hard = [await client.infer(request(MODEL, planes(one))) for one in (EASY, HARD)]
    assert (said(easy)["answered_by"], said(hard)["answered_by"]) == ("EDGE_EXIT", "EDGE_FALLBACK")
    assert said(hard)["fallback_reason"]
    assert arrays(hard)["logits"].shape == (1, 3)


async def _policy_is_kept(path: Path) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if path.exists():
                return
            await asyncio.sleep(0.02)


async def test_without_a_tail_and_an_exit_the_error_says_why(edge: World) -> None:
    await edge.start("head", models=NO_EXIT)
    await serving(edge.addresses["head"], SERVICE)
    await edge.stop("tail")
    async with oip_client(edge.addresses["head"]) as client:
        assert (await refusal(client, request(NO_EXIT, planes(HARD)))).reason in (
            Reason.SERVICE_UNAVAILABLE,
            Reason.NOT_READY,
        )


async def test_a_model_of_two_inputs_takes_them_by_name_in_any_order(edge: World) -> None:
    manifest, artifacts = split_bytes(siamese().SerializeToString(), ["left_code", "right"])
    await edge.registry.create_version("pair", {**artifacts, MANIFEST: manifest.to_json().encode()}, created_by="test")
    await edge.registry.set_alias("pair", "production", 1)
    await edge.start("head", models="pair")
    await serving(edge.addresses["head"], SERVICE)
    left, right = np.array([[1, -2, 3, 0.5]], np.float32), np.array([[0.3, 0.2, -1, 2]], np.float32)
    expected = open_session(siamese().SerializeToString()).run({"left": left, "right": right})["score"]
    async with oip_client(edge.addresses["head"]) as client:
        response = await client.infer(request("pair", {"right": right, "left": left}))
        assert arrays(response)["score"] == pytest.approx(expected, rel=1e-5)
        missing = await refusal(client, request("pair", {"left": left}))
    assert missing.reason is Reason.FIELD_INVALID


async def test_a_stopping_head_answers_what_it_took_and_ends_streams(edge: World) -> None:
    head = await edge.start("head")
    await serving(head.address, SERVICE)
    async with oip_client(head.address) as client:
        call = client.stub.ModelStreamInfer(timeout=WAIT_S)
        await call.write(request(MODEL, planes(HARD), request_id="last"))
        assert (await call.read()).infer_response.id == "last"
        stopping = asyncio.create_task(edge.stop("head"))
        assert (await call.code()).name == "UNAVAILABLE"
        await stopping
