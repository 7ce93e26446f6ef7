"""The health probe against a real, tiny gRPC server: what it exits with, and how soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from splitmesh.kernel import probe
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings

DEADLINE_S = 1.0
MODEL_SERVICE = "test.ModelService"
Status = health_pb2.HealthCheckResponse


@contextmanager
def serving(status: int, service: str = "") -> Iterator[str]:
    """A server whose health says ``status`` of one service, and nothing of any other."""
    health = HealthServicer()
    health.set("", Status.SERVICE_UNKNOWN)
    health.set(service, status)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def silent() -> Iterator[str]:
    """Something that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def ask(*arguments: str) -> int:
    return probe.main([*arguments, "--deadline", str(DEADLINE_S)])


def test_a_serving_server_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Status.SERVING) as address:
        assert ask(address) == 0
        assert capsys.readouterr().out == f"{address} (process): SERVING\n"


@pytest.mark.parametrize("status", [Status.NOT_SERVING, Status.UNKNOWN, Status.SERVICE_UNKNOWN])
def test_any_other_answer_is_unhealthy(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(status) as address:
        assert ask(address) == 1
        assert Status.ServingStatus.Name(status) in capsys.readouterr().out


def test_one_service_is_asked_for_by_name() -> None:
    with serving(Status.SERVING, MODEL_SERVICE) as address:
        assert ask(address, "--service", MODEL_SERVICE) == 0
        assert ask(address) == 1


def test_a_service_the_server_does_not_know_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Status.SERVING) as address:
        assert ask(address, "--service", MODEL_SERVICE) == 1
        assert "NOT_FOUND" in capsys.readouterr().out


def test_nobody_there_is_unhealthy_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with silent() as address:
        pass
    started = time.monotonic()
    assert ask(address) == 1
    assert time.monotonic() - started < DEADLINE_S + 1
    assert "UNAVAILABLE" in capsys.readouterr().out


def test_a_server_that_hangs_is_unhealthy_at_the_deadline(capsys: pytest.CaptureFixture[str]) -> None:
    with silent() as address:
        started = time.monotonic()
        assert ask(address) == 1
        assert time.monotonic() - started < DEADLINE_S + 1
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().out


def test_a_proxy_in_the_environment_does_not_answer_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent() as proxy, serving(Status.SERVING) as address:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        monkeypatch.setenv("grpc_proxy", f"http://{proxy}")
        assert ask(address) == 0


def test_without_an_address_the_process_asks_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{ENV_PREFIX}PORT" == probe.PORT_VARIABLE
    assert "port" in ServiceSettings.model_fields
    with serving(Status.SERVING) as address:
        monkeypatch.setenv(probe.PORT_VARIABLE, address.rpartition(":")[2])
        assert ask() == 0


def test_without_any_address_it_says_how_it_is_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(probe.PORT_VARIABLE, raising=False)
    with pytest.raises(SystemExit, match="2"):
        ask()
    assert "HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "code"), [(Status.SERVING, 0), (Status.NOT_SERVING, 1)])
def test_the_exit_code_of_the_program_is_the_answer(status: int, code: int) -> None:
    environment = {key: value for key, value in os.environ.items() if key != probe.PORT_VARIABLE}
    with serving(status) as address:
        command = [sys.executable, "-m", "splitmesh.kernel.probe", address]
        assert subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode == code
