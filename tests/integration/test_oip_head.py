"""The head by the Open Inference Protocol: one model to its clients, whoever answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.client import AnsweredBy, Reason
from splitmesh.errors import MeshError
from splitmesh.model.classes import as_probabilities
from splitmesh.tensor.spec import Array
from tests.support.models import EASY, HARD, SIDE, expected_scores, picture
from tests.support.oip import OipClient, arrays, logits, oip_client, planes, refusal, request, said
from tests.support.worlds import (
    BIG,
    BIG_SIDE,
    MODEL,
    NO_EXIT,
    WAIT_S,
    WHOLE_ONLY,
    answered_by,
    world,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[OipClient]:
    """Of a head whose exit answers easy pictures; for all tests here."""
    async with world(tmp_path_factory.mktemp("oip"), registered) as edge:
        await edge.start("tail")
        await edge.start("head", models=f"{MODEL},{NO_EXIT},{WHOLE_ONLY},{BIG}", credit=4)
        await answered_by(await edge.ready_mesh(), EASY, AnsweredBy.EDGE_EXIT)
        async with oip_client(edge.addresses["head"]) as made:
            await until_ready(made)
            # What the model's output holds is seen on the first answer of the whole model.
            await made.infer(request(MODEL, planes(HARD)))
            yield made


async def until_ready(client: OipClient) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if (await client.call("ServerReady", pb.ServerReadyRequest())).ready:
                return
            await asyncio.sleep(0.05)


async def test_a_hard_sample_gets_the_whole_models_outputs_from_the_tail(client: OipClient) -> None:
    response = await client.infer(request(MODEL, planes(HARD), request_id="r-1"))
    assert said(response)["answered_by"] == "CLOUD_TAIL"
    assert arrays(response)["logits"] == pytest.approx(logits(HARD), abs=1e-4)
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "r-1")
    assert len(said(response)["trace_id"]) == 32
    assert said(response)["uplink_bytes"] > 0


async def test_a_request_continues_its_callers_trace(client: OipClient) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    parameters = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "camera_id": "cam-1"}
    response = await client.infer(request(MODEL, planes(EASY), parameters=parameters))
    assert said(response)["trace_id"] == trace


async def test_an_exits_answer_has_the_form_of_the_models_own_output(client: OipClient) -> None:
    response = await client.infer(request(MODEL, planes(EASY)))
    assert said(response)["answered_by"] == "EDGE_EXIT"
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("logits", "FP32", [1, 3])
    row = as_probabilities(arrays(response)["logits"])[0]
    assert row.max() == pytest.approx(said(response)["exit_confidence"], abs=1e-6)
    assert (arrays(response)["logits"] < 0).all()


async def test_every_sample_of_a_batch_goes_its_own_way_and_the_answers_stand_together(client: OipClient) -> None:
    response = await client.infer(request(MODEL, planes(HARD, EASY, HARD, 0.5), parameters={"timings": True}))
    ways = said(response)["answered_by"].split(",")
    assert ways[:3] == ["CLOUD_TAIL", "EDGE_EXIT", "CLOUD_TAIL"]
    assert said(response)["routing_why"].split(",")[:3] == ["UNSURE", "SURE", "UNSURE"]
    rows = arrays(response)["logits"]
    assert rows.shape == (4, 3)
    assert rows[[0, 2]] == pytest.approx(np.concatenate([logits(HARD)] * 2), abs=1e-4)
    assert rows[1].argmax() == 0
    assert said(response)["total_ms"] >= said(response)["head_ms"] > 0


async def test_an_encoded_picture_is_prepared_as_the_version_says(client: OipClient) -> None:
    whole = await client.infer(request(WHOLE_ONLY, {"image": [picture(HARD), picture(0.9)]}))
    assert said(whole)["answered_by"] == "EDGE_WHOLE,EDGE_WHOLE"
    assert as_probabilities(arrays(whole)["logits"])[0] == pytest.approx(expected_scores(picture(HARD)), abs=1e-5)
    split = await client.infer(request(MODEL, {"image": [picture(HARD)]}))
    assert arrays(split)["logits"] == pytest.approx(logits(HARD), abs=1e-4)


async def test_large_tensors_cross_whole(client: OipClient) -> None:
    response = await client.infer(request(BIG, planes(HARD, side=BIG_SIDE), parameters={"deadline_ms": 15_000}))
    assert arrays(response)["logits"] == pytest.approx(logits(HARD, BIG_SIDE), abs=1e-3)


async def test_outputs_are_those_asked_for_also_as_classes(client: OipClient) -> None:
    response = await client.infer(request(MODEL, planes(HARD), outputs={"logits": 2}))
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [1, 2])
    assert b":1:grey" in response.raw_output_contents[0]
    unknown = await refusal(client, request(MODEL, planes(HARD), outputs={"scores": 0}))
    assert unknown.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize("version", ["", "production", "1"])
async def test_the_active_version_answers_by_number_and_alias(client: OipClient, version: str) -> None:
    response = await client.infer(request(MODEL, planes(EASY), version=version))
    assert response.model_version == "1"
    assert (await client.call("ModelReady", pb.ModelReadyRequest(name=MODEL, version=version))).ready


async def test_no_other_version_or_model_is_found(client: OipClient) -> None:
    other = await refusal(client, request(MODEL, planes(EASY), version="2"))
    nobody = await refusal(client, request("nobody", planes(EASY)))
    assert (other.reason, nobody.reason) == (Reason.VERSION_NOT_FOUND, Reason.MODEL_NOT_FOUND)
    for name, version in ((MODEL, "2"), (MODEL, "canary"), ("nobody", "")):
        assert not (await client.call("ModelReady", pb.ModelReadyRequest(name=name, version=version))).ready


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"picture": planes(EASY)["image"]}, Reason.FIELD_INVALID),
        ({"image": planes(EASY)["image"][..., :-1]}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"image": planes(EASY)["image"].astype(np.float64)}, Reason.TENSOR_DTYPE_MISMATCH),
        ({"image": planes(EASY)["image"] * np.nan}, Reason.TENSOR_NOT_FINITE),
        ({"image": [b"no picture"]}, Reason.IMAGE_UNDECODABLE),
        ({"photo": [picture(EASY)]}, Reason.FIELD_INVALID),
        (planes(*[EASY] * 33), Reason.FIELD_INVALID),
    ],
    ids=["name", "shape", "type", "NaN", "no picture", "picture's name", "too many samples"],
)
async def test_bad_input_is_refused_and_the_next_request_answered(
    client: OipClient, tensors: dict[str, Array], reason: Reason
) -> None:
    assert (await refusal(client, request(MODEL, tensors))).reason is reason
    await client.infer(request(MODEL, planes(EASY)))


async def test_one_bad_sample_of_a_batch_refuses_the_request(client: OipClient) -> None:
    bad = await refusal(client, request(MODEL, {"image": [picture(HARD), b"x", picture(EASY)]}))
    assert bad.reason is Reason.IMAGE_UNDECODABLE


async def test_a_request_that_came_too_late_says_so(client: OipClient) -> None:
    late = await refusal(client, request(NO_EXIT, planes(HARD), parameters={"timeout": 5000}))
    assert late.reason is Reason.DEADLINE_EXPIRED


async def test_a_stream_echoes_ids_keeps_the_order_and_survives_errors(client: OipClient) -> None:
    sent = [request(MODEL, planes(HARD if n % 2 else EASY), request_id=f"r{n}") for n in range(12)]
    sent[3] = request("nobody", planes(EASY), request_id="r3")
    sent[7].raw_input_contents[0] = b"short"
    sent[8].parameters["triton_enable_empty_final_response"].bool_param = True
    answers = await client.stream(sent)
    assert [one.infer_response.id for one in answers] == [f"r{n}" for n in range(12)]
    errors = {n: one.error_message for n, one in enumerate(answers) if one.error_message}
    assert set(errors) == {3, 7}
    assert errors[3].startswith("MODEL_NOT_FOUND: ")
    assert errors[7].startswith("TENSOR_SIZE_MISMATCH: ")
    assert [said(one.infer_response).get("triton_final_response", False) for one in answers].index(True) == 8
    assert all(arrays(one.infer_response)["logits"].shape == (1, 3) for one in answers if not one.error_message)


async def test_what_is_known_of_server_and_models(client: OipClient) -> None:
    assert (await client.call("ServerLive", pb.ServerLiveRequest())).live
    assert (await client.call("ServerMetadata", pb.ServerMetadataRequest())).name == "splitmesh"
    metadata = await client.call("ModelMetadata", pb.ModelMetadataRequest(name=MODEL))
    assert [list(one.shape) for one in (*metadata.inputs, *metadata.outputs)] == [[-1, 1, SIDE, SIDE], [-1, 3]]
    config = (await client.call("ModelConfig", pb.ModelConfigRequest(name=MODEL))).config
    assert (config.max_batch_size, list(config.input[0].dims)) == (32, [1, SIDE, SIDE])
    assert "preprocess" in config.parameters
    index = await client.call("RepositoryIndex", pb.RepositoryIndexRequest())
    assert [(one.name, one.version, one.state) for one in index.models] == [
        (name, "1", "READY") for name in sorted([BIG, MODEL, NO_EXIT, WHOLE_ONLY])
    ]


async def test_counts_are_those_of_the_requests(client: OipClient) -> None:
    async def counts() -> pb.ModelStatistics:
        (found,) = (await client.call("ModelStatistics", pb.ModelStatisticsRequest(name=NO_EXIT))).model_stats
        return found

    before = await counts()
    await client.infer(request(NO_EXIT, planes(HARD, HARD)))
    await client.stream([request(NO_EXIT, planes(HARD)), request(NO_EXIT, {})])
    after = await counts()
    was, now = before.inference_stats, after.inference_stats
    assert after.inference_count - before.inference_count == 3
    assert (now.success.count - was.success.count, now.fail.count - was.fail.count) == (2, 1)
    assert now.queue.count == now.compute_output.count == now.success.count
    assert now.success.ns > now.compute_infer.ns > 0


async def test_what_a_head_does_not_have_says_so(client: OipClient) -> None:
    await client.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=MODEL))
    for method, message, reason in (
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="nobody"), Reason.MODEL_NOT_FOUND),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name=MODEL), Reason.UNIMPLEMENTED),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="a"), Reason.UNIMPLEMENTED),
        ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="a"), Reason.UNIMPLEMENTED),
        ("TraceSetting", pb.TraceSettingRequest(), Reason.UNIMPLEMENTED),
        ("LogSettings", pb.LogSettingsRequest(), Reason.UNIMPLEMENTED),
    ):
        with pytest.raises(MeshError) as caught:
            await client.call(method, message)
        assert caught.value.reason is reason
    assert not (await client.call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest())).regions
    assert not (await client.call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest())).regions
    await client.call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest())
    await client.call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest())
