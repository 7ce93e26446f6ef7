"""A version from its making to its end, over the wire and on every kind of store: lineage, history, holds, deletion, garbage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.registry import ArtifactRef
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from splitmesh.model.lineage import DatasetUse, Lineage, VersionName
from tests.integration.registry_world import STORES, World, digest, manifest, parts, reason, relu_model, running


@pytest.fixture(params=STORES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    with STORES[request.param]() as stores:
        async with running(tmp_path, garbage_min_age_s=0.0, **stores) as made:
            yield made


async def refused(call: Awaitable[Any]) -> tuple[str, str]:
    """Reason and field of a refusal."""
    with pytest.raises(MeshError) as error:
        async with mesh_errors():
            await call
    return error.value.reason.value, error.value.fields[0][0] if error.value.fields else ""


async def test_a_version_lives_and_leaves_no_trace_but_its_events(world: World) -> None:
    client = world.client
    await client.create_version("backbone", parts("backbone"), created_by="push")
    lineage = Lineage(
        parents=(VersionName("backbone", 1),),
        task="line 4, retrained",
        code_version="c0ffee",
        recipe_sha256="0" * 64,
        seeds=(1, -2, 2**62),
        metrics={"recall": 0.875, "loss": 1e-9},
    )
    first = await client.create_version("m", parts("1"), created_by="push", lineage=lineage)
    second = await client.create_version("m", parts("2"), created_by="push", parent=1)
    assert first.lineage == (await client.get_version("m", 1)).lineage == lineage
    await client.set_alias("m", "prod", 1, moved_by="alice", reason="first")
    await client.set_alias("m", "prod", 2, expected=1, moved_by="bob")
    assert (await refused(client.set_alias("m", "prod", 1, expected=1)))[0] == "ALIAS_MOVED"
    moves = await client.alias_moves("m", "prod")
    assert [(one.previous, one.version, one.moved_by, one.reason) for one in moves] == [
        (1, 2, "bob", ""),
        (0, 1, "alice", "first"),
    ]
    await client.hold_version("m", 1, "deployment/line-4")
    assert (await client.get_version("m", 1)).holders == ("deployment/line-4",)
    for version, user in ((1, "deployment/line-4"), (2, "prod")):
        with pytest.raises(MeshError, match=user) as error:
            await client.delete_version("m", version, deleted_by="alice")
        assert reason(error)[0] == "VERSION_IN_USE"
    assert (await client.collect_garbage()).contents == 0
    await client.release_version("m", 1, "deployment/line-4")
    await client.delete_version("m", 1, deleted_by="alice", reason="too old")
    assert await refused(client.get_version("m", 1)) == ("VERSION_NOT_FOUND", "")
    would = await client.collect_garbage(dry_run=True)
    assert (would.contents, would.size_bytes) == (1, len(relu_model("1")))
    assert await client.missing([digest(relu_model("1"))]) == []
    assert await client.collect_garbage() == would
    assert await client.missing([digest(relu_model("1")), digest(manifest())]) == [digest(relu_model("1"))]
    assert await client.fetch(second, "model.onnx") == relu_model("2")
    assert [one.kind for one in await client.events("m")] == [
        "version.deleted",
        "version.released",
        "version.held",
        "alias.moved",
        "alias.moved",
        "version.created",
        "version.created",
    ]
    assert (await client.events("registry"))[0].kind == "garbage.collected"
    assert (await client.create_version("m", parts("3"), created_by="push")).version == 3


async def test_two_pushes_of_one_version_at_once_make_one(world: World) -> None:
    made = await asyncio.gather(
        *(world.client.create_version("m", parts(), created_by="push", request_id="once") for _ in range(6))
    )
    assert {one.version for one in made} == {1}
    assert len(await world.client.list_versions("m")) == 1
    assert len(await world.client.events("m")) == 1


async def test_a_lineage_names_only_what_exists(world: World) -> None:
    await world.client.create_version("m", parts(), created_by="push")
    use = DatasetUse("boards", 1, "0" * 64)
    for lineage, expected in (
        (Lineage(parents=(VersionName("m", 2),)), "VERSION_NOT_FOUND"),
        (Lineage(parents=(VersionName("nothing", 1),)), "MODEL_NOT_FOUND"),
        (Lineage(datasets=(use,)), "DATASET_NOT_FOUND"),
    ):
        assert (await refused(world.client.create_version("n", parts(), created_by="push", lineage=lineage)))[
            0
        ] == expected
    assert [model.name for model in await world.client.list_models()] == ["m"]


async def test_contents_that_were_asked_for_lately_survive_until_a_version_names_them(tmp_path: Path) -> None:
    async with running(tmp_path, garbage_min_age_s=3600.0) as world:
        refs = [await world.client.push_artifact(name, content) for name, content in parts().items()]
        collected = await world.client.collect_garbage()
        assert (collected.contents, collected.kept, collected.too_young) == (0, 2, 2)
        version = await world.client.create_version("m", {ref.name: ref for ref in refs}, created_by="push")
        assert (await world.client.collect_garbage()).too_young == 0
        assert await world.client.fetch(version, "model.onnx") == relu_model()


async def test_versions_and_collections_at_once_never_leave_a_version_without_its_contents(world: World) -> None:
    async def push(number: int) -> None:
        while True:
            try:
                await world.client.create_version(
                    "m", parts(str(number % 3)), created_by="push", request_id=f"r{number}"
                )
            except MeshError as error:
                # Collected between push and naming: told, so that the pusher pushes again.
                if error.reason.value != "ARTIFACT_NOT_FOUND":
                    raise
            else:
                return

    async def collect(until: asyncio.Event) -> None:
        while not until.is_set():
            await world.client.collect_garbage()

    done = asyncio.Event()
    collecting = asyncio.create_task(collect(done))
    for begin in range(0, 12, 4):
        await asyncio.gather(*(push(begin + one) for one in range(4)))
        for version in await world.client.list_versions("m"):
            for name in version.artifacts:
                assert await world.client.fetch(version, name)
            await world.client.delete_version("m", version.version, deleted_by="test")
    done.set()
    await collecting


LONG = "x" * 2000
REF = pb.Artifact(name="manifest.json", sha256="0" * 64, size_bytes=1)


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("CreateVersion", pb.CreateVersionRequest(model="m", created_by=LONG), "created_by"),
        ("CreateVersion", pb.CreateVersionRequest(model="m", created_by="a\0b"), "created_by"),
        ("CreateVersion", pb.CreateVersionRequest(model="m", request_id=LONG), "request_id"),
        ("CreateVersion", pb.CreateVersionRequest(model="m", parent=2**32 - 1), "parent"),
        ("CreateVersion", pb.CreateVersionRequest(model="m", artifacts=[REF] * 65), "artifacts"),
        *(
            ("CreateVersion", pb.CreateVersionRequest(model="m", artifacts=[pb.Artifact(name=name)]), "artifacts[0].name")
            for name in ("../evil", "/etc/passwd", "a/b", "a\\b", "..", ".hidden", "", "C:evil", "a\nb")
        ),
        (
            "CreateVersion",
            pb.CreateVersionRequest(model="m", artifacts=[REF, pb.Artifact(name="MANIFEST.json", sha256="0" * 64)]),
            "artifacts",
        ),
        *(
            ("CreateVersion", pb.CreateVersionRequest(model="m", lineage=lineage), f"lineage.{field}")
            for field, lineage in (
                ("task", pb.Lineage(task=LONG)),
                ("code_version", pb.Lineage(code_version=LONG)),
                ("recipe_sha256", pb.Lineage(recipe_sha256="x")),
                ("seeds", pb.Lineage(seeds=[1] * 65)),
                ("metrics", pb.Lineage(metrics={str(one): 1.0 for one in range(65)})),
                ("metrics", pb.Lineage(metrics={"loss": float("nan")})),
                ("metrics", pb.Lineage(metrics={"loss": float("inf")})),
                ("metrics", pb.Lineage(metrics={"": 1.0})),
                ("parents[0].model", pb.Lineage(parents=[pb.VersionName(model="../m", version=1)])),
                ("parents[0].version", pb.Lineage(parents=[pb.VersionName(model="m")])),
                ("datasets[0].sha256", pb.Lineage(datasets=[pb.DatasetUse(dataset="d", version=1, role="train")])),
                ("datasets[0].role", pb.Lineage(datasets=[pb.DatasetUse(dataset="d", version=1, sha256="0" * 64)])),
            )
        ),
        ("SetAlias", pb.SetAliasRequest(model="m", alias="prod", version=1, moved_by=LONG), "moved_by"),
        ("SetAlias", pb.SetAliasRequest(model="m", alias="prod", version=1, reason=LONG), "reason"),
        ("SetAlias", pb.SetAliasRequest(model="m", alias="prod", version=2**32 - 1), "version"),
        ("SetAlias", pb.SetAliasRequest(model="m", alias="1", version=1), "alias"),
        ("ListAliasMoves", pb.ListAliasMovesRequest(model="m", page_token="?"), "page_token"),
        ("ListAliasMoves", pb.ListAliasMovesRequest(model="m", alias="1"), "alias"),
        ("ListEvents", pb.ListEventsRequest(name="../m"), "name"),
        ("ListEvents", pb.ListEventsRequest(page_token="bW92ZXM6bTo6MQ=="), "page_token"),
        ("DeleteVersion", pb.DeleteVersionRequest(model="m", version=1, deleted_by=LONG), "deleted_by"),
        ("DeleteVersion", pb.DeleteVersionRequest(model="m", version=1, reason=LONG), "reason"),
        ("HoldVersion", pb.HoldVersionRequest(model="m", version=1), "holder"),
        ("HoldVersion", pb.HoldVersionRequest(model="m", version=1, holder="h", hold_s=-1), "hold_s"),
        ("HoldVersion", pb.HoldVersionRequest(model="m", version=1, holder="h", hold_s=float("nan")), "hold_s"),
        ("HoldVersion", pb.HoldVersionRequest(model="m", version=1, holder="h", hold_s=1e300), "hold_s"),
        ("ReleaseVersion", pb.ReleaseVersionRequest(model="m", version=1, holder=LONG), "holder"),
        ("GetVersion", pb.GetVersionRequest(model="m", version=2**32 - 1), "version"),
    ],
)  # fmt: skip
async def test_a_field_outside_the_contract_is_named(shared: World, call: str, request_: Any, field: str) -> None:
    assert await refused(getattr(shared.stub, call)(request_)) == ("FIELD_INVALID", field)


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path) as made:
        yield made


async def test_a_manifest_that_lies_makes_no_version(shared: World) -> None:
    refs = {name: await shared.client.push_artifact(name, content) for name, content in parts().items()}
    model, text = refs["model.onnx"], refs["manifest.json"]
    for artifacts, expected in (
        ({"manifest.json": text}, "MODEL_INCOMPLETE"),
        ({"manifest.json": text, "other.onnx": model}, "MODEL_INCOMPLETE"),
        ({"manifest.json": text, "model.onnx": replace(model, size_bytes=1)}, "FIELD_INVALID"),
        ({"manifest.json": text, "model.onnx": replace(model, sha256="0" * 64)}, "ARTIFACT_NOT_FOUND"),
        ({"manifest.json": model, "model.onnx": model}, "MODEL_CORRUPT"),
        ({"manifest.json": text, "model.onnx": ArtifactRef("", text.sha256, text.size_bytes)}, "MODEL_CORRUPT"),
    ):
        assert (await refused(shared.client.create_version("m", artifacts, created_by="push")))[0] == expected
    said = manifest().decode()
    for lie in (said.replace('"name": "x"', '"name": "other"'), said.replace('"name": "y"', '"name": "other"')):
        with pytest.raises(MeshError, match="other") as error:
            await shared.client.create_version("m", {**parts(), "manifest.json": lie.encode()}, created_by="push")
        assert reason(error) == ("MODEL_CORRUPT", {"artifact": "model.onnx"})
    assert await shared.client.list_models() == []
