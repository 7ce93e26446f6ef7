"""Making versions, and what a registry answers: another one than was asked for is refused, whatever it is signed with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import ArtifactRef, Garbage, RegistryClient
from splitmesh.errors import MeshError, Reason
from tests.integration.registry_world import digest, parts, running
from tests.support.scripted_registry import Scripted, serving

SHA = "a" * 64


class Lying(Scripted):
    """Answers every question with the same version, and says that it has everything."""

    def __init__(self, model: str, version: int) -> None:
        self.message = pb.ModelVersion(model=model, version=version)
        self.pages = 0

    async def GetVersion(self, request: Any, context: Any) -> pb.GetVersionResponse:
        return pb.GetVersionResponse(version=self.message)

    async def ListVersions(self, request: Any, context: Any) -> pb.ListVersionsResponse:
        return pb.ListVersionsResponse(versions=[self.message])

    async def ListAliasMoves(self, request: Any, context: Any) -> pb.ListAliasMovesResponse:
        return pb.ListAliasMovesResponse(moves=[pb.AliasMove(model=self.message.model, alias="prod")])

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        self.pages += 1
        return pb.ListModelsResponse(next_page_token="more")

    async def FindMissing(self, request: Any, context: Any) -> pb.FindMissingResponse:
        return pb.FindMissingResponse()

    async def CreateVersion(self, request: Any, context: Any) -> pb.CreateVersionResponse:
        return pb.CreateVersionResponse(version=self.message)


ASK: dict[str, Callable[[RegistryClient], Awaitable[object]]] = {
    "by number": lambda client: client.get_version("m", 3),
    "by alias": lambda client: client.get_version("m", alias="prod"),
    "the newest": lambda client: client.get_version("m"),
    "all": lambda client: client.list_versions("m"),
    "moves": lambda client: client.alias_moves("m"),
    "moves of one": lambda client: client.alias_moves("m", "prod"),
    "make": lambda client: client.create_version("m", {}, created_by="x"),
}


@pytest.mark.parametrize("ask", ASK)
async def test_a_version_of_another_model_answers_no_question(ask: str) -> None:
    async with serving(Lying("m", 3)) as channels:
        await ASK[ask](RegistryClient(channels))
    async with serving(Lying("n", 3)) as channels:
        with pytest.raises(MeshError) as caught:
            await ASK[ask](RegistryClient(channels))
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION


async def test_another_number_or_alias_than_asked_for_is_no_answer() -> None:
    async with serving(Lying("m", 3)) as channels:
        client = RegistryClient(channels)
        for ask in (client.get_version("m", 4), client.alias_moves("m", "canary")):
            with pytest.raises(MeshError) as caught:
                await ask
            assert caught.value.reason is Reason.PROTOCOL_VIOLATION


async def test_a_version_made_of_other_artefacts_than_asked_is_refused_unless_it_may_be_an_earlier_one() -> None:
    ref = ArtifactRef("a", SHA, 5)
    async with serving(Lying("m", 3)) as channels:
        client = RegistryClient(channels)
        with pytest.raises(MeshError) as caught:
            await client.create_version("m", {"a": ref}, created_by="x")
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
        # Asked for before, perhaps with others: the first answer counts.
        assert (await client.create_version("m", {"a": ref}, created_by="x", request_id="of the caller")).version == 3


async def test_pages_without_anything_on_them_come_to_an_end() -> None:
    registry = Lying("m", 1)
    async with serving(registry) as channels:
        with pytest.raises(MeshError) as caught:
            await RegistryClient(channels).list_models()
    assert (caught.value.reason, registry.pages) == (Reason.PROTOCOL_VIOLATION, 1)


@pytest.mark.parametrize("when", ["before it is asked", "after it was asked"])
async def test_what_was_collected_during_a_long_push_is_pushed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async with running(tmp_path / "data", garbage_min_age_s=0) as world:
        client = world.client
        collected: list[Garbage] = []
        real = client._small.missing

        async def missing(sha256s: Sequence[str]) -> list[str]:
            if when.startswith("before") and not collected:
                collected.append(await client.collect_garbage())
            found = await real(sha256s)
            if not collected:
                collected.append(await client.collect_garbage())
            return found

        monkeypatch.setattr(client._small, "missing", missing)
        (tmp_path / "report.json").write_bytes(b"a file")
        made = await client.create_version(
            "m", {**parts(), "report.json": tmp_path / "report.json"}, created_by="a slow link"
        )
        assert collected[0].contents == 3
        assert {name: await client.fetch(made, name) for name in made.artifacts}["report.json"] == b"a file"


async def test_what_nobody_here_has_is_not_asked_for_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        with pytest.raises(MeshError) as caught:
            await world.client.create_version("m", {**parts(), "x": ArtifactRef("x", SHA, 5)}, created_by="x")
        assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND


async def test_a_version_that_was_deleted_meanwhile_is_said_to_be(tmp_path: Path) -> None:
    async with running(tmp_path / "data", garbage_min_age_s=0) as world:
        made = await world.client.create_version("m", {**parts(), "x": b"only here"}, created_by="x")
        await world.client.delete_version("m", made.version, deleted_by="x")
        await world.client.collect_garbage()
        for pull in (world.client.fetch(made, "x"), world.client.pull_version(made, tmp_path / "out")):
            with pytest.raises(MeshError, match="deleted") as caught:
                await pull
            assert caught.value.reason is Reason.VERSION_NOT_FOUND


class Short(Scripted):
    """Has only the first bytes of a content, and says that it is whole."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.pushed = b""

    async def GetUpload(self, request: Any, context: Any) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(offset=len(self.content), complete=True)

    async def PullArtifact(self, request: pb.PullArtifactRequest, context: Any) -> Any:
        data = self.content[request.offset :]
        yield pb.PullArtifactResponse(offset=request.offset, data=data, size_bytes=len(self.content))

    async def PushArtifact(self, requests: Any, context: Any) -> pb.PushArtifactResponse:
        await context.send_initial_metadata((("upload-accepted", "1"),))
        async for request in requests:
            assert not request.start.offset
            self.pushed += request.data
        return pb.PushArtifactResponse(sha256=digest(self.pushed), size_bytes=len(self.pushed))


async def test_a_file_that_lost_its_end_in_the_registry_is_said_to_be_damaged_and_a_push_heals_it() -> None:
    content = b"of seventeen byte"
    registry = Short(content[:9])
    async with serving(registry) as channels:
        client = RegistryClient(channels)
        with pytest.raises(MeshError, match=r"has 9 bytes of x, which has 17: its file is damaged") as caught:
            await client.pull_artifact(ArtifactRef("x", digest(content), len(content)))
        assert caught.value.reason is Reason.DIGEST_MISMATCH
        assert (await client.push_artifact("x", content)).size_bytes == 17
    assert registry.pushed == content
