"""A head in several processes, real ones: one address for all cameras, each process at one of its own as well."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from edge.head.config import HeadSettings
from splitmesh.client import Mesh
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.server import HealthControl, make_server
from splitmesh.kernel.supervisor import Supervisor
from splitmesh.kernel.telemetry import Telemetry
from splitmesh.testing.mesh import ProcessLauncher
from tests.support.held_tail import described
from tests.support.models import EASY, picture
from tests.support.worlds import MODEL, ROOT, World, world

WAIT_S = 60.0
CONNECTIONS = 40


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> World:  # type: ignore[misc]
    async with world(tmp_path, registered) as made:
        yield made


async def answering_nodes(address: str) -> set[str]:
    """Of so many new connections."""
    return {(await described(address)).node for _ in range(CONNECTIONS)}


async def test_cameras_share_one_address_and_a_process_that_is_killed_costs_nobody_the_head(
    cloud: World, tmp_path: Path
) -> None:
    tail = await cloud.start("tail")
    addresses = {**cloud.addresses, "tail": tail.address}
    settings = {
        "data_dir": str(tmp_path / "heads"),
        "models": MODEL,
        "node": "edge",
        "processes": "2",
        "segment_threads": "1",
        "drain_s": "2",
        "static_addresses": ",".join(f"{name}={address}" for name, address in addresses.items()),
    }
    running = await ProcessLauncher(ROOT, tmp_path / "work").launch("head", settings)
    try:
        told = json.loads((tmp_path / "work" / "head-1.ready").read_text())
        assert told["address"] not in told["addresses"]
        assert [(await described(address)).node for address in told["addresses"]] == ["edge-1", "edge-2"]
        async with asyncio.timeout(WAIT_S):
            while await answering_nodes(running.address) != {"edge-1", "edge-2"}:
                pass
        async with Mesh(running.address, deadline_ms=10_000) as mesh:
            async with asyncio.timeout(WAIT_S):
                while True:
                    try:
                        assert (await mesh.infer(picture(EASY), retries=5)).labels
                        break
                    except MeshError as error:
                        assert error.reason is Reason.NOT_READY  # noqa: PT017
            children = Path(f"/proc/{told['pid']}/task/{told['pid']}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            async with asyncio.timeout(WAIT_S):
                while await answering_nodes(running.address) != {"edge-1", "edge-2"}:
                    pass
            assert (await mesh.infer(picture(EASY), retries=20)).labels
    finally:
        await running.stop()
    assert running.process.returncode == 0


async def test_a_front_port_that_somebody_has_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        settings = HeadSettings(processes=2, port=stranger.getsockname()[1], data_dir=tmp_path)
        with pytest.raises(MeshError) as caught:
            Supervisor("head", ["true"], settings)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


def test_every_process_of_a_head_has_a_port_of_its_own_behind_the_shared_one(tmp_path: Path) -> None:
    settings = HeadSettings(processes=2, port=7010, workers=4, max_frames=100, data_dir=tmp_path)
    assert [settings.replica(number)["port"] for number in (1, 2)] == [7011, 7012]
    assert [settings.replica(number)["workers"] for number in (1, 2)] == [2, 2]
    assert settings.replica(2)["data_dir"] == tmp_path / "replica-2"


def test_what_a_host_has_is_shared_out_among_the_processes_of_a_head(tmp_path: Path) -> None:
    settings = HeadSettings(processes=4, cores=8, segment_threads=6, max_frames=64, credit=32, data_dir=tmp_path)
    own = settings.replica(1)
    assert (own["cores"], own["segment_threads"], own["max_frames"], own["credit"]) == (2, 1, 16, 16)
    assert HeadSettings(processes=4, data_dir=tmp_path).replica(1)["segment_threads"] == 0
    HeadSettings(**own)


async def test_a_port_of_its_own_is_never_shared_with_a_stranger(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        port = stranger.getsockname()[1]
        settings = HeadSettings(port=port, front_port=1, data_dir=tmp_path, host="127.0.0.1")
        with pytest.raises(MeshError) as caught:
            make_server(settings, [], Telemetry("head"), HealthControl())
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert f":{port};" in caught.value.message
