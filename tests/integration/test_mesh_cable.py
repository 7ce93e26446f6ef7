"""A mesh with a cable that can be cut: what is on the far side is gone all at once, and comes back."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from splitmesh.client import AnsweredBy
from splitmesh.testing.mesh import EDGE, LocalMesh
from tests.support.models import EASY, HARD
from tests.support.worlds import MODEL, InProcessLauncher, answered_by, serving

SERVICES = ("registry", "router", "tail", "head")


@pytest.fixture
async def mesh(tmp_path: Path, registered: Path) -> AsyncIterator[LocalMesh]:
    shutil.copytree(registered, tmp_path / "registry")
    settings = {"head": {"models": MODEL, "switch_wait_s": "5", "segment_threads": "1"}}
    async with LocalMesh(InProcessLauncher(), tmp_path, settings=settings, services=SERVICES, cable=True) as started:
        yield started


async def test_a_cut_takes_the_whole_far_side_and_healing_brings_it_back(mesh: LocalMesh) -> None:
    await serving(mesh.address("head"))
    assert set(mesh.relays) == set(SERVICES) - set(EDGE)
    async with mesh.gateway(deadline_ms=2000) as gateway:
        await answered_by(gateway, EASY, AnsweredBy.EDGE_EXIT)  # by the router's policy
        await answered_by(gateway, HARD, AnsweredBy.CLOUD_TAIL)
        assert all(relay.uplink_bytes > 0 for relay in mesh.relays.values())
        mesh.cut()
        await answered_by(gateway, HARD, AnsweredBy.EDGE_FALLBACK)
        crossed = {name: relay.uplink_bytes for name, relay in mesh.relays.items()}
        await answered_by(gateway, HARD, AnsweredBy.EDGE_FALLBACK)
        await answered_by(gateway, EASY, AnsweredBy.EDGE_EXIT)
        assert {name: relay.uplink_bytes for name, relay in mesh.relays.items()} == crossed
        mesh.heal()
        await answered_by(gateway, HARD, AnsweredBy.CLOUD_TAIL)


async def test_a_mesh_without_a_cable_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without a cable"):
        LocalMesh(InProcessLauncher(), tmp_path, trust=False).cut()
