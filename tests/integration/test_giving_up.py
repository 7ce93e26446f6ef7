"""A process that ends before it is told to, or is told so before it runs: a part gives up, a signal comes during the start."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel import lifecycle
from splitmesh.kernel.channels import open_channel
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.lifecycle import App, Kernel
from tests.support.small_service import SERVICE, SmallService

WAIT_S = 20.0


class Part:
    """Gives up when told to; its start can wait."""

    def __init__(self, *, may_start: bool = True) -> None:
        self.starting, self.may_start, self.stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if may_start:
            self.may_start.set()

    async def start(self) -> None:
        self.starting.set()
        await self.may_start.wait()

    async def stop(self) -> None:
        self.stopped.set()


class Service(SmallService):
    """Shows what the kernel gave it."""

    kernel: Kernel

    def __call__(self, settings: ServiceSettings, kernel: Kernel) -> App:
        self.kernel = kernel
        return super().__call__(settings, kernel)

    def give_up(self, why: str) -> None:
        self.kernel.give_up(MeshError(Reason.SERVICE_UNAVAILABLE, why))


@pytest.fixture
async def address(monkeypatch: pytest.MonkeyPatch) -> asyncio.Future[str]:
    """Where the service runs, once it does."""
    found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(lifecycle, "_write_ready_file", lambda settings, at: found.set_result(at))
    return found


def serving(service: Service) -> asyncio.Task[int]:
    """What a process does, up to its exit code."""
    return asyncio.create_task(lifecycle._serve("small", ServiceSettings(drain_s=WAIT_S, node="here"), service))


async def test_a_service_whose_part_gives_up_is_not_serving_drains_and_ends_with_1(
    address: asyncio.Future[str], caplog: pytest.LogCaptureFixture
) -> None:
    part = Part()
    service = Service(parts=[part])
    async with asyncio.timeout(WAIT_S):
        ending = serving(service)
        async with open_channel(await address) as channel:
            service.drain.enter()
            service.give_up("the database is another one's")
            service.give_up("the database is still another one's")
            await service.drain.begun.wait()
            for name in ("", SERVICE):
                request = health_pb2.HealthCheckRequest(service=name)
                found = await health_pb2_grpc.HealthStub(channel).Check(request)
                assert found.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert not part.stopped.is_set()
            service.drain.leave()
        assert await ending == 1
    assert part.stopped.is_set()
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["small cannot go on and stops: SERVICE_UNAVAILABLE: the database is another one's"]


async def test_a_part_that_gives_up_while_others_start_ends_the_service_once_it_runs(
    address: asyncio.Future[str],
) -> None:
    part = Part(may_start=False)
    service = Service(parts=[part])
    async with asyncio.timeout(WAIT_S):
        ending = serving(service)
        await part.starting.wait()
        service.give_up("lost")
        part.may_start.set()
        assert await ending == 1
    assert address.done()
    assert part.stopped.is_set()


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
async def test_a_start_that_waits_is_given_up_at_a_signal(
    address: asyncio.Future[str], signal_: signal.Signals
) -> None:
    first, waiting = Part(), Part(may_start=False)
    async with asyncio.timeout(WAIT_S):
        ending = serving(Service(parts=[first, waiting]))
        await waiting.starting.wait()
        os.kill(os.getpid(), signal_)
        assert await ending == 0
    assert first.stopped.is_set()
    assert waiting.stopped.is_set()
    assert not address.done()


async def test_a_signal_ends_a_service_that_runs_with_0(address: asyncio.Future[str]) -> None:
    async with asyncio.timeout(WAIT_S):
        ending = serving(Service())
        await address
        os.kill(os.getpid(), signal.SIGTERM)
        assert await ending == 0
