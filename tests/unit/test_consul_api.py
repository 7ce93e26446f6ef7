"""How the Consul adapter takes what a sick or wicked agent answers, from a scripted one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.consul_api import ConsulAgentApi
from splitmesh.kernel.discovery_consul import ConsulDiscovery

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    server = web.Server(handler)  # type: ignore[arg-type]
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


async def refused(handler: Handler, timeout_s: float = 5.0) -> MeshError:
    async with answering(handler) as address:
        api = ConsulAgentApi(address, "secret-token", None, timeout_s)
        try:
            with pytest.raises(MeshError) as caught:
                await api.call("GET", "/v1/health/service/x")
        finally:
            await api.close()
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert caught.value.retry_after_s
    assert "secret-token" not in str(caught.value)
    return caught.value


async def test_an_endless_answer_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 20))

    assert "more than" in (await refused(endless)).message


async def test_an_answer_that_never_comes_is_given_up() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    assert "in time" in (await refused(silent, timeout_s=0.1)).message


async def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/")

    assert "307" in (await refused(elsewhere)).message


@pytest.mark.parametrize(
    ("text", "index"), [("not json", "1"), ("[]", "many"), ("[" * 100_000, "1")], ids=["json", "index", "deep"]
)
async def test_nonsense_is_an_agent_that_is_unavailable(text: str, index: str) -> None:
    async def nonsense(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, headers={"X-Consul-Index": index})

    await refused(nonsense)


async def test_a_watch_starts_anew_when_the_index_goes_back_and_never_asks_without_one_twice() -> None:
    asked: list[str] = []
    enough = asyncio.Event()

    async def moody(request: web.Request) -> web.StreamResponse:
        asked.append(request.query.get("index", "-"))
        if len(asked) == 5:
            enough.set()
        index, port = [("9", 1), ("4", 1), ("0", 2), ("1", 2), ("2", 3)][min(len(asked), 5) - 1]
        entry = {"Service": {"ID": "a", "Address": "h", "Port": port, "Tags": None, "Meta": None}}
        return web.json_response([entry], headers={"X-Consul-Index": index})

    async with answering(moody) as address:
        discovery = ConsulDiscovery(address)
        seen: list[str] = []

        async def follow() -> None:
            async for current in discovery.watch("tail"):
                seen.append(current[0].address)

        following = asyncio.create_task(follow())
        async with asyncio.timeout(20.0):
            await enough.wait()
        await discovery.close()
        await following
    assert asked[:5] == ["-", "9", "-", "1", "1"]
    assert seen[:2] == ["h:1", "h:2"], "the same set twice is no change"


async def test_a_watch_of_a_churning_service_settles_at_a_steady_rate() -> None:
    asked = 0

    async def churning(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return web.json_response([], headers={"X-Consul-Index": str(asked)})

    async with answering(churning) as address:
        discovery = ConsulDiscovery(address)

        async def follow() -> None:
            async for _ in discovery.watch("tail"):
                pass

        following = asyncio.create_task(follow())
        asyncio.get_running_loop().call_later(1.5, lambda: closing.append(asyncio.create_task(discovery.close())))
        closing: list[asyncio.Task[None]] = []
        async with asyncio.timeout(20.0):
            await following
        await closing[0]
    assert 2 <= asked <= 5
