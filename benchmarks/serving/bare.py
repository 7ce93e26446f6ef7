"""What gRPC itself costs: a Python server that takes the same messages on a stream, looks at nothing, and answers with bytes.

``bare_server`` starts it in a process of its own; everything that a real server does on top is not in it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from benchmarks.serving.head import Served
from splitmesh.kernel.channels import transport_options
from splitmesh.kernel.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[2]
MAX_MESSAGE_BYTES = 32 << 20


@asynccontextmanager
async def bare_server(answer: bytes) -> AsyncIterator[Served]:
    """Answers every message of every stream with ``answer``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, answer.hex(), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        yield Served(f"127.0.0.1:{port}", process.pid)
    finally:
        process.kill()
        await process.wait()


class _Everything(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(self._serve)

    async def _serve(self, requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield self._answer


async def _main(answer: bytes) -> None:
    keep_freed_memory()
    server = grpc.aio.server(options=transport_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((_Everything(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_main(bytes.fromhex(sys.argv[1])))
