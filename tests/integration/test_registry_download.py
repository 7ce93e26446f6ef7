"""Artefacts on their way to a client: from any byte, over broken links, verified, and never half there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.partial import Partial
from splitmesh.client.registry import ArtifactRef, RegistryClient
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from splitmesh.testing.relay import PROFILES, LinkRelay
from tests.integration.registry_world import digest, reaching, running
from tests.support.scripted_registry import Scripted, serving

CONTENT = os.urandom(3 * 1024 * 1024 + 12345)
SHA, SIZE = digest(CONTENT), len(CONTENT)
MIB = 1024 * 1024


async def test_a_client_that_does_not_read_loses_its_place_to_others(tmp_path: Path) -> None:
    async with running(tmp_path, max_downloads=1, send_idle_s=0.2) as world:
        large = os.urandom(16 * MIB)
        ref = await world.client.push_artifact("a", large)
        stalled = world.stub.PullArtifact(pb.PullArtifactRequest(sha256=ref.sha256))
        await stalled.read()
        assert await world.client.pull_artifact(ref) == large
        with pytest.raises(MeshError) as error:
            await read_to_end(stalled)
        assert error.value.reason.value == "DEADLINE_EXPIRED"


async def read_to_end(call: Any) -> None:
    async with mesh_errors():
        while await call.read() is not grpc.aio.EOF:
            pass


async def test_a_download_begins_at_any_byte_and_not_beyond_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.client.push_artifact("a", CONTENT)
        for offset in (1, MIB + 7, SIZE - 1, SIZE):
            got = b""
            async for piece in world.stub.PullArtifact(pb.PullArtifactRequest(sha256=SHA, offset=offset)):
                assert (piece.offset, piece.size_bytes) == (offset + len(got), SIZE)
                got += piece.data
            assert got == CONTENT[offset:]
        for sha, offset, expected in ((SHA, SIZE + 1, "FIELD_INVALID"), ("0" * 64, 0, "ARTIFACT_NOT_FOUND")):
            with pytest.raises(MeshError) as error:
                async with mesh_errors():
                    await world.stub.PullArtifact(pb.PullArtifactRequest(sha256=sha, offset=offset)).read()
            assert error.value.reason.value == expected


async def test_a_pulled_file_resumes_what_an_earlier_process_left_even_if_damaged(tmp_path: Path) -> None:
    part = tmp_path / f".out.{SHA[:16]}.part"
    async with running(tmp_path / "data") as world:
        ref = await world.client.push_artifact("a", CONTENT)
        for left in (CONTENT[: MIB + 1], b"damaged" * 1000, CONTENT + b"longer"):
            # Synced and vouched for, and bad all the same: the digest at the end is what counts.
            earlier = Partial(tmp_path / "out", SHA, len(left))
            earlier.append(left)
            earlier.close()
            told: list[tuple[int, int]] = []
            await world.client.pull_to_file(ref, tmp_path / "out", on_progress=partial(_tell, told))
            assert (tmp_path / "out").read_bytes() == CONTENT
            assert not part.exists()
            if left == CONTENT[: MIB + 1]:
                assert told[0] == (2 * MIB + 1, SIZE)


def _tell(told: list[tuple[int, int]], done: int, total: int) -> None:
    told.append((done, total))


class _Damaged(Scripted):
    """A registry whose disk forgot what it was given."""

    async def PullArtifact(self, request: pb.PullArtifactRequest, context: Any) -> AsyncIterator[Any]:
        yield pb.PullArtifactResponse(offset=0, data=bytes(SIZE - request.offset), size_bytes=SIZE)


async def test_a_file_that_arrives_damaged_never_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    ref = ArtifactRef("a", SHA, SIZE)
    async with serving(_Damaged()) as channels:
        client = RegistryClient(channels)
        for pull in (partial(client.pull_to_file, ref, target), partial(client.pull_artifact, ref)):
            with pytest.raises(MeshError) as error:
                await pull()
            assert error.value.reason.value == "DIGEST_MISMATCH"
    assert target.read_bytes() == b"old"


async def test_a_transfer_goes_on_where_the_link_broke(tmp_path: Path) -> None:
    async with (
        running(tmp_path / "data") as world,
        LinkRelay(world.address, PROFILES["loopback"]) as relay,
        reaching(relay.address) as channels,
    ):
        client = RegistryClient(channels)
        told: list[int] = []

        def break_once(done: int, total: int) -> None:
            told.append(done)
            if len(told) == 2:
                relay.down(cut_after_s=0.0)
                asyncio.get_running_loop().call_later(0.3, relay.up)

        ref = await client.push_artifact("a", CONTENT, on_progress=break_once)
        assert world.visible() == {SHA: SIZE}
        told.clear()
        assert await client.pull_artifact(ref, on_progress=break_once) == CONTENT
        assert told == sorted(set(told)), "no byte was fetched twice"
        told.clear()
        await client.pull_to_file(ref, tmp_path / "out", on_progress=break_once)
        assert (tmp_path / "out").read_bytes() == CONTENT


async def test_a_registry_that_stays_away_is_reported(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        address = world.address
    async with reaching(address) as channels:
        with pytest.raises(MeshError) as error:
            await RegistryClient(channels).push_artifact("a", CONTENT)
        assert error.value.reason.value == "SERVICE_UNAVAILABLE"
