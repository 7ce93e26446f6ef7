"""A gateway that finds its heads through a real Consul agent: they come, they die, and no frame is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from splitmesh.client import Answer, Mesh, MeshError, Reason
from splitmesh.kernel.discovery import Instance
from splitmesh.kernel.discovery_consul import ConsulDiscovery, GrpcCheck
from splitmesh.testing.consul import ConsulAgent
from splitmesh.testing.parts import find_consul, require_part
from tests.support.fake_head import FakeHead, served

pytestmark = pytest.mark.timeout(90)
WAIT_S = 30.0


async def test_a_gateway_follows_the_heads_that_consul_knows() -> None:
    require_part("consul", find_consul() is not None)
    stopped = asyncio.Event()
    sent = 0

    async def frames() -> AsyncIterator[bytes]:
        nonlocal sent
        while not stopped.is_set():
            sent += 1
            yield f"frame {sent - 1}".encode()
            await asyncio.sleep(0.01)

    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(ConsulAgent())
        discovery = ConsulDiscovery(agent.address, check=GrpcCheck(interval_s=1.0))
        stack.push_async_callback(discovery.close)
        mesh = await stack.enter_async_context(Mesh(consul_address=agent.address, service="line-heads"))
        with pytest.raises(MeshError, match="none is known as 'line-heads'") as caught:
            await mesh.infer(b"x", deadline_ms=200)
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE

        async def start(name: str) -> FakeHead:
            head = await stack.enter_async_context(served(FakeHead()))
            await discovery.register(Instance("line-heads", name, head.address))
            return head

        async def until_used(head: FakeHead) -> None:
            async with asyncio.timeout(WAIT_S):
                while not head.seen:
                    head.arrived.clear()
                    await head.arrived.wait()

        async def change() -> None:
            await until_used(first)
            second = await start("b")
            await asyncio.sleep(0.2)
            await first.stop()
            await until_used(second)
            stopped.set()

        first = await start("a")
        changing = asyncio.create_task(change())
        async with asyncio.timeout(WAIT_S), mesh.stream(order="in-order") as stream:
            outcomes = [outcome async for outcome in stream.run(frames())]
        await changing
    assert [one.label.name for one in outcomes if isinstance(one, Answer)] == [f"frame {n}" for n in range(sent)]
    assert len(outcomes) == sent
