"""A service whose catalogue is away answers all the same, and registers when the catalogue comes back."""

from __future__ import annotations

import asyncio

import pytest

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.kernel import registering
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.discovery_consul import ConsulDiscovery
from splitmesh.kernel.lifecycle import Host
from splitmesh.testing.consul import ConsulAgent
from splitmesh.testing.parts import find_consul, require_part
from tests.support.small_service import SmallService

WAIT_S = 30.0


async def test_a_service_started_while_consul_is_away_serves_and_registers_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_part("consul", find_consul() is not None)
    monkeypatch.setattr(registering, "REGISTER_RETRY_S", 0.2)
    agent = ConsulAgent()
    await agent.start()
    await agent.stop()
    settings = ServiceSettings(discovery="consul", consul_address=agent.address, node="here")
    try:
        async with asyncio.timeout(WAIT_S), Host("small", settings, SmallService()) as host:
            channel = open_channel(host.address)
            described = await segment_pb2_grpc.SegmentServiceStub(channel).Describe(segment_pb2.DescribeRequest())
            await channel.close()
            assert described.node == "small"
            await agent.start()
            discovery = ConsulDiscovery(agent.address)
            async for instances in discovery.watch("small"):
                if [instance.address for instance in instances] == [host.address]:
                    break
            await discovery.close()
    finally:
        await agent.stop()


async def test_a_service_stopped_before_consul_came_back_stops_at_once() -> None:
    settings = ServiceSettings(discovery="consul", consul_address="127.0.0.1:1", node="here")
    async with asyncio.timeout(WAIT_S):
        async with Host("small", settings, SmallService()) as host:
            assert host.address
