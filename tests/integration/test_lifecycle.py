"""How a service lives and dies: states, start that fails, drain, ports, and the whole of it as a real process."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors, open_channel
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings
from splitmesh.kernel.lifecycle import Host, State
from splitmesh.kernel.streams import FrameStream
from splitmesh.testing.mesh import ProcessLauncher
from tests.support.small_service import SERVICE, SmallService
from tests.support.wire import Raw, ended
from tests.support.worlds import ROOT

WAIT_S = 20.0


def settings(**changes: object) -> ServiceSettings:
    return ServiceSettings(**{"drain_s": 1.0, "node": "here", **changes})  # type: ignore[arg-type]


class Part:
    """Writes down what happens to it."""

    def __init__(self, name: str, log: list[str], *, fails: str = "") -> None:
        self._name, self._log, self._fails = name, log, fails

    async def start(self) -> None:
        self._log.append(f"start {self._name}")
        if self._fails == "start":
            raise MeshError(Reason.STORAGE_FULL, "no room")

    async def stop(self) -> None:
        self._log.append(f"stop {self._name}")
        if self._fails == "stop":
            raise OSError("cannot stop")


def frame(frame_id: int) -> segment_pb2.RunRequest:
    return segment_pb2.RunRequest(frame=segment_pb2.SegmentFrame(frame_id=frame_id))


def result(frame_id: int) -> segment_pb2.RunResponse:
    return segment_pb2.RunResponse(result=segment_pb2.Result(frame_id=frame_id))


Answer = Callable[[segment_pb2.RunRequest], Coroutine[Any, Any, segment_pb2.RunResponse]]


def frame_stream(answer: Answer, service: SmallService) -> FrameStream[segment_pb2.RunRequest, segment_pb2.RunResponse]:
    return FrameStream(
        answer,
        lambda request, error: result(0),
        frame_id=lambda request: request.frame.frame_id,
        credit=8,
        drain=service.drain,
    )


async def test_a_service_passes_its_states_and_its_parts_stop_in_reverse() -> None:
    log: list[str] = []
    host = Host("small", settings(), SmallService(parts=[Part("a", log), Part("b", log)]))
    assert host.state is State.NEW
    await host.start()
    assert host.state is State.RUNNING
    assert log == ["start a", "start b"]
    await host.stop()
    assert host.state is State.TERMINATED
    assert log == ["start a", "start b", "stop b", "stop a"]
    await host.stop()
    assert len(log) == 4


async def test_a_start_that_fails_undoes_what_was_started_and_says_why() -> None:
    log: list[str] = []
    parts = [Part("a", log), Part("b", log, fails="start"), Part("c", log)]
    host = Host("small", settings(), SmallService(parts=parts))
    with pytest.raises(MeshError, match="no room"):
        await host.start()
    assert host.state is State.FAILED
    assert log == ["start a", "start b", "stop b", "stop a"]


async def test_a_part_that_cannot_stop_does_not_keep_the_others_from_stopping(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    host = Host("small", settings(), SmallService(parts=[Part("a", log), Part("b", log, fails="stop")]))
    await host.start()
    await host.stop()
    assert host.state is State.TERMINATED
    assert log[-1] == "stop a"
    assert "cannot stop" in caplog.text


async def test_a_taken_port_is_a_clear_error_and_the_first_owner_keeps_it() -> None:
    async with Host("small", settings(), SmallService()) as first:
        port = int(first.address.rpartition(":")[2])
        log: list[str] = []
        second = Host("small", settings(port=port), SmallService(parts=[Part("a", log)]))
        with pytest.raises(MeshError, match=f"{port}; is the port taken") as caught:
            await second.start()
        assert (caught.value.reason, second.state, log[-1]) == (
            Reason.SERVICE_UNAVAILABLE,
            State.FAILED,
            "stop a",
        )
        assert (await describe(first)).node == "small"


async def describe(host: Host) -> segment_pb2.DescribeResponse:
    async with open_channel(host.address) as channel, mesh_errors():
        stub = segment_pb2_grpc.SegmentServiceStub(channel)
        return await stub.Describe(segment_pb2.DescribeRequest(), timeout=WAIT_S)


async def test_health_follows_the_service_from_its_start_to_its_end() -> None:
    async with (
        Host("small", settings(), SmallService(serving_at_start=False)) as host,
        open_channel(host.address) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        whole = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        asked = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=WAIT_S)
        assert (await whole.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert asked.status == health_pb2.HealthCheckResponse.NOT_SERVING
        stopping = asyncio.create_task(host.stop())
        assert (await whole.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        whole.cancel()
        await stopping


async def test_a_stop_answers_what_a_stream_has_sent_and_ends_it_with_not_ready() -> None:
    service, go_on, taken = SmallService(), asyncio.Event(), asyncio.Event()

    async def slow(request: segment_pb2.RunRequest) -> segment_pb2.RunResponse:
        if request.frame.frame_id == 3:
            taken.set()
        await go_on.wait()
        return result(request.frame.frame_id)

    async def run(requests: AsyncIterator[segment_pb2.RunRequest]) -> AsyncIterator[segment_pb2.RunResponse]:
        stream = frame_stream(slow, service)
        async for response in stream.serve(requests):
            yield response

    service.run = run
    async with Host("small", settings(drain_s=10.0), service) as host, open_channel(host.address) as channel:
        raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
        for frame_id in (1, 2, 3):
            await raw.write(frame(frame_id))
        async with asyncio.timeout(WAIT_S):
            await taken.wait()
        stopping = asyncio.create_task(host.stop())
        async with asyncio.timeout(WAIT_S):
            await service.drain.begun.wait()
        go_on.set()
        assert sorted([(await raw.read()).result.frame_id for _ in range(3)]) == [1, 2, 3]
        error = await ended(raw)
        assert (error.reason, error.retry_after_s) == (Reason.NOT_READY, 0.5)
        await stopping


async def test_a_stop_waits_no_longer_than_the_drain_for_an_answer_that_never_comes() -> None:
    service, taken = SmallService(), asyncio.Event()

    async def never(request: segment_pb2.RunRequest) -> segment_pb2.RunResponse:
        taken.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def run(requests: AsyncIterator[segment_pb2.RunRequest]) -> AsyncIterator[segment_pb2.RunResponse]:
        stream = frame_stream(never, service)
        async for response in stream.serve(requests):
            yield response

    service.run = run
    async with Host("small", settings(drain_s=0.2), service) as host, open_channel(host.address) as channel:
        raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
        await raw.write(frame(1))
        async with asyncio.timeout(WAIT_S):
            await taken.wait()
        async with asyncio.timeout(5.0):
            await host.stop()
        assert (await ended(raw)).reason in (Reason.SERVICE_UNAVAILABLE, Reason.CANCELLED)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_client_that_goes_away_without_reading_leaves_nothing_open() -> None:
    service, closed = SmallService(), asyncio.Event()
    big = segment_pb2.RunResponse(frame_error=segment_pb2.FrameError())
    big.frame_error.status.message = "x" * (1 << 20)

    async def pour(requests: AsyncIterator[segment_pb2.RunRequest]) -> AsyncIterator[segment_pb2.RunResponse]:
        await anext(requests)
        try:
            while True:
                yield big
        finally:
            closed.set()

    service.run = pour
    with no_garbage_collection():
        async with Host("small", settings(), service) as host, open_channel(host.address) as channel:
            raw = Raw(segment_pb2_grpc.SegmentServiceStub(channel).Run())
            await raw.write(frame(1))
            await raw.read()
            raw.call.cancel()
            async with asyncio.timeout(5.0):
                await closed.wait()


# as processes


def environment(**settings_: object) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    return kept | {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in settings_.items()}


async def python(*arguments: str, **settings_: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env=environment(**settings_),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finished(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
async def test_a_process_says_when_it_runs_and_ends_with_0_when_told_to(
    tmp_path: Path, signal_: signal.Signals
) -> None:
    running = await ProcessLauncher(ROOT, tmp_path).launch("tail", {"data_dir": str(tmp_path)})
    told = json.loads((tmp_path / "tail-1.ready").read_text())
    assert told == {"address": running.address, "pid": running.process.pid}
    async with open_channel(running.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status = await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=WAIT_S)
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        running.process.send_signal(signal_)
        async with asyncio.timeout(WAIT_S):
            assert await running.process.wait() == 0
    await running.stop()
    lines = (tmp_path / "tail-1.log").read_text().splitlines()
    assert [json.loads(one)["message"] for one in lines] == [
        "no trust root is set (SPLITMESH_TRUST_ROOT): versions are used unverified",
        f"tail is running at {running.address}",
        "tail has stopped",
    ]


async def test_bad_settings_end_a_process_with_2_and_name_the_setting() -> None:
    code, _, err = await finished(await python("-m", "cloud.tail", port=70_000, max_batch="many"))
    assert code == 2
    assert "port" in err
    assert "max_batch" in err
    assert "Traceback" not in err


async def test_a_head_without_a_model_to_serve_has_bad_settings() -> None:
    code, _, err = await finished(await python("-m", "edge.head", models=" , "))
    assert code == 2
    assert "models" in err


async def test_a_taken_port_ends_a_process_with_1_and_a_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = await finished(await python("-m", "cloud.tail", port=port, data_dir=tmp_path))
    assert code == 1
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert any("is the port taken?" in line["message"] for line in lines)
    assert "Traceback" not in err


async def test_help_prints_every_setting_with_default_and_meaning() -> None:
    code, out, _ = await finished(await python("-m", "edge.head", "--help"))
    assert code == 0
    for name in ("PORT", "MODELS", "ANSWER_MARGIN_MS", "OTLP_ENDPOINT"):
        assert f"{ENV_PREFIX}{name} " in out
    assert "Longest wait for calls in progress at shutdown, seconds." in out
