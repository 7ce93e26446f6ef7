"""The load client of the serving benchmarks speaks HTTP/2 and HTTP/1.1 well enough for any server, and counts honestly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from benchmarks.serving.cost import tree_cpu_s
from benchmarks.serving.http1 import Http1Load, HttpCall
from benchmarks.serving.http2 import GrpcCall, Http2Load
from benchmarks.serving.load import run

LARGE = b"\x5a" * 602_112
"""Above every initial window and frame size of HTTP/2."""


async def echo_size(request: bytes, _: Any) -> bytes:
    if request == b"bad":
        raise ValueError(request)
    return b"size %d" % len(request)


async def echo_sizes(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
    yield b"welcome"
    async for request in requests:
        yield b"size %d" % len(request)


@asynccontextmanager
async def grpc_server() -> AsyncIterator[int]:
    server = grpc.aio.server()
    handlers = {
        "Ask": grpc.unary_unary_rpc_method_handler(echo_size),
        "Stream": grpc.stream_stream_rpc_method_handler(echo_sizes),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Sizes", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def loaded(port: int, call: GrpcCall | HttpCall, slots: int) -> tuple[int, int]:
    """Answers and errors of a short load."""

    def drive() -> tuple[int, int]:
        connections: list[Http1Load | Http2Load] = (
            [Http2Load("127.0.0.1", port, call, slots)]
            if isinstance(call, GrpcCall)
            else [Http1Load("127.0.0.1", port, call) for _ in range(slots)]
        )
        try:
            seen = run(connections, os.getpid(), seconds=0.5, warm_up_s=0.0)
        finally:
            for connection in connections:
                connection.close()
        return seen.answers, seen.errors

    return await asyncio.to_thread(drive)


@pytest.mark.parametrize(("path", "stream"), [("/test.Sizes/Ask", False), ("/test.Sizes/Stream", True)])
@pytest.mark.parametrize("slots", [1, 8])
async def test_large_messages_are_answered_again_and_again(path: str, stream: bool, slots: int) -> None:
    call = GrpcCall(path, LARGE, b"size 602112", stream=stream, greeting=int(stream))
    async with grpc_server() as port:
        answers, errors = await loaded(port, call, slots)
    assert answers > 2 * slots
    assert errors == 0


async def test_a_greeting_is_no_answer() -> None:
    call = GrpcCall("/test.Sizes/Stream", b"abc", b"size 3", stream=True, greeting=0)
    async with grpc_server() as port:
        _, errors = await loaded(port, call, 2)
    assert errors == 2


@pytest.mark.parametrize("message", [b"bad", b"four"])
async def test_what_is_not_the_right_answer_is_none(message: bytes) -> None:
    async with grpc_server() as port:
        with pytest.raises(RuntimeError, match="was what was asked for"):
            await loaded(port, GrpcCall("/test.Sizes/Ask", message, b"size 3"), 2)


@pytest.mark.parametrize("chunked", [False, True])
async def test_http_answers_are_counted_whole(chunked: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # the client hangs up
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                body = b"size %d" % size
                writer.write(b"HTTP/1.1 200 OK\r\n")
                if chunked:
                    writer.write(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
                else:
                    writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
                    await writer.drain()
                    writer.write(body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        answers, errors = await loaded(port, HttpCall("/ask", LARGE, "application/octet-stream", b"size 602112"), 2)
    assert answers > 4
    assert errors == 0


def test_the_processor_time_of_a_tree_grows_with_work() -> None:
    before = tree_cpu_s(os.getpid())
    while tree_cpu_s(os.getpid()) == before:
        sum(range(10_000))
    assert tree_cpu_s(os.getpid()) > before
