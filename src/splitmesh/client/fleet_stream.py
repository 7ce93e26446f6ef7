"""An agent's side of one stream to the fleet, from hello to its end. Opening it again, and what is said on it, is the agent's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.fleet.v1 import fleet_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import PACED, WATCHED, Channels
from splitmesh.kernel.errors import ended_stream_error, from_rpc_error

SERVICE = "fleet"
LINK = (*PACED, *WATCHED)
"""Options of a channel for such streams."""
WELCOME_S = 10.0
"""For the fleet's answer to hello: a fleet that restarts has all its agents say hello at once."""
HEARTBEAT_S = (0.05, 60.0)
LEASE_S = (0.2, 3600.0)
"""What a fleet may ask for; anything else is taken as the nearest."""


class FleetStream:
    """One stream that the fleet has welcomed. One task may send while another one receives."""

    def __init__(self, call: Any, welcome: pb.Welcome) -> None:
        self._call = call
        self.session_id = welcome.session_id
        self.heartbeat_s = _within(welcome.heartbeat.ToMicroseconds() / 1e6, HEARTBEAT_S)
        self.lease_s = _within(welcome.lease.ToMicroseconds() / 1e6, LEASE_S)

    async def send(self, message: pb.ConnectRequest, *, within_s: float) -> None:
        """On its way when it returns. DEADLINE_EXPIRED when the link takes nothing for so long; else what ended the stream."""
        try:
            async with asyncio.timeout(within_s):
                await _write(self._call, message)
        except TimeoutError as error:
            raise MeshError(Reason.DEADLINE_EXPIRED, f"the link took nothing for {within_s:g} s") from error

    async def receive(self) -> pb.ConnectResponse:
        """The next message; raises what ended the stream."""
        return await _read(self._call)


@asynccontextmanager
async def fleet_stream(
    channels: Channels, hello: pb.Hello, *, service: str = SERVICE, welcome_s: float = WELCOME_S
) -> AsyncGenerator[FleetStream]:
    """Opens a stream and says hello; the stream ends with the block.

    Raises MeshError: the service's, see its proto; DEADLINE_EXPIRED without a welcome in time; PROTOCOL_VIOLATION for another
    first message; SERVICE_UNAVAILABLE.
    """
    channel = await channels.to(service)
    call = fleet_pb2_grpc.FleetServiceStub(channel).Connect()
    try:
        try:
            async with asyncio.timeout(welcome_s):
                await _write(call, pb.ConnectRequest(hello=hello))
                first = await _read(call)
        except TimeoutError as error:
            raise MeshError(
                Reason.DEADLINE_EXPIRED, f"the fleet did not answer hello within {welcome_s:g} s"
            ) from error
        if first.WhichOneof("message") != "welcome":
            raise MeshError(Reason.PROTOCOL_VIOLATION, "the fleet's first message is no welcome")
        yield FleetStream(call, first.welcome)
    finally:
        call.cancel()


async def _write(call: Any, message: pb.ConnectRequest) -> None:
    try:
        await call.write(message)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.InvalidStateError as error:  # it has ended; the status says why
        raise await ended_stream_error(call, "the fleet") from error


async def _read(call: Any) -> pb.ConnectResponse:
    try:
        message = await call.read()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    if message is grpc.aio.EOF:
        raise await ended_stream_error(call, "the fleet")
    response: pb.ConnectResponse = message
    return response


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])
