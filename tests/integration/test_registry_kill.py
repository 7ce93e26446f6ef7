"""Power cuts: the registry is killed with SIGKILL at every step of a push; nothing is half visible and everything goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.registry.check import ModelCheck
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from tests.integration.registry_world import World, digest, manifest, reaching, relu_model, running
from tests.support.registry_nursery import Nursery, nursery

MODEL = relu_model("x" * 2_500_000)
"""A sound model of more than one message."""
PARTS = {"model.onnx": MODEL, "manifest.json": manifest()}
PIECE = 1 << 20

DIES_AT_STEP = """
import os, pathlib, signal
left = {step}
def dying(call):
    def step(*args, **values):
        global left
        if pathlib.Path({armed!r}).exists():
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **values)
    return step
for name in ("fsync", "fdatasync", "replace", "rename", "link", "pwrite", "write"):
    setattr(os, name, dying(getattr(os, name)))
"""
"""Before its n-th system call that writes, counted over all threads."""
DIES_AT_COMMIT = """
import os, signal
from services.registry.metadata.sql_store import SqlStore
create = SqlStore.create_version
async def dying(self, *args, **values):
    {before}
    made = await create(self, *args, **values)
    os.kill(os.getpid(), signal.SIGKILL)
SqlStore.create_version = dying
"""
BEFORE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def registries() -> Iterator[Nursery]:
    with nursery() as made:
        yield made


@pytest.fixture(autouse=True)
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next registry, in this process, starts no child to look at the model again; the one that dies does."""

    async def check(self: ModelCheck, name: str, path: Path) -> tuple[str, str, int]:
        return json.dumps({"ok": True, "inputs": ["x"], "outputs": ["y"]}), "", 0

    monkeypatch.setattr(ModelCheck, "_run", check)


@asynccontextmanager
async def dying(registries: Nursery, folder: Path, prelude: str = "") -> AsyncIterator[World]:
    """A registry in a process of its own that will not live long."""
    async with registries.registry(folder, prelude) as address, reaching(address) as channels:
        yield World.at(folder, address, channels)


def request() -> pb.CreateVersionRequest:
    artifacts = [pb.Artifact(name=name, sha256=digest(data), size_bytes=len(data)) for name, data in PARTS.items()]
    return pb.CreateVersionRequest(model="m", artifacts=artifacts, created_by="push", request_id="once")


async def push_all(world: World) -> None:
    for data in PARTS.values():
        pieces = [data[begin : begin + PIECE] for begin in range(0, len(data), PIECE)]
        await world.push(pieces, sha256=digest(data), size_bytes=len(data))
    async with mesh_errors():
        await world.stub.CreateVersion(request())


async def require_all_or_nothing_and_going_on(folder: Path, *, committed: bool) -> None:
    """In the next process: what is visible is whole, and the same push, repeated, makes the one version."""
    async with running(folder) as world:
        world.visible()
        models = await world.client.list_models()
        assert [model.latest_version for model in models] in ([], [1])
        assert bool(models) == committed
        events = len(await world.client.events("m"))
        assert events == len(models)
        version = await world.client.create_version("m", PARTS, created_by="push", request_id="once")
        assert version.version == 1
        assert [one.version for one in await world.client.list_versions("m")] == [1]
        assert await world.client.fetch(version, "model.onnx") == MODEL
        assert len(await world.client.events("m")) == 1
        assert len(world.visible()) == 2
        assert not world.unfinished()


@pytest.mark.parametrize("step", [1, 3, 4, 6, 7, 10, 12])
async def test_a_registry_killed_at_any_write_of_a_push_loses_nothing_it_said_it_had(
    registries: Nursery, tmp_path: Path, step: int
) -> None:
    folder, armed = tmp_path / "data", tmp_path / "armed"
    async with dying(registries, folder, DIES_AT_STEP.format(step=step, armed=str(armed))) as world:
        armed.touch()
        with pytest.raises(MeshError):
            await push_all(world)
    await require_all_or_nothing_and_going_on(folder, committed=False)


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
async def test_a_registry_killed_around_the_commit_makes_the_version_once(
    registries: Nursery, tmp_path: Path, committed: bool
) -> None:
    prelude = DIES_AT_COMMIT.format(before="pass" if committed else BEFORE)
    async with dying(registries, tmp_path, prelude) as world:
        with pytest.raises(MeshError):
            await push_all(world)
    await require_all_or_nothing_and_going_on(tmp_path, committed=committed)


async def test_a_registry_killed_between_contents_and_version_keeps_the_contents(
    registries: Nursery, tmp_path: Path
) -> None:
    async with dying(registries, tmp_path) as world:
        for name, data in PARTS.items():
            await world.client.push_artifact(name, data)
        call = await world.begin(b"y" * 5_000_000)
        await call.write(pb.PushArtifactRequest(data=b"y" * 100_000))
    async with running(tmp_path) as world:
        assert set(world.visible()) == {digest(data) for data in PARTS.values()}
        assert await world.client.list_models() == []
        async with mesh_errors():
            made = await world.stub.CreateVersion(request())
        assert made.version.version == 1
