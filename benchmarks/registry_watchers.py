"""Watchers of an alias in a process of their own: real streams, as many as asked, and when each saw each move.

Knows channels and messages as bytes; not what they say. Clocks of processes on one machine agree (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import grpc

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.kernel.channels import open_channel

STREAMS = 200
"""On one connection: a server lets one have 256."""
WATCH = "/splitmesh.api.registry.v1.RegistryService/WatchModel"


@dataclass(frozen=True, slots=True)
class Crowd:
    """What one process shall watch."""

    address: str
    model: str
    alias: str
    watchers: int


def watch(crowd: Crowd, pipe: Connection) -> None:
    """Entry point of the process: says ``ready`` when every watcher has its first message, and then, asked by any word but
    ``stop``, waits until all have seen one more and sends the times, nanoseconds."""
    asyncio.run(_watch(crowd, pipe))


async def _watch(crowd: Crowd, pipe: Connection) -> None:
    channels = [open_channel(crowd.address) for _ in range(-(-crowd.watchers // STREAMS))]
    request = pb.WatchModelRequest(model=crowd.model, alias=crowd.alias)
    calls = [_call(channels[number % len(channels)], request) for number in range(crowd.watchers)]
    await asyncio.gather(*(_read(call) for call in calls))
    pipe.send("ready")
    loop = asyncio.get_running_loop()
    while True:
        seen = [asyncio.create_task(_read(call)) for call in calls]
        if await loop.run_in_executor(None, pipe.recv) == "stop":
            break
        pipe.send(await asyncio.gather(*seen))
    for task in seen:
        task.cancel()
    await asyncio.gather(*seen, return_exceptions=True)
    await asyncio.gather(*(channel.close() for channel in channels))


def _call(channel: grpc.aio.Channel, request: pb.WatchModelRequest) -> grpc.aio.UnaryStreamCall:
    method = channel.unary_stream(WATCH, request_serializer=pb.WatchModelRequest.SerializeToString)
    return method(request)


async def _read(call: grpc.aio.UnaryStreamCall) -> int:
    if await call.read() is grpc.aio.EOF:
        raise RuntimeError("a watch ended")
    return time.monotonic_ns()
