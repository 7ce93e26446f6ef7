"""A service in several processes, real ones: where they are found, what becomes of one that dies, how all of them stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cloud.tail.config import TailSettings
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel import supervisor
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.discovery_consul import ConsulDiscovery
from splitmesh.kernel.probe import main as probe
from splitmesh.kernel.supervisor import ReplicaSettings, Supervisor
from splitmesh.testing.consul import ConsulAgent
from splitmesh.testing.mesh import ProcessLauncher, ServiceProcess
from splitmesh.testing.parts import find_consul, require_part
from tests.support.held_tail import described
from tests.support.wire import assert_alive, ended, run_stream
from tests.support.worlds import MODEL, ROOT, World, world

WAIT_S = 60.0
READY = (
    "import os, json, signal, time\n"
    "file = os.environ['SPLITMESH_READY_FILE']\n"
    "open(file + 'x', 'w').write(json.dumps({'address': '127.0.0.1:' + str(os.getpid() % 60000 + 1)}))\n"
    "os.rename(file + 'x', file)\n"
)
"""The beginning of a small service: it says that it runs."""


class Tails:
    """A tail in two processes."""

    def __init__(self, folder: Path, running: ServiceProcess) -> None:
        told = json.loads((folder / "tail-1.ready").read_text())
        self.running = running
        self.address, self.addresses, self.pid = told["address"], told["addresses"], told["pid"]
        self.log = folder / "tail-1.log"

    def children(self) -> list[int]:
        """Process ids, in the order of the replicas."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sorted(map(int, found), key=_replica)

    def messages(self) -> list[str]:
        return [json.loads(line)["message"] for line in self.log.read_text().splitlines()]


def _replica(pid: int) -> str:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(entry for entry in environment if entry.startswith(b"SPLITMESH_NODE=")).decode()


async def launched(folder: Path, **settings: object) -> Tails:
    values = {"data_dir": folder / "data", "node": "cloud", "processes": 2, "drain_s": 2, **settings}
    running = await ProcessLauncher(ROOT, folder).launch("tail", {key: str(one) for key, one in values.items()})
    return Tails(folder, running)


async def answering(address: str) -> str:
    """The node that answers there, once one does."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with mesh_errors():
                    return (await described(address)).node
            except MeshError as error:
                assert error.reason is Reason.SERVICE_UNAVAILABLE  # noqa: PT017


async def holds(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.02)


async def silent(address: str) -> None:
    """Returns when nobody listens there."""
    host, port = address.rsplit(":", 1)
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return
            writer.close()


async def test_every_process_is_an_instance_one_that_is_killed_comes_back_and_at_a_stop_all_drain_their_streams(
    tmp_path: Path, registered: Path
) -> None:
    async with world(tmp_path, registered) as cloud:
        tails = await launched(tmp_path / "tails", static_addresses=_addresses(cloud))
        try:
            assert tails.pid == tails.running.process.pid
            assert tails.address == tails.addresses[0]
            assert [await answering(address) for address in tails.addresses] == ["cloud-1", "cloud-2"]
            first, second = tails.children()
            os.kill(second, signal.SIGKILL)
            await silent(tails.addresses[1])
            assert await answering(tails.addresses[1]) == "cloud-2"
            assert tails.children()[0] == first
            assert tails.children()[1] != second
            assert any("tail 2 ended with SIGKILL; starting it again" in message for message in tails.messages())
            async with run_stream(tails.addresses[0], MODEL) as one, run_stream(tails.addresses[1], MODEL) as two:
                for raw in (one, two):
                    await assert_alive(raw)
                tails.running.process.send_signal(signal.SIGTERM)
                for raw in (one, two):
                    assert (await raw.read()).WhichOneof("message") == "draining"
                    assert (await ended(raw)).reason is Reason.NOT_READY
                async with asyncio.timeout(WAIT_S):
                    assert await tails.running.process.wait() == 0
        finally:
            await tails.running.kill()
        assert tails.messages().count("tail has stopped") == 3
        folders = sorted(path.name for path in (tmp_path / "tails" / "data").iterdir())
    assert folders == ["replica-1", "replica-2"]


async def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    tails = await launched(tmp_path)
    os.kill(tails.pid, signal.SIGKILL)
    for address in tails.addresses:
        await silent(address)
    await tails.running.kill()


def _addresses(cloud: World) -> str:
    return ",".join(f"{name}={address}" for name, address in cloud.addresses.items())


async def test_a_process_that_dies_before_all_run_ends_the_service_with_its_code(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] - 1
        with pytest.raises(RuntimeError, match="tail ended with 1") as caught:
            await launched(tmp_path, port=port)
    assert "is the port taken?" in str(caught.value)


async def test_with_consul_every_process_registers_and_a_successor_takes_the_place_of_the_one_before(
    tmp_path: Path,
) -> None:
    require_part("consul", find_consul() is not None)
    async with ConsulAgent() as agent, asyncio.timeout(WAIT_S):
        tails = await launched(tmp_path, discovery="consul", consul_address=agent.address, consul_check_interval_s=1)
        discovery = ConsulDiscovery(agent.address)
        try:
            ids = set()
            async for instances in discovery.watch("tail"):
                if [one.address for one in instances] == tails.addresses:
                    ids = {one.instance_id for one in instances}
                    break
            os.kill(tails.children()[0], signal.SIGKILL)
            await silent(tails.addresses[0])
            await answering(tails.addresses[0])
            async for instances in discovery.watch("tail"):
                if len(instances) == 2:
                    assert {one.instance_id for one in instances} == ids
                    break
            await tails.running.stop()
            async for instances in discovery.watch("tail"):
                if not instances:
                    break
        finally:
            await discovery.close()
            await tails.running.kill()


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_crash_loop_is_told_and_a_stop_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stubborn: bool
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(supervisor, "STOP_MARGIN_S", 0.2)
    waits = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)" if stubborn else "time.sleep(.1); os._exit(3)"
    )
    stop = asyncio.Event()
    settings = ReplicaSettings(processes=2, drain_s=0, ready_file=tmp_path / "ready")
    running = asyncio.create_task(Supervisor("small", [sys.executable, "-c", READY + waits], settings).run(stop))
    async with asyncio.timeout(WAIT_S):
        await holds((tmp_path / "ready").exists)
        if not stubborn:
            await holds(lambda: "again and again: 5 ends in a row, the last with exit code 3" in caplog.text)
        stop.set()
        assert await running == 0
    assert ("does not end; killing it" in caplog.text) == stubborn


async def test_a_process_that_cannot_be_started_for_a_while_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(supervisor, "LOOP", 1000)
    real, refused = asyncio.create_subprocess_exec, 0

    async def refusing(*command: str, **options: Any) -> asyncio.subprocess.Process:
        nonlocal refused
        if (tmp_path / "ready").exists() and refused < 2:
            refused += 1
            raise OSError("no process is left")
        return await real(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refusing)
    stop = asyncio.Event()
    settings = ReplicaSettings(processes=2, drain_s=0, ready_file=tmp_path / "ready")
    # A real-time signal has no name of its own.
    command = [sys.executable, "-c", READY + "time.sleep(.1); os.kill(os.getpid(), 36)"]
    running = asyncio.create_task(Supervisor("small", command, settings).run(stop))
    async with asyncio.timeout(WAIT_S):
        await holds(lambda: refused == 2 and caplog.text.count("ended with signal 36") > 6)
        stop.set()
        assert await running == 0
    assert caplog.text.count("cannot be started: no process is left") == 2


async def test_a_process_that_never_gets_ready_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "START_S", 0.2)
    settings = ReplicaSettings(processes=2, drain_s=0, ready_file=tmp_path / "ready")
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    running = Supervisor("hangs", hangs, settings).run(asyncio.Event())
    async with asyncio.timeout(WAIT_S):
        assert await running == 1
    assert "was not running after" in caplog.text


@pytest.mark.parametrize(("ends", "pause_s"), [(1, 0.2), (3, 0.8), (9, 30.0), (5000, 30.0)])
def test_the_pause_grows_to_the_longest_and_stays_there(ends: int, pause_s: float) -> None:
    assert supervisor.pause_after(ends) == pytest.approx(pause_s)


def test_what_a_host_has_is_shared_out(tmp_path: Path) -> None:
    whole = TailSettings(
        processes=3, port=7020, compute_threads=8, compute_slots=2, data_dir=tmp_path, node="n", max_cache_bytes=900
    )
    first, last = whole.replica(1), whole.replica(3)
    assert (first["port"], last["port"]) == (7020, 7022)
    assert (first["node"], last["node"]) == ("n-1", "n-3")
    assert last["data_dir"] == tmp_path / "replica-3"
    assert (first["processes"], first["compute_threads"], first["compute_slots"]) == (1, 2, 2)
    assert first["max_cache_bytes"] == 300
    TailSettings(**first)


def test_ports_beyond_the_last_one_are_refused() -> None:
    with pytest.raises(ValidationError, match="beyond 65535"):
        TailSettings(processes=3, port=65534)


async def test_the_health_check_of_a_container_asks_every_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setenv("SPLITMESH_PORT", str(port))
    monkeypatch.setenv("SPLITMESH_PROCESSES", "2")
    for arguments, first in ([], port), (["--shared"], port + 1):
        assert await asyncio.to_thread(probe, arguments) == 1
        asked = [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()]
        assert asked == [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"]
    monkeypatch.setenv("SPLITMESH_PROCESSES", "1")
    assert await asyncio.to_thread(probe, ["--shared"]) == 1
    assert capsys.readouterr().out.startswith(f"127.0.0.1:{port} ")
