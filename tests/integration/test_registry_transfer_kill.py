"""A pull that is killed at any step: nothing half visible, what was synced is not fetched again, and the end is right."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from splitmesh.client.registry import RegistryClient
from splitmesh.testing.relay import PROFILES, LinkRelay
from tests.integration.registry_world import ROOT, WAIT_S, digest, reaching, running
from tests.integration.test_registry_transfer_files import version_of

MIB = 1024 * 1024
CONTENT = os.urandom(8 * MIB + 321)
STEP = MIB
"""Synced after so many bytes, in place of 16 MiB."""

CHILD = """
import asyncio, functools, os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from splitmesh.client import artifacts
from splitmesh.client.partial import Partial
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery

address, folder, sha256, size_bytes, function, count, when, step = sys.argv[1:]
artifacts.Partial = functools.partial(Partial, sync_bytes=int(step))
real, left = getattr(os, function), int(count)

def killing(*arguments, **named):
    global left
    left -= 1
    if not left and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*arguments, **named)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

async def main():
    channels = Channels(StaticDiscovery({"registry": [address]}))
    artifacts = {"head.onnx": ArtifactRef("head.onnx", sha256, int(size_bytes))}
    version = VersionInfo("m", 1, 0, artifacts, "test", "", (), datetime(2026, 1, 1, tzinfo=UTC))
    setattr(os, function, killing)
    await RegistryClient(channels).pull_version(version, Path(folder))

asyncio.run(main())
"""

PLACES = [
    ("ftruncate", 1, "after", 0),
    ("write", 1, "before", 0),
    ("write", 3, "after", 3),
    ("fsync", 1, "before", 1),
    ("pwrite", 1, "before", 1),
    ("pwrite", 1, "after", 1),
    ("fsync", 6, "after", 3),
    ("pwrite", 5, "before", 5),
    ("write", 9, "after", 9),
    ("replace", 1, "before", 9),
    ("replace", 1, "after", 9),
]
"""Before or after which call the process dies, and how many pieces it had written by then."""


async def _pull_and_die(address: str, folder: Path, function: str, count: int, when: str) -> None:
    arguments = (address, folder, digest(CONTENT), len(CONTENT), function, count, when, STEP)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *map(str, arguments), cwd=ROOT)
    async with asyncio.timeout(WAIT_S):
        assert await process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(("function", "count", "when", "pieces"), PLACES)
async def test_a_pull_that_is_killed_is_gone_on_with(
    tmp_path: Path, function: str, count: int, when: str, pieces: int
) -> None:
    folder = tmp_path / "out"
    async with running(tmp_path / "data") as world:
        ref = await world.client.push_artifact("head.onnx", CONTENT)
        await _pull_and_die(world.address, folder, function, count, when)
        seen = {path.name: path for path in folder.iterdir() if not path.name.startswith(".")}
        assert all(path.read_bytes() == CONTENT for path in seen.values())
        assert bool(seen) == ((function, when) == ("replace", "after"))
        async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
            await RegistryClient(channels).pull_version(version_of({ref.name: ref}), folder)
            fetched = relay.downlink_bytes
        left = 0 if seen else len(CONTENT) - min(pieces * MIB, len(CONTENT))
        assert left <= fetched <= left + 2 * STEP + 100_000
    assert (folder / "head.onnx").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir() if path.suffix == ".part"] == []


async def test_a_power_cut_costs_only_what_was_not_synced(tmp_path: Path) -> None:
    """As a disk looks after one: the part has its length, and its last pages were never written."""
    folder = tmp_path / "out"
    async with running(tmp_path / "data") as world:
        ref = await world.client.push_artifact("head.onnx", CONTENT)
        await _pull_and_die(world.address, folder, "write", 6, "after")
        (part,) = folder.glob("*.part")
        with part.open("r+b") as file:
            file.seek(5 * MIB)
            file.write(bytes(2 * MIB))
        async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
            await RegistryClient(channels).pull_version(version_of({ref.name: ref}), folder)
            assert relay.downlink_bytes < 3.5 * MIB
    assert (folder / "head.onnx").read_bytes() == CONTENT
