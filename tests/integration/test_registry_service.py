"""Versions, aliases and watches over the wire; what a registry acknowledged outlives its death."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.registry.app import build
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import ArtifactRef, RegistryClient
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.lifecycle import Host
from tests.integration.registry_world import (
    Process,
    World,
    digest,
    external_model,
    manifest,
    parts,
    reaching,
    reason,
    relu_model,
    running,
    settings_for,
)
from tests.support.models import SECOND_CUT, split_version


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def test_a_version_goes_round_whole(world: World) -> None:
    made = await world.client.create_version("m", parts(), created_by="push", description="né à Liège")
    assert (made.model, made.version, made.parent, made.created_by, made.description) == (
        "m",
        1,
        0,
        "push",
        "né à Liège",
    )
    assert made == await world.client.get_version("m") == await world.client.get_version("m", 1)
    assert await world.client.fetch(made, "model.onnx") == relu_model()
    assert await world.client.fetch(made, "manifest.json") == manifest()
    child = await world.client.create_version("m", parts(), created_by="push", parent=1)
    assert (child.version, child.parent, child.artifacts) == (2, 1, made.artifacts)
    with pytest.raises(MeshError) as error:
        await world.client.fetch(made, "tail.onnx")
    assert reason(error) == ("MODEL_INCOMPLETE", {"missing": "tail.onnx"})


async def test_a_chain_needs_every_segment_that_its_manifest_names(world: World) -> None:
    chain = split_version(further=[[SECOND_CUT]])
    assert (await world.client.create_version("chain", chain, created_by="push")).version == 1
    for name, wrong in (("segment_1.onnx", None), ("segment_1.onnx", b"\xff" * 100)):
        parts = {key: value for key, value in chain.items() if key != name} | ({name: wrong} if wrong else {})
        with pytest.raises(MeshError) as error:
            await world.client.create_version("chain", parts, created_by="push")
        expected = ("MODEL_CORRUPT", {"artifact": name}) if wrong else ("MODEL_INCOMPLETE", {"missing": name})
        assert reason(error) == expected
    assert len(await world.client.list_versions("chain")) == 1


async def test_repeating_a_request_returns_the_version_made_first(world: World) -> None:
    first = await world.client.create_version("m", parts(), created_by="push", request_id="once")
    again = await world.client.create_version("m", parts("other"), created_by="push", request_id="once")
    assert again == first
    assert len(await world.client.list_versions("m")) == 1


@pytest.mark.parametrize(
    ("artifacts", "expected", "metadata"),
    [
        ({"model.onnx": relu_model()}, "MODEL_INCOMPLETE", {"missing": "manifest.json"}),
        ({"manifest.json": manifest()}, "MODEL_INCOMPLETE", {"missing": "model.onnx"}),
        ({}, "MODEL_INCOMPLETE", {"missing": "manifest.json"}),
        ({"model.onnx": relu_model(), "manifest.json": b"{}"}, "MODEL_CORRUPT", {"field": "task"}),
        ({"model.onnx": relu_model(), "manifest.json": bytes(9_000_000)}, "MODEL_CORRUPT", None),
        ({"model.onnx": b"\xff" * 1000, "manifest.json": manifest()}, "MODEL_CORRUPT", {"artifact": "model.onnx"}),
        ({"model.onnx": relu_model()[:-9], "manifest.json": manifest()}, "MODEL_CORRUPT", {"artifact": "model.onnx"}),
        ({"model.onnx": external_model(), "manifest.json": manifest()}, "MODEL_EXTERNAL_DATA", {"artifact": "model.onnx"}),
        ({**parts(), "extra.ONNX": b"junk"}, "MODEL_CORRUPT", {"artifact": "extra.ONNX"}),
        ({"segment": b"junk", "manifest.json": manifest("segment")}, "MODEL_CORRUPT", {"artifact": "segment"}),
        ({**parts(), "../evil": b"x"}, "FIELD_INVALID", None),
    ],
    ids=[
        "no-manifest", "no-model", "nothing", "bad-manifest", "huge-manifest", "noise", "truncated", "external", "extra",
        "no-suffix", "path",
    ],
)  # fmt: skip
async def test_an_unsound_version_is_refused_and_never_seen(
    world: World, artifacts: dict[str, bytes | Path], expected: str, metadata: dict[str, str] | None
) -> None:
    with pytest.raises(MeshError) as error:
        await world.client.create_version("m", artifacts, created_by="push")
    assert error.value.reason.value == expected
    assert metadata is None or error.value.metadata == metadata
    assert str(world.data_dir) not in str(error.value)
    assert await world.client.list_models() == []
    await world.require_healthy()


async def test_a_model_that_exhausts_its_checker_is_too_large_and_hurts_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, check_deadline_s=0.01) as world:
        with pytest.raises(MeshError) as error:
            await world.client.create_version("m", parts(), created_by="push")
        assert reason(error) == ("MODEL_TOO_LARGE", {"artifact": "model.onnx"})
        assert await world.client.list_models() == []


async def test_a_version_is_made_only_of_what_was_uploaded(world: World) -> None:
    await world.client.push_artifact("manifest.json", manifest())
    good = pb.Artifact(name="manifest.json", sha256=digest(manifest()), size_bytes=len(manifest()))
    wrong_size = pb.Artifact(name="manifest.json", sha256=digest(manifest()), size_bytes=1)
    absent = pb.Artifact(name="model.onnx", sha256="0" * 64, size_bytes=1)
    for artifacts, expected in (
        ([good, absent], "ARTIFACT_NOT_FOUND"),
        ([wrong_size], "FIELD_INVALID"),
        ([good, good], "FIELD_INVALID"),
        ([pb.Artifact(name="manifest.json", sha256="../x")], "FIELD_INVALID"),
    ):
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await world.stub.CreateVersion(pb.CreateVersionRequest(model="m", artifacts=artifacts))
        assert error.value.reason.value == expected


async def test_what_is_unknown_is_named_precisely(world: World) -> None:
    client = world.client
    for ask in (client.get_version("m"), client.get_version("m", alias="prod"), client.list_versions("m"),
                client.set_alias("m", "prod", 1)):  # fmt: skip
        with pytest.raises(MeshError) as error:
            await ask
        assert reason(error) == ("MODEL_NOT_FOUND", {"model": "m"})
    await client.create_version("m", parts(), created_by="push")
    for ask in (client.get_version("m", 2), client.get_version("m", 0), client.set_alias("m", "prod", 9)):
        with pytest.raises(MeshError) as error:
            await ask
        assert error.value.reason.value == "VERSION_NOT_FOUND"
    with pytest.raises(MeshError) as error:
        await client.create_version("m", parts(), created_by="push", parent=7)
    assert reason(error) == ("VERSION_NOT_FOUND", {"model": "m", "version": "7"})
    with pytest.raises(MeshError) as error:
        await client.get_version("m", alias="prod")
    assert reason(error) == ("ALIAS_NOT_FOUND", {"model": "m", "alias": "prod"})
    with pytest.raises(MeshError) as error:
        await client.pull_artifact(ArtifactRef("x", "0" * 64, 1))
    assert error.value.reason.value == "ARTIFACT_NOT_FOUND"


async def test_names_outside_the_contract_are_refused(world: World) -> None:
    for name in ("", "Upper", "a/b", "..", "-x", "x" * 65, "ä", "a\n"):
        with pytest.raises(MeshError) as error:
            await world.client.create_version(name, {}, created_by="push")
        assert error.value.fields[0][0] == "model"
    for alias in ("", "12", "A", "x" * 65):
        with pytest.raises(MeshError) as error:
            await world.client.set_alias("m", alias, 1)
        assert error.value.fields[0][0] == "alias"
    with pytest.raises(MeshError) as error:
        await world.client.create_version("m", {}, created_by="push", description="x" * 4001)
    assert error.value.fields[0][0] == "description"


async def test_lists_come_in_pages_that_join_without_gap_or_repeat(world: World) -> None:
    for name in ("b", "a", "c"):
        await world.client.create_version(name, parts(), created_by="push")
    for _ in range(4):
        await world.client.create_version("b", parts(), created_by="push")
    names: list[str] = []
    request = pb.ListModelsRequest(page_size=2)
    while page := await world.stub.ListModels(request):
        names += [model.name for model in page.models]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert names == ["a", "b", "c"] == [model.name for model in await world.client.list_models()]
    numbers: list[int] = []
    asked = pb.ListVersionsRequest(model="b", page_size=2)
    while listed := await world.stub.ListVersions(asked):
        assert len(listed.versions) <= 2
        numbers += [version.version for version in listed.versions]
        if not listed.next_page_token:
            break
        asked.page_token = listed.next_page_token
    assert numbers == [5, 4, 3, 2, 1] == [version.version for version in await world.client.list_versions("b")]
    for token in ("?", "AAAA", request.page_token, "dmVyc2lvbnM6YjrCsg=="):
        with pytest.raises(MeshError) as error:
            async with mesh_errors():
                await world.stub.ListVersions(pb.ListVersionsRequest(model="b", page_token=token))
        assert error.value.fields[0][0] == "page_token"


async def test_a_second_registry_on_the_same_folder_does_not_start(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        with pytest.raises(MeshError, match="another registry"):
            await Host("registry", settings_for(tmp_path), build).start()
        await world.require_healthy()


async def test_everything_acknowledged_outlives_a_killed_process(tmp_path: Path) -> None:
    half = b"x" * 300_000
    first = Process(tmp_path)
    address = await first.address()
    async with reaching(address) as channels:
        client = RegistryClient(channels)
        made = [
            await client.create_version("m", parts(str(i)), created_by="push", request_id=f"r{i}") for i in range(3)
        ]
        await client.set_alias("m", "prod", 2)
        world = World.at(tmp_path, address, channels)
        with pytest.raises(MeshError):
            await world.push([half[:100_001]], sha256=digest(half), size_bytes=len(half))
        open_upload = await world.begin(b"y" * 10_000_000)
        await open_upload.write(pb.PushArtifactRequest(data=b"y" * 500_000))
        first.kill()
    second = Process(tmp_path)
    try:
        async with reaching(await second.address()) as channels:
            client = RegistryClient(channels)
            assert [replace(version, aliases=()) for version in await client.list_versions("m")] == made[::-1]
            for index, version in enumerate(made):
                assert await client.fetch(version, "model.onnx") == relu_model(str(index))
                assert (
                    await client.create_version("m", {}, created_by="push", request_id=f"r{index}")
                ).version == index + 1
            assert (await client.get_version("m", alias="prod")).version == 2
            told: list[int] = []
            ref = await client.push_artifact("half", half, on_progress=lambda done, total: told.append(done))
            assert await client.pull_artifact(ref) == half
            visible = {path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()}
            assert all(digest((tmp_path / "blobs" / name[:2] / name).read_bytes()) == name for name in visible)
            assert len(visible) == 5  # three models, one manifest, what was resumed; nothing of the open upload
    finally:
        second.kill()
