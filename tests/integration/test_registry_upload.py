"""Artefacts over the wire: what breaks on the way is resumed or refused, and the registry stays healthy."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import ArtifactRef
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from tests.integration.registry_world import WAIT_S, digest, reason, running, small_disk

CONTENT = os.urandom(3 * 1024 * 1024 + 12345)
SHA, SIZE = digest(CONTENT), len(CONTENT)
MIB = 1024 * 1024


def pieces(content: bytes, size: int = MIB) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


async def test_content_comes_back_as_it_went_with_progress_told(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        up: list[tuple[int, int]] = []
        down: list[tuple[int, int]] = []
        ref = await world.client.push_artifact("a.bin", CONTENT, on_progress=lambda *seen: up.append(seen))
        assert ref == ArtifactRef("a.bin", SHA, SIZE)
        assert await world.client.pull_artifact(ref, on_progress=lambda *seen: down.append(seen)) == CONTENT
        assert up[0] == down[0] == (MIB, SIZE)
        assert up[-1] == down[-1] == (SIZE, SIZE)
        assert world.visible() == {SHA: SIZE}
        assert world.unfinished() == {}


async def test_a_file_is_pushed_and_pulled_and_empty_content_too(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    async with running(tmp_path / "data") as world:
        for content in (CONTENT, b""):
            source.write_bytes(content)
            ref = await world.client.push_artifact("f", source)
            await world.client.pull_to_file(ref, target)
            assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in", "out"]


async def test_content_that_is_there_is_not_sent_again(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.client.push_artifact("a", CONTENT)
        told: list[int] = []
        await world.client.push_artifact("b", CONTENT, on_progress=lambda done, total: told.append(done))
        assert told == [SIZE]
        # Also when the client does not ask first.
        answer = await world.push(pieces(CONTENT), sha256=SHA, size_bytes=SIZE)
        assert (answer.sha256, answer.size_bytes) == (SHA, SIZE)


@pytest.mark.parametrize("cut", [1, 65_537, MIB, 2 * MIB - 1, SIZE - 1])
async def test_an_upload_resumes_at_any_byte(tmp_path: Path, cut: int) -> None:
    async with running(tmp_path) as world:
        with pytest.raises(MeshError) as error:
            await world.push(pieces(CONTENT[:cut]), sha256=SHA, size_bytes=SIZE)
        assert reason(error) == ("UPLOAD_TRUNCATED", {"offset": str(cut)})
        assert world.unfinished() == {f"{SHA}.part": cut}
        assert await world.offset(CONTENT) == cut
        assert world.visible() == {}
        first: list[int] = []
        ref = await world.client.push_artifact("a", CONTENT, on_progress=lambda done, total: first.append(done))
        assert first[0] > cut
        assert await world.client.pull_artifact(ref) == CONTENT
        assert world.unfinished() == {}


async def test_an_upload_from_the_wrong_byte_is_told_the_right_one(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        with pytest.raises(MeshError):
            await world.push([CONTENT[:1000]], sha256=SHA, size_bytes=SIZE)
        for offset in (0, 999, 1001):
            with pytest.raises(MeshError) as error:
                await world.push([], sha256=SHA, size_bytes=SIZE, offset=offset)
            assert reason(error) == ("UPLOAD_OFFSET_MISMATCH", {"offset": "1000"})
        await world.push(pieces(CONTENT[1000:]), sha256=SHA, size_bytes=SIZE, offset=1000)
        assert world.visible() == {SHA: SIZE}


async def test_content_of_another_digest_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        with pytest.raises(MeshError) as error:
            await world.push([b"not it"], sha256=SHA, size_bytes=6)
        assert error.value.reason.value == "DIGEST_MISMATCH"
        assert (world.visible(), world.unfinished()) == ({}, {})
        await world.require_healthy()


async def test_bytes_somebody_else_began_wrongly_cost_one_more_try(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        with pytest.raises(MeshError):
            await world.push([b"poison"], sha256=SHA, size_bytes=SIZE)
        ref = await world.client.push_artifact("a", CONTENT)
        assert await world.client.pull_artifact(ref) == CONTENT


async def test_what_is_too_large_is_refused_before_it_is_stored(tmp_path: Path) -> None:
    async with running(tmp_path, max_artifact_bytes=SIZE - 1) as world:
        with pytest.raises(MeshError) as error:
            await world.client.push_artifact("a", CONTENT)
        assert reason(error) == ("FRAME_TOO_LARGE", {"limit_bytes": str(SIZE - 1)})
        with pytest.raises(MeshError) as error:
            await world.push([bytes(MIB + 1)], sha256=SHA, size_bytes=SIZE - 1)
        assert error.value.reason.value == "FRAME_TOO_LARGE"
        assert (world.visible(), world.unfinished()) == ({}, {})
        await world.require_healthy()


async def test_a_stream_that_is_no_upload_is_refused(tmp_path: Path) -> None:
    start = pb.PushArtifactRequest(start=pb.PushStart(sha256=SHA, size_bytes=SIZE))
    async with running(tmp_path) as world:
        for messages in ([pb.PushArtifactRequest(data=b"x")], [], [start, start], [start, pb.PushArtifactRequest()]):
            with pytest.raises(MeshError) as error:
                async with mesh_errors():
                    await world.stub.PushArtifact(iter(messages), timeout=WAIT_S)
            assert error.value.reason.value == "PROTOCOL_VIOLATION"
        for sha in ("", "../../etc/passwd", SHA.upper()):
            with pytest.raises(MeshError) as error:
                await world.push([b"x"], sha256=sha, size_bytes=1)
            assert error.value.reason.value == "FIELD_INVALID"
        assert (world.visible(), world.unfinished()) == ({}, {})


async def test_the_quota_refuses_what_does_not_fit_and_goes_on_with_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path, max_store_bytes=SIZE + 100_000) as world:
        await world.client.push_artifact("a", CONTENT)
        with pytest.raises(MeshError) as error:
            await world.client.push_artifact("b", CONTENT + b"!")
        assert error.value.reason.value == "STORAGE_FULL"
        assert world.visible() == {SHA: SIZE}
        await world.require_healthy()


async def test_a_full_disk_refuses_keeps_what_came_and_heals(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 6 * MIB) as disk:
        async with running(disk / "data") as world:
            ballast = disk / "ballast"
            call = await world.begin(CONTENT)
            await call.write(pb.PushArtifactRequest(data=CONTENT[:MIB]))
            ballast.write_bytes(bytes(3 * MIB + 500_000))
            for piece in pieces(CONTENT[MIB:]):
                # How it ends is gRPC's choice: the server's status, or a write that failed before it came.
                with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    await call.write(pb.PushArtifactRequest(data=piece))
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            assert world.visible() == {}
            kept = await world.offset(CONTENT)
            assert MIB <= kept < SIZE
            with pytest.raises(MeshError) as error:
                await world.client.push_artifact("a", CONTENT)
            assert error.value.reason.value == "STORAGE_FULL"
            ballast.unlink()
            ref = await world.client.push_artifact("a", CONTENT)
            assert await world.client.pull_artifact(ref) == CONTENT
            assert world.unfinished() == {}
            await world.require_healthy()


async def test_a_cancelled_upload_keeps_what_came(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        call = await world.begin(CONTENT)
        for piece in pieces(CONTENT[: 2 * MIB]):
            await call.write(pb.PushArtifactRequest(data=piece))
        while await world.offset(CONTENT) < MIB:  # each turn is a round trip to the registry
            pass
        call.cancel()
        # The next upload waits for the end of the cancelled one, so its offset is final.
        with pytest.raises(MeshError) as error:
            await world.push([], sha256=SHA, size_bytes=SIZE, offset=SIZE)
        kept = int(error.value.metadata["offset"])
        assert MIB <= kept <= 2 * MIB
        await world.push(pieces(CONTENT[kept:]), sha256=SHA, size_bytes=SIZE, offset=kept)
        assert world.visible() == {SHA: SIZE}


async def test_an_upload_that_falls_silent_ends_and_keeps_what_came(tmp_path: Path) -> None:
    async with running(tmp_path, upload_idle_s=0.2) as world:
        call = await world.begin(CONTENT)
        await call.write(pb.PushArtifactRequest(data=CONTENT[:1000]))
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await call
        assert reason(error) == ("DEADLINE_EXPIRED", {"offset": "1000"})
        assert world.unfinished() == {f"{SHA}.part": 1000}


async def test_an_upload_stream_does_not_last_forever(tmp_path: Path) -> None:
    async with running(tmp_path, upload_stream_s=0.2, upload_idle_s=10) as world:
        call = await world.begin(CONTENT)
        await call.write(pb.PushArtifactRequest(data=CONTENT[:1000]))
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await call
        assert reason(error) == ("DEADLINE_EXPIRED", {"offset": "1000"})


async def test_two_uploads_of_the_same_content_both_succeed(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        refs = await asyncio.gather(*(world.client.push_artifact(f"a{i}", CONTENT) for i in range(4)))
        assert {ref.sha256 for ref in refs} == {SHA}
        assert world.visible() == {SHA: SIZE}
        assert world.unfinished() == {}


async def test_uploads_and_downloads_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, max_uploads=1, max_downloads=1, send_idle_s=10) as world:
        large = os.urandom(16 * MIB)
        ref = await world.client.push_artifact("a", large)
        call = await world.begin(CONTENT)
        with pytest.raises(MeshError) as error:
            await world.push([b"x"], sha256=digest(b"x"), size_bytes=1)
        assert error.value.reason.value == "QUEUE_FULL"
        call.cancel()
        download = world.stub.PullArtifact(pb.PullArtifactRequest(sha256=ref.sha256))
        await download.read()
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await world.stub.PullArtifact(pb.PullArtifactRequest(sha256=ref.sha256)).read()
        assert error.value.reason.value == "QUEUE_FULL"
        download.cancel()
        assert await world.client.pull_artifact(ref) == large
