"""The tail by the Open Inference Protocol: whole models of the registry, loaded when asked for, computed in batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities
from tests.support.models import EASY, HARD, LABELS, OTHER_LABELS, SIDE, expected_scores, picture
from tests.support.oip import OipClient, arrays, logits, oip_client, planes, refusal, request, said
from tests.support.worlds import BIG, BIG_SIDE, CHAIN, MODEL, WAIT_S, WHOLE_ONLY, World, world


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


@pytest.fixture
async def client(cloud: World) -> AsyncIterator[OipClient]:
    await cloud.start("tail", max_batch=4, credit=4)
    async with oip_client(cloud.addresses["tail"]) as made:
        yield made


async def first_label(client: OipClient, version: str = "") -> str:
    response = await client.infer(request(MODEL, planes(EASY), version=version, outputs={"logits": 1}))
    return response.raw_output_contents[0].rpartition(b":")[2].decode()


@pytest.mark.parametrize("model", [MODEL, WHOLE_ONLY, CHAIN])
async def test_a_whole_model_answers_however_its_version_is_split(client: OipClient, model: str) -> None:
    response = await client.infer(request(model, planes(HARD), request_id="r-1"))
    assert arrays(response)["logits"] == pytest.approx(logits(HARD), abs=1e-4)
    assert (response.model_version, response.id, said(response)["answered_by"]) == ("1", "r-1", "CLOUD_WHOLE")
    assert len(said(response)["trace_id"]) == 32


async def test_more_samples_than_a_batch_are_computed_in_several(client: OipClient) -> None:
    brightness = [n / 10 for n in range(10)]
    response = await client.infer(request(MODEL, planes(*brightness), parameters={"timings": True}))
    expected = np.concatenate([logits(one) for one in brightness])
    assert arrays(response)["logits"] == pytest.approx(expected, abs=1e-3)
    assert said(response)["batch_size"] <= 4
    (found,) = (await client.call("ModelStatistics", pb.ModelStatisticsRequest(name=MODEL))).model_stats
    assert (found.inference_count, found.inference_stats.success.count) == (10, 1)
    assert 3 <= found.execution_count < 10
    assert sum(one.batch_size * one.compute_infer.count for one in found.batch_stats) == 10


async def test_samples_of_several_requests_are_computed_together(client: OipClient) -> None:
    await client.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=MODEL))
    await asyncio.gather(*(client.infer(request(MODEL, planes(EASY, HARD))) for _ in range(20)))
    (found,) = (await client.call("ModelStatistics", pb.ModelStatisticsRequest(name=MODEL))).model_stats
    assert found.inference_count == 40
    assert found.execution_count < 40
    assert sum(one.batch_size * one.compute_infer.count for one in found.batch_stats) == 40


async def test_a_request_continues_its_callers_trace(client: OipClient) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    parameters = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "camera_id": "cam-1"}
    response = await client.infer(request(MODEL, planes(EASY), parameters=parameters))
    assert said(response)["trace_id"] == trace


async def test_pictures_are_prepared_by_the_versions_own_rule(client: OipClient) -> None:
    response = await client.infer(request(MODEL, {"image": [picture(HARD), picture(0.9, kind="JPEG")]}))
    assert as_probabilities(arrays(response)["logits"])[0] == pytest.approx(expected_scores(picture(HARD)), abs=1e-5)
    bad = await refusal(client, request(MODEL, {"image": [picture(HARD), b"x"]}))
    assert bad.reason is Reason.IMAGE_UNDECODABLE


async def test_large_tensors_cross_whole(client: OipClient) -> None:
    response = await client.infer(request(BIG, planes(HARD, EASY, side=BIG_SIDE)))
    expected = np.concatenate([logits(one, BIG_SIDE) for one in (HARD, EASY)])
    assert arrays(response)["logits"] == pytest.approx(expected, abs=1e-3)


async def test_versions_are_asked_for_by_number_and_alias(cloud: World, client: OipClient) -> None:
    await cloud.registry.set_alias(MODEL, "canary", 2)
    labels = [await first_label(client, version) for version in ("", "1", "2", "canary", "production")]
    assert labels == [LABELS[0], LABELS[0], OTHER_LABELS[0], OTHER_LABELS[0], LABELS[0]]
    for version, reason in (
        ("3", Reason.VERSION_NOT_FOUND),
        ("0", Reason.VERSION_NOT_FOUND),
        ("999999999", Reason.VERSION_NOT_FOUND),
        ("9" * 30, Reason.VERSION_NOT_FOUND),
        ("nowhere", Reason.ALIAS_NOT_FOUND),
    ):
        assert (await refusal(client, request(MODEL, planes(EASY), version=version))).reason is reason
    assert (await refusal(client, request("nobody", planes(EASY)))).reason is Reason.MODEL_NOT_FOUND
    assert (await refusal(client, request("", planes(EASY)))).reason is Reason.FIELD_INVALID


async def test_a_moved_alias_is_served_without_a_request_in_between_failing(cloud: World, client: OipClient) -> None:
    assert await first_label(client) == LABELS[0]
    await cloud.registry.set_alias(MODEL, "production", 2)
    async with asyncio.timeout(WAIT_S):
        while True:
            if await first_label(client) == OTHER_LABELS[0]:
                break
            await asyncio.sleep(0.01)
    assert (await client.call("ModelMetadata", pb.ModelMetadataRequest(name=MODEL))).versions == ["2"]


async def test_without_a_registry_the_version_last_heard_of_answers_also_after_a_restart(cloud: World) -> None:
    for _ in range(2):
        tail = await cloud.start("tail")
        async with oip_client(tail.address) as client:
            assert await first_label(client) == LABELS[0]
            if "registry" in cloud.hosts:
                await cloud.stop("registry")
            assert await first_label(client) == LABELS[0]
            index = await client.call("RepositoryIndex", pb.RepositoryIndexRequest())
            assert [(one.name, one.version, one.state) for one in index.models] == [(MODEL, "1", "READY")]
        await cloud.stop("tail")


async def test_models_are_listed_loaded_and_let_go(client: OipClient) -> None:
    async def state(name: str) -> str:
        index = await client.call("RepositoryIndex", pb.RepositoryIndexRequest())
        return str(next(one.state for one in index.models if one.name == name))

    async def load(name: str) -> None:
        await client.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name))

    async def unload(name: str) -> None:
        await client.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=name))

    assert await state(MODEL) == "UNAVAILABLE"
    await load(MODEL)
    assert await state(MODEL) == "READY"
    ready = await client.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
    assert [(one.name, one.version) for one in ready.models] == [(MODEL, "1")]
    await unload(MODEL)
    assert await state(MODEL) == "UNAVAILABLE"
    with pytest.raises(MeshError) as caught:
        await unload(MODEL)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert (await client.call("ModelReady", pb.ModelReadyRequest(name=MODEL))).ready
    assert await state(MODEL) == "READY"
    with pytest.raises(MeshError) as caught:
        await load("nobody")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    wanted = pb.RepositoryModelLoadRequest(model_name=MODEL)
    wanted.parameters["config"].string_param = "{}"
    with pytest.raises(MeshError) as caught:
        await client.call("RepositoryModelLoad", wanted)
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_a_configuration_says_what_the_tail_batches(client: OipClient) -> None:
    assert (await client.call("ServerReady", pb.ServerReadyRequest())).ready
    config = (await client.call("ModelConfig", pb.ModelConfigRequest(name=MODEL))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [1, SIDE, SIDE])
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert config.parameters["computed_together"].string_value == "4"
    many = await refusal(client, request(MODEL, planes(*[EASY] * 65)))
    assert many.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"picture": planes(EASY)["image"]}, Reason.FIELD_INVALID),
        ({"image": planes(EASY)["image"][..., :-1]}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"image": planes(EASY)["image"].astype(np.float16)}, Reason.TENSOR_DTYPE_MISMATCH),
        ({"image": planes(EASY)["image"] * np.inf}, Reason.TENSOR_NOT_FINITE),
        ({**planes(EASY), "more": planes(EASY)["image"]}, Reason.FIELD_INVALID),
    ],
    ids=["name", "shape", "type", "infinity", "one too many"],
)
async def test_bad_input_is_refused_and_counted(
    client: OipClient, tensors: dict[str, np.ndarray], reason: Reason
) -> None:
    assert (await refusal(client, request(MODEL, tensors))).reason is reason
    (found,) = (await client.call("ModelStatistics", pb.ModelStatisticsRequest(name=MODEL))).model_stats
    assert (found.inference_stats.fail.count, found.inference_stats.success.count) == (1, 0)


async def test_more_samples_than_may_wait_are_refused_and_nothing_is_left_behind(cloud: World) -> None:
    tail = await cloud.start("tail", max_queue=8, max_batch=1, compute_slots=1)
    async with oip_client(tail.address) as client:
        full = await refusal(client, request(MODEL, planes(*[EASY] * 32)))
        assert full.reason is Reason.QUEUE_FULL
        assert full.retry_after_s is not None
        # Their places are free again.
        await client.infer(request(MODEL, planes(*[EASY] * 8)))


async def test_a_request_that_came_too_late_says_so(client: OipClient) -> None:
    await client.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=MODEL))
    large = [picture(HARD, side=2000)] * 8
    late = await refusal(client, request(MODEL, {"image": large}, parameters={"timeout": 1000}))
    assert late.reason is Reason.DEADLINE_EXPIRED


async def test_a_stream_echoes_ids_keeps_the_order_and_survives_errors(client: OipClient) -> None:
    sent = [request(MODEL, planes(*[EASY] * (1 + n % 3)), request_id=f"r{n}") for n in range(20)]
    sent[5] = request("nobody", planes(EASY), request_id="r5")
    answers = await client.stream(sent)
    assert [one.infer_response.id for one in answers] == [f"r{n}" for n in range(20)]
    assert [n for n, one in enumerate(answers) if one.error_message] == [5]
    rows = [len(arrays(one.infer_response)["logits"]) for one in answers if not one.error_message]
    assert rows == [1 + n % 3 for n in range(20) if n != 5]
