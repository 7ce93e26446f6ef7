"""What every discovery promises, over the static table and over a real Consul agent; then what only Consul does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.discovery import Discovery, Instance
from splitmesh.kernel.discovery_consul import ConsulDiscovery, GrpcCheck
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.consul import ConsulAgent
from splitmesh.testing.parts import find_consul, require_part

DEADLINE_S = 25.0
CHECK = GrpcCheck(interval_s=1.0, timeout_s=1.0)
Sets = AsyncIterator[tuple[Instance, ...]]


@dataclass
class HealthServer:
    """A gRPC server with nothing but its health."""

    server: grpc.aio.Server
    health: health_aio.HealthServicer
    address: str

    async def kill(self) -> None:
        await self.server.stop(None)


async def start_server(port: int = 0) -> HealthServer:
    server, health = grpc.aio.server(), health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return HealthServer(server, health, f"127.0.0.1:{bound}")


@pytest.fixture
async def server() -> AsyncIterator[HealthServer]:
    started = await start_server()
    yield started
    await started.kill()


@pytest.fixture
async def agent() -> AsyncIterator[ConsulAgent]:
    require_part("consul", find_consul() is not None)
    async with ConsulAgent() as started:
        yield started


Over = Callable[..., ConsulDiscovery]


@pytest.fixture
async def over() -> AsyncIterator[Over]:
    """Makes discoveries over an agent, with short intervals; closes them at the end."""
    made: list[ConsulDiscovery] = []

    def make(agent: ConsulAgent, **settings: object) -> ConsulDiscovery:
        fast = {"check": CHECK, "maintain_s": 0.5, "max_backoff_s": 0.5, "request_timeout_s": 2.0}
        made.append(ConsulDiscovery(agent.address, **(fast | settings)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for discovery in made:
        await discovery.close()


@pytest.fixture(params=["static", "consul"])
async def discovery(request: pytest.FixtureRequest, over: Over) -> AsyncIterator[Discovery]:
    async with AsyncExitStack() as stack:
        made: Discovery = StaticDiscovery()
        if request.param == "consul":
            require_part("consul", find_consul() is not None)
            made = over(await stack.enter_async_context(ConsulAgent()))
        stack.push_async_callback(made.close)
        yield made


async def until(sets: Sets, wanted: Callable[[tuple[Instance, ...]], bool]) -> tuple[Instance, ...]:
    """The first set that is as wanted."""
    async with asyncio.timeout(DEADLINE_S):
        async for current in sets:
            if wanted(current):
                return current
    raise AssertionError("the watch ended")


async def listed(discovery: Discovery, service: str, *ids: str) -> tuple[Instance, ...]:
    """The set once it consists of these instances."""
    return await until(discovery.watch(service), lambda current: tuple(i.instance_id for i in current) == ids)


def tail(server: HealthServer, instance_id: str = "a", **more: object) -> Instance:
    return Instance("tail", instance_id, server.address, **more)  # type: ignore[arg-type]


# every discovery


async def test_what_is_registered_can_be_resolved(discovery: Discovery, server: HealthServer) -> None:
    wanted = tail(server, tags=("gpu", "eu"), metadata={"site": "plant-7", "version": "1"})
    registration = await discovery.register(wanted)
    assert registration.instance == wanted
    assert await listed(discovery, "tail", "a") == (wanted,)
    assert await discovery.resolve("tail") == (wanted,)


async def test_nobody_is_an_empty_set_and_not_an_error(discovery: Discovery) -> None:
    assert await discovery.resolve("tail") == ()
    assert await listed(discovery, "tail") == ()


async def test_instances_are_ordered_by_id(discovery: Discovery, server: HealthServer) -> None:
    for instance_id in ("c", "a", "b"):
        await discovery.register(tail(server, instance_id))
    await listed(discovery, "tail", "a", "b", "c")


async def test_services_are_kept_apart(discovery: Discovery, server: HealthServer) -> None:
    await discovery.register(tail(server))
    await discovery.register(Instance("router", "a", server.address))
    assert [i.service for i in await listed(discovery, "tail", "a")] == ["tail"]
    assert [i.service for i in await listed(discovery, "router", "a")] == ["router"]


async def test_a_deregistered_instance_is_gone_and_stays_gone(discovery: Discovery, server: HealthServer) -> None:
    first = await discovery.register(tail(server, "a"))
    await discovery.register(tail(server, "b"))
    await listed(discovery, "tail", "a", "b")
    await first.deregister()
    await listed(discovery, "tail", "b")
    await first.deregister()
    assert [i.instance_id for i in await discovery.resolve("tail")] == ["b"]


async def test_a_watch_yields_the_current_set_and_follows(discovery: Discovery, server: HealthServer) -> None:
    sets = discovery.watch("tail")
    assert await until(sets, lambda current: True) == ()
    first = await discovery.register(tail(server, "a"))
    assert await until(sets, lambda current: True) == (tail(server, "a"),)
    await discovery.register(tail(server, "b"))
    assert await until(sets, lambda current: len(current) == 2) == (tail(server, "a"), tail(server, "b"))
    await first.deregister()
    assert await until(sets, lambda current: len(current) == 1) == (tail(server, "b"),)


async def test_a_waiting_watch_is_woken_by_a_registration(discovery: Discovery, server: HealthServer) -> None:
    sets = discovery.watch("tail")
    await until(sets, lambda current: current == ())
    waiting = asyncio.create_task(until(sets, bool))
    await discovery.register(tail(server))
    assert await waiting == (tail(server),)


async def test_the_same_id_again_replaces_the_entry(discovery: Discovery, server: HealthServer) -> None:
    earlier = await discovery.register(tail(server, metadata={"version": "1"}))
    later = await discovery.register(tail(server, metadata={"version": "2"}))
    await until(discovery.watch("tail"), lambda current: current == (later.instance,))
    await earlier.deregister()
    await discovery.register(tail(server, "b"))
    await listed(discovery, "tail", "a", "b")


async def test_a_cancelled_watcher_leaves_the_others_watching(discovery: Discovery, server: HealthServer) -> None:
    left, right = discovery.watch("tail"), discovery.watch("tail")
    assert await until(left, lambda current: True) == await until(right, lambda current: True) == ()
    cancelled = asyncio.create_task(until(left, bool))
    waiting = asyncio.create_task(until(right, bool))
    cancelled.cancel()
    await discovery.register(tail(server))
    assert await waiting == (tail(server),)


async def test_closing_ends_every_watch(discovery: Discovery, server: HealthServer) -> None:
    sets = discovery.watch("tail")
    await until(sets, lambda current: True)

    async def rest() -> list[tuple[Instance, ...]]:
        return [current async for current in sets]

    waiting = asyncio.create_task(rest())
    async with asyncio.timeout(DEADLINE_S):
        await discovery.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await waiting == []


async def test_a_closed_discovery_is_unavailable(discovery: Discovery, server: HealthServer) -> None:
    await discovery.close()
    for call in (discovery.resolve("tail"), discovery.register(tail(server))):
        with pytest.raises(MeshError) as caught:
            await call
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_name_no_service_can_have_is_refused(discovery: Discovery) -> None:
    for call in (discovery.resolve("No Such"), until(discovery.watch("../tail"), bool)):
        with pytest.raises(MeshError) as caught:
            await call
        assert caught.value.reason is Reason.FIELD_INVALID


# only Consul


async def test_a_killed_server_leaves_the_set_and_its_return_is_seen(
    over: Over, agent: ConsulAgent, server: HealthServer
) -> None:
    discovery = over(agent)
    sets = discovery.watch("tail")
    await discovery.register(tail(server))
    await until(sets, bool)
    await server.kill()
    await until(sets, lambda current: current == ())
    again = await start_server(int(server.address.rpartition(":")[2]))
    assert await until(sets, bool) == (tail(again),)
    await again.kill()


async def test_an_instance_that_says_not_serving_leaves_the_set(
    over: Over, agent: ConsulAgent, server: HealthServer
) -> None:
    discovery = over(agent, check=GrpcCheck(interval_s=1.0, timeout_s=1.0, service="tail"))
    await server.health.set("tail", health_pb2.HealthCheckResponse.SERVING)
    sets = discovery.watch("tail")
    await discovery.register(tail(server))
    await until(sets, bool)
    await server.health.set("tail", health_pb2.HealthCheckResponse.NOT_SERVING)
    await until(sets, lambda current: current == ())
    await server.health.set("tail", health_pb2.HealthCheckResponse.SERVING)
    await until(sets, bool)


async def test_what_one_process_registers_another_sees(over: Over, agent: ConsulAgent, server: HealthServer) -> None:
    here, there = over(agent), over(agent)
    sets = there.watch("tail")
    await here.register(tail(server))
    await until(sets, bool)
    await here.close()
    await until(sets, lambda current: current == ())


async def test_a_watch_outlives_an_agent_that_restarts_empty(
    over: Over, agent: ConsulAgent, server: HealthServer
) -> None:
    discovery = over(agent)
    await discovery.register(tail(server))
    seen: asyncio.Queue[tuple[Instance, ...]] = asyncio.Queue()

    async def follow() -> None:
        async for current in discovery.watch("tail"):
            seen.put_nowait(current)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(DEADLINE_S):
        while not await seen.get():
            pass
        with logging_of("keeps its last set") as noticed:
            await agent.stop()
            await noticed.wait()
        assert seen.empty(), "an outage of the agent is no news about the instances"
        await agent.start()
        # A second instance: where the first is back before the watch asks again, its set is no news.
        await discovery.register(tail(server, "b"))
        while set(await seen.get()) != {tail(server), tail(server, "b")}:
            pass
    await discovery.close()
    await following


async def test_an_entry_the_agent_lost_is_registered_again(
    over: Over, agent: ConsulAgent, server: HealthServer
) -> None:
    discovery = over(agent)
    registration = await discovery.register(tail(server, metadata={"version": "1"}))
    sets = discovery.watch("tail")
    await until(sets, bool)
    async with aiohttp.ClientSession() as session:
        await session.put(f"http://{agent.address}/v1/agent/service/deregister/splitmesh-tail:a")
    await until(sets, lambda current: current == ())
    assert await until(sets, bool) == (registration.instance,)


async def test_without_an_agent_calls_are_unavailable(over: Over, agent: ConsulAgent, server: HealthServer) -> None:
    discovery = over(agent)
    registration = await discovery.register(tail(server))
    await agent.stop()
    for call in (discovery.resolve("tail"), discovery.register(tail(server, "b")), registration.deregister()):
        with pytest.raises(MeshError) as caught:
            await call
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    async with asyncio.timeout(DEADLINE_S):
        await discovery.close()


async def test_an_agent_that_hangs_costs_one_deadline(over: Over, agent: ConsulAgent, server: HealthServer) -> None:
    discovery = over(agent, request_timeout_s=0.5)
    agent.pause()
    started = asyncio.get_running_loop().time()
    for call in (discovery.resolve("tail"), discovery.register(tail(server))):
        with pytest.raises(MeshError, match="in time"):
            await call
    assert 1.0 <= asyncio.get_running_loop().time() - started < 5.0
    agent.resume()
    assert await until(discovery.watch("tail"), lambda current: True) is not None


async def test_a_malformed_entry_is_left_out(over: Over, agent: ConsulAgent, server: HealthServer) -> None:
    discovery = over(agent)
    async with aiohttp.ClientSession() as session:
        for entry_id, port in (("stray", 0), ("own", 7001)):
            entry = {"ID": entry_id, "Name": "splitmesh-tail", "Address": "10.0.0.9", "Port": port}
            await session.put(f"http://{agent.address}/v1/agent/service/register", json=entry)
    found = await until(discovery.watch("tail"), bool)
    assert found == (Instance("tail", "own", "10.0.0.9:7001"),)


async def test_the_token_decides_what_the_agent_allows(over: Over, server: HealthServer) -> None:
    require_part("consul", find_consul() is not None)
    secret = "6f1a5c52-9d8e-4a53-8f0d-0a4b9b1c2d3e"
    acl = f'acl {{ enabled = true default_policy = "deny" tokens {{ master = "{secret}" agent = "{secret}" }} }}'
    async with ConsulAgent(settings=(acl,), token=secret) as agent:
        trusted, stranger = over(agent, token=secret), over(agent)
        await trusted.register(tail(server))
        await listed(trusted, "tail", "a")
        assert await stranger.resolve("tail") == ()
        with pytest.raises(MeshError, match="403") as caught:
            await stranger.register(tail(server, "b"))
        assert secret not in str(caught.value)


@contextmanager
def logging_of(message: str) -> Iterator[asyncio.Event]:
    """An event that is set when the Consul adapter logs this."""
    noticed = asyncio.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if message in record.getMessage():
                noticed.set()

    listener, logger = Listener(), logging.getLogger("splitmesh.kernel.discovery_consul")
    logger.addHandler(listener)
    try:
        yield noticed
    finally:
        logger.removeHandler(listener)
