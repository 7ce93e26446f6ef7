"""Which methods a server wraps, and bytes that are read and written another way than the stubs do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors, open_channel
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.server import Binding, HealthControl, make_server
from splitmesh.kernel.telemetry import Telemetry

WAIT_S = 20.0
OURS, FOREIGN = "inference.Echo", "elsewhere.Echo"


async def echo(request: Any, context: Any) -> Any:
    if request in ("refuse", b"refuse"):
        raise MeshError(Reason.NOT_READY, "not yet", retry_after_s=1.0)
    return request


async def echoes(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    async for request in requests:
        yield await echo(request, context)


def binding(name: str, **options: Any) -> Binding:
    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(echo),
        "Other": grpc.unary_unary_rpc_method_handler(echo),
        "Many": grpc.stream_stream_rpc_method_handler(echoes),
    }
    generic = grpc.method_handlers_generic_handler(name, handlers)
    return Binding(name, lambda server: server.add_generic_rpc_handlers((generic,)), **options)


@asynccontextmanager
async def served(*bindings: Binding) -> AsyncIterator[grpc.aio.Channel]:
    settings = ServiceSettings(node="here")
    server, port = make_server(settings, bindings, Telemetry("test"), HealthControl())
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


async def called(channel: grpc.aio.Channel, method: str, data: bytes) -> bytes:
    async with mesh_errors():
        answer: bytes = await channel.unary_unary(method)(data, timeout=WAIT_S)
        return answer


async def refused(channel: grpc.aio.Channel, method: str) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await called(channel, method, b"refuse")
    return caught.value


async def test_methods_of_the_open_protocol_give_reasons_and_those_of_others_are_left_alone() -> None:
    async with served(binding(OURS), binding(FOREIGN)) as channel:
        ours = await refused(channel, f"/{OURS}/One")
        foreign = await refused(channel, f"/{FOREIGN}/One")
    assert (ours.reason, ours.retry_after_s) == (Reason.NOT_READY, 1.0)
    assert (foreign.reason, foreign.retry_after_s) == (Reason.INTERNAL, None)


async def test_a_binding_says_how_the_bytes_of_its_methods_are_read_and_written() -> None:
    ours = binding(
        OURS,
        deserializers={"One": lambda data: [data, data], "Many": lambda data: [data]},
        serializers={"One": b"+".join, "Many": lambda parts: b"(%b)" % parts[0]},
    )
    async with served(ours) as channel:
        for _ in range(2):
            assert await called(channel, f"/{OURS}/One", b"a") == b"a+a"
            assert await called(channel, f"/{OURS}/Other", b"a") == b"a"
        call = channel.stream_stream(f"/{OURS}/Many")(timeout=WAIT_S)
        await call.write(b"b")
        assert await call.read() == b"(b)"
        await call.done_writing()
