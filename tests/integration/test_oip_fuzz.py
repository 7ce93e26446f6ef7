"""Requests that no sane client sends, to head and tail: each is answered or refused for what is wrong with it, none hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from splitmesh.api.oip.v2 import grpc_service_pb2 as pb
from splitmesh.errors import MeshError, Reason
from tests.support.models import EASY, HARD, SIDE, picture
from tests.support.oip import arrays, oip_client, planes, request
from tests.support.worlds import CHAIN, MODEL, WAIT_S, WHOLE_ONLY, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUESTS = 800
AT_ONCE = 8
ANSWER_S = 10.0
IMPOSSIBLE = {Reason.INTERNAL, Reason.CANCELLED}
"""What a request may never be refused with."""

NAMES = st.sampled_from(["image", "image", "image", "logits", "", "features", "x" * 5000, "ÿ\n"])
DTYPES = st.sampled_from(
    ["FP32", "FP32", "FP32", "BYTES", "BYTES", "UINT8", "FP16", "BOOL", "INT64", "FP64", "", "BF16", "fp32"]
)
DIMS = st.one_of(st.sampled_from([1, 1, 1, 2, SIDE, 0, -1, 3, 70, 1 << 24, 1 << 40, (1 << 63) - 1, -(1 << 63)]))
SHAPES = st.one_of(
    st.just([1, 1, SIDE, SIDE]), st.just([2, 1, SIDE, SIDE]), st.just([1]), st.just([2, 1]), st.lists(DIMS, max_size=9)
)
PLANE = planes(EASY)["image"].tobytes()
PICTURE = picture(HARD)
RAW = st.one_of(
    st.sampled_from([
        PLANE,
        PLANE * 2,
        b"\x00" * len(PLANE),
        b"\xff" * len(PLANE),
        b"",
        len(PICTURE).to_bytes(4, "little") + PICTURE,
        b"\xff\xff\xff\xff" + PICTURE,
        b"\x00" * 8,
    ]),
    st.binary(max_size=64),
)  # fmt: skip
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["timeout", "deadline_ms", "priority", "camera_id", "traceparent", "timings", "classification", "z"]
    ),
    st.one_of(
        st.builds(
            lambda value: pb.InferParameter(int64_param=value), st.sampled_from([0, 1, 9, -1, 10**15, -(1 << 63)])
        ),
        st.builds(lambda value: pb.InferParameter(uint64_param=value), st.sampled_from([0, 5, (1 << 64) - 1])),
        st.builds(
            lambda value: pb.InferParameter(string_param=value), st.sampled_from(["", "7", "x" * 300, "00-0-0-0"])
        ),
        st.builds(lambda value: pb.InferParameter(double_param=value), st.floats()),
        st.builds(lambda value: pb.InferParameter(bool_param=value), st.booleans()),
        st.just(pb.InferParameter()),
    ),
    max_size=3,
)


FLAWS = (
    "model",
    "version",
    "id",
    "parameters",
    "inputs",
    "shape",
    "name",
    "type",
    "content",
    "typed",
    "more",
    "outputs",
)


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Right but for a few parts, which may be anything."""
    flaws = draw(st.sets(st.sampled_from(FLAWS), max_size=3))

    def part(flaw: str, right: Any, wrong: st.SearchStrategy[Any]) -> Any:
        return draw(wrong) if flaw in flaws else right

    versions = ["1", "2", "77", "production", "-1", "x" * 20_000, " ", "9" * 20]
    models = [CHAIN, WHOLE_ONLY, "", "nobody", "x" * 20_000, "../x", "ÿ"]
    message = pb.ModelInferRequest(
        model_name=part("model", MODEL, st.sampled_from(models)),
        model_version=part("version", "", st.sampled_from(versions)),
        id=part("id", "7", st.sampled_from(["", "9" * 30, "a" * 1025])),
    )
    for name, value in part("parameters", {}, PARAMETERS).items():
        message.parameters[name].CopyFrom(value)
    for _ in range(part("inputs", 1, st.sampled_from([0, 2, 3, 300]))):
        tensor = message.inputs.add(
            name=part("name", "image", NAMES),
            datatype=part("type", "FP32", DTYPES),
            shape=part("shape", [1, 1, SIDE, SIDE], SHAPES),
        )
        if "typed" in flaws:
            tensor.contents.fp32_contents.extend(draw(st.sampled_from([[0.1] * SIDE**2, [], [float("nan")]])))
            tensor.contents.bytes_contents.extend(draw(st.sampled_from([[], [PICTURE], [b""], [PICTURE] * 2])))
            tensor.contents.int_contents.extend(draw(st.sampled_from([[], [-1], [1 << 30]])))
        if "typed" not in flaws or draw(st.booleans()):
            message.raw_input_contents.append(part("content", PLANE, RAW))
    message.raw_input_contents.extend([b""] * part("more", 0, st.sampled_from([1, 5])))
    for _ in range(part("outputs", 0, st.sampled_from([1, 1, 2, 300]))):
        output = message.outputs.add(name=draw(st.sampled_from(["logits", "logits", "", "image", "y" * 20_000])))
        for name, value in draw(PARAMETERS).items():
            output.parameters[name].CopyFrom(value)
    return message


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["tail", "head"])
async def address(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, registered: Path
) -> AsyncIterator[str]:
    async with world(tmp_path_factory.mktemp("fuzz"), registered) as edge:
        await edge.start("tail")
        if request.param == "head":
            await edge.start("head", models=f"{MODEL},{WHOLE_ONLY}")
            await edge.ready_mesh()
        yield edge.addresses[request.param]


@pytest.fixture(scope="module")
def drawn() -> list[pb.ModelInferRequest]:
    """The same ones in every run."""
    found: list[pb.ModelInferRequest] = []

    @settings(
        max_examples=REQUESTS, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(requests())
    def draw(message: pb.ModelInferRequest) -> None:
        found.append(message)

    draw()
    return found


async def test_a_request_is_answered_or_refused_for_what_is_wrong_with_it(
    drawn: list[pb.ModelInferRequest], address: str
) -> None:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def outcome(message: pb.ModelInferRequest) -> MeshError | None:
        async with at_once:
            try:
                await client.infer(message, timeout=ANSWER_S)
            except MeshError as error:
                return error
        return None

    async with oip_client(address) as client:
        outcomes = await asyncio.gather(*(outcome(message) for message in drawn))
        assert arrays(await client.infer(request(MODEL, planes(HARD))))["logits"].shape == (1, 3)
    reasons = set()
    for error, message in zip(outcomes, drawn, strict=True):
        if error is not None:
            reasons.add(error.reason)
            # What gRPC says of its own accord carries its status code.
            assert "grpc_status" not in error.metadata, (error, message)
    assert not reasons & IMPOSSIBLE
    assert None in outcomes
    assert len(reasons) > 6


async def test_a_stream_says_what_is_wrong_with_each_request_and_goes_on(
    drawn: list[pb.ModelInferRequest], address: str
) -> None:
    async with oip_client(address) as client:
        answers = await client.stream(drawn)
    assert [one.infer_response.id for one in answers] == [message.id for message in drawn]
    for answer, message in zip(answers, drawn, strict=True):
        assert not answer.error_message.startswith(tuple(reason.value for reason in IMPOSSIBLE)), (answer, message)


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind(address: str) -> None:
    for _ in range(20):
        async with oip_client(address) as client:
            calls = [asyncio.ensure_future(client.infer(request(MODEL, planes(HARD, EASY)))) for _ in range(4)]
            stream = client.stub.ModelStreamInfer(iter([request(MODEL, planes(HARD))] * 8))
            await asyncio.sleep(0.002)
            stream.cancel()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    async with oip_client(address) as client:
        assert arrays(await client.infer(request(MODEL, planes(HARD))))["logits"].shape == (1, 3)


async def test_of_thousands_of_requests_on_a_stream_whose_answers_nobody_reads_few_are_taken(address: str) -> None:
    taken = 0

    async def endless() -> AsyncIterator[pb.ModelInferRequest]:
        nonlocal taken
        for _ in range(50_000):
            taken += 1
            yield message

    message = request(MODEL, planes(EASY))
    message.id = "x" * 1000
    async with oip_client(address) as client:
        before = -1
        call = client.stub.ModelStreamInfer(endless())
        async with asyncio.timeout(WAIT_S):
            while taken != before:
                before = taken
                await asyncio.sleep(0.3)
        assert 0 < taken < 10_000
        call.cancel()
        assert arrays(await client.infer(request(MODEL, planes(HARD))))["logits"].shape == (1, 3)
