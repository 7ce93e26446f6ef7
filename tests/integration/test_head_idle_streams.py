"""Cameras that send nothing: a thousand open streams cost no thread each and keep nobody from being answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge.head.app import SERVICE
from splitmesh.api.inference.v1 import inference_pb2 as pb
from splitmesh.api.inference.v1 import inference_pb2_grpc
from splitmesh.kernel.channels import open_channel
from tests.support.models import EASY, EASY_LABEL, picture
from tests.support.wire import WAIT_S, Raw, image_frame
from tests.support.worlds import WHOLE_ONLY, World, world

STREAMS, CHANNELS = 1000, 5
OTHER_THREADS = 30
"""What gRPC may start of its own meanwhile, for both ends of all connections, whatever the streams' number."""


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


def threads() -> int:
    """All of this process: both ends are in it."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


@contextlib.asynccontextmanager
async def idle_streams(address: str, count: int, channels: int) -> AsyncIterator[list[Raw]]:
    """Accepted streams, spread over connections of their own."""
    async with contextlib.AsyncExitStack() as stack:
        stubs = [
            inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(open_channel(address)))
            for _ in range(channels)
        ]
        raws = [Raw(stubs[number % channels].StreamInfer()) for number in range(count)]
        accepted = await asyncio.gather(*(raw.read() for raw in raws))
        assert {one.WhichOneof("message") for one in accepted} == {"accepted"}
        yield raws
        for raw in raws:
            raw.call.cancel()


async def head_address(edge: World, **settings: Any) -> str:
    head = await edge.start("head", models=WHOLE_ONLY, **settings)
    mesh = await edge.ready_mesh()
    await mesh.infer(picture(EASY))
    return head.address


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc, which is Linux's")
async def test_a_thousand_idle_streams_take_no_threads_and_everybody_is_answered(edge: World) -> None:
    address = await head_address(edge)
    before = threads()
    async with (
        idle_streams(address, STREAMS, CHANNELS) as raws,
        open_channel(address) as channel,
    ):
        assert threads() - before < OTHER_THREADS
        health = health_pb2_grpc.HealthStub(channel)
        checked = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=WAIT_S)
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        answer = await stub.Infer(pb.InferRequest(image=picture(EASY)), timeout=WAIT_S)
        assert answer.labels[0].name == EASY_LABEL
        for raw in (raws[0], raws[-1]):
            await raw.write(image_frame(picture(EASY), 7))
            assert (await raw.read()).result.frame_id == 7


async def test_a_stream_above_the_limit_of_its_connection_waits_for_one_to_end_and_others_do_not(edge: World) -> None:
    address = await head_address(edge, max_concurrent_streams=4)
    async with open_channel(address) as channel, idle_streams(address, 4, 1):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        first, *_ = taken = [Raw(stub.StreamInfer()) for _ in range(4)]
        for raw in taken:
            await raw.read()
        fifth = asyncio.create_task(Raw(stub.StreamInfer()).read())
        async with idle_streams(address, 4, 1):
            assert not fifth.done()
        await first.end()
        assert (await fifth).WhichOneof("message") == "accepted"


async def test_a_call_above_the_limit_of_all_connections_is_refused_until_a_stream_ends(edge: World) -> None:
    address = await head_address(edge, max_concurrent_rpcs=6)
    async with open_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        async with idle_streams(address, 6, 1):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Infer(pb.InferRequest(image=picture(EASY)), timeout=WAIT_S)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with asyncio.timeout(WAIT_S):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stub.Infer(pb.InferRequest(image=picture(EASY)), timeout=WAIT_S)
                    break
