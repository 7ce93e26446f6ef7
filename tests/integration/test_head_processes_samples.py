"""A head in two real processes: each keeps in a folder of its own, and whichever one is asked answers for both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from splitmesh.client import Mesh
from splitmesh.client.samples import SampleClient, SampleInfo
from splitmesh.testing.mesh import ProcessLauncher
from tests.integration.kept_samples import client_of
from tests.support.models import HARD, picture
from tests.support.worlds import MODEL, ROOT, World, serving, world

WAIT_S = 60.0
LABELLED_TIMES = 10
"""Through the common port, each over a new connection: the kernel gives them to either process."""


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def test_whichever_process_is_asked_lists_and_labels_the_samples_of_both(cloud: World, tmp_path: Path) -> None:
    settings = {
        "data_dir": str(tmp_path / "heads"),
        "models": MODEL,
        "node": "edge",
        "processes": "2",
        "segment_threads": "1",
        "drain_s": "2",
        "switch_wait_s": "0.01",
        "static_addresses": ",".join(f"{name}={address}" for name, address in cloud.addresses.items()),
    }
    running = await ProcessLauncher(ROOT, tmp_path / "work").launch("head", settings)
    try:
        addresses = json.loads((tmp_path / "work" / "head-1.ready").read_text())["addresses"]
        async with asyncio.timeout(WAIT_S):
            for number, address in enumerate(addresses):
                await serving(address)
                async with Mesh(address, deadline_ms=10_000) as mesh:  # no tail: the exit has to answer
                    await mesh.infer(picture(HARD, side=20 + number), camera=f"line-{number}")
            for address in (*addresses, running.address):
                async with client_of([address]) as client:
                    kept = await both_kept(client)
                    assert {one.record.node for one in kept} == {"edge-1", "edge-2"}
        ids = sorted(one.record.id for one in kept)
        for n in range(LABELLED_TIMES):
            async with client_of([running.address]) as client:
                assert await client.label(dict.fromkeys(ids, f"label {n}"), "ana") == len(ids)
                (counts,) = await client.counts()
                assert (counts.head, counts.samples, counts.labelled) == ("edge", 2, 2)
    finally:
        await running.stop()
    assert running.process.returncode == 0


async def both_kept(client: SampleClient) -> Sequence[SampleInfo]:
    """As soon as both are on the disk; asks again and again."""
    while len(found := await client.list()) < 2:
        pass
    return found
