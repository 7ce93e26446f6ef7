"""What a version is made of: every part that is missing is named, models wait for their check where they are, needs are kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.registry.check import CheckLimits, ModelCheck
from services.registry.garbage import Pins
from services.registry.limits import Slots
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Actor, Artifact, Draft, Version
from services.registry.signatures import Signatures
from services.registry.sound import MAX_MISSING
from services.registry.versions import Versions
from services.registry.watch import ModelWatch
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.errors import from_status, to_status
from splitmesh.kernel.streams import Drain
from splitmesh.model.alternatives import ALTERNATIVES
from splitmesh.model.manifest import MANIFEST, WHOLE
from tests.integration.registry_world import digest, manifest

NOW = datetime(2026, 5, 4, tzinfo=UTC)
WAIT_S = 10
CHECKS = 2


class Contents:
    """Contents in memory that count how many are files at the same time."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.files = self.most_files = self.all_files = 0

    def put(self, data: bytes) -> Artifact:
        self.kept[digest(data)] = data
        return Artifact("", digest(data), len(data))

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        return [sha256 for sha256 in sha256s if sha256 not in self.kept]

    async def size_of(self, sha256: str) -> int:
        return len(self.kept[sha256])

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        return self.kept[sha256][offset : offset + length]

    @asynccontextmanager
    async def local(self, sha256: str) -> AsyncIterator[Path]:
        self.files += 1
        self.all_files += 1
        self.most_files = max(self.most_files, self.files)
        try:
            yield Path(sha256)
        finally:
            self.files -= 1


class Check(ModelCheck):
    """Says that every model is sound, when it is told to."""

    def __init__(self) -> None:
        super().__init__(CheckLimits(2**31, 30, 30.0, max_checks=CHECKS))
        self.free = asyncio.Event()
        self.started = asyncio.Semaphore(0)

    async def _run(self, name: str, path: Path) -> tuple[str, str, int]:
        self.started.release()
        await self.free.wait()
        return json.dumps({"ok": True, "inputs": ["x"], "outputs": ["y"]}), "", 0


class Desk:
    """Makes versions."""

    def __init__(self) -> None:
        self.store, self.contents, self.check = MemoryStore(), Contents(), Check()
        self.check.free.set()
        watch = ModelWatch(self.store, Slots("watches", 1), stream_s=1.0, drain=Drain())
        contents: Any = self.contents
        self.versions = Versions(
            *(self.store, contents, Pins(), self.check, Signatures(self.store, None), watch),
            max_artifacts=200,
            max_page_bytes=10**6,
        )

    async def create(self, extra: Mapping[str, bytes] | None = None, *, model: str = "m", lost: int = 0) -> Version:
        """A version; its first ``lost`` parts are not in the store."""
        named = {**(extra or {}), WHOLE: model.encode(), MANIFEST: manifest()}
        artifacts = []
        for index, (name, data) in enumerate(named.items()):
            artifacts.append(Artifact(name, digest(data), len(data)))
            if index >= lost:
                self.contents.put(data)
        return await self.versions.create(Draft(model, tuple(artifacts), 0, "push", "", ""), b"", Actor("push"))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def listing(*versions: int) -> dict[str, bytes]:
    """A list of alternatives as a part."""
    entries = [{"version": one, "name": f"way {one}", "edge_ms": 1.0} for one in versions]
    text = json.dumps({"alternatives": entries, "uplink_mbps": 10, "rtt_ms": 1})
    return {ALTERNATIVES: text.encode()}


async def refused(work: Any, reason: Reason) -> MeshError:
    with pytest.raises(MeshError) as error:
        await work
    assert error.value.reason is reason
    return error.value


async def test_every_part_that_is_missing_is_named_at_once(desk: Desk) -> None:
    extra = {f"part-{index:03}.bin": str(index).encode() for index in range(100)}
    error = await refused(desk.create(extra, lost=3), Reason.ARTIFACT_NOT_FOUND)
    assert error.metadata["missing"].split(",") == [digest(str(index).encode()) for index in range(3)]
    assert "part-000.bin, part-001.bin, part-002.bin" in error.message
    desk.contents.kept.clear()
    error = await refused(desk.create(extra, lost=100), Reason.ARTIFACT_NOT_FOUND)
    told = from_status(to_status(error)).metadata["missing"].split(",")
    assert told == [digest(str(index).encode()) for index in range(MAX_MISSING)]
    assert (await desk.create(extra)).version == 1


async def test_a_version_that_another_lists_as_an_alternative_cannot_be_deleted_under_it(desk: Desk) -> None:
    for _ in range(2):
        await desk.create()
    await desk.create(listing(0, 2))
    error = await refused(desk.versions.delete("m", 2, "", Actor("somebody")), Reason.VERSION_IN_USE)
    assert "m:3" in error.message
    for version in (1, 3, 2):
        await desk.versions.delete("m", version, "", Actor("somebody"))


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (listing(0, 7), Reason.VERSION_NOT_FOUND),
        (listing(0, 2**40), Reason.FIELD_INVALID),
        (listing(0, 1, 1), Reason.MODEL_CORRUPT),
        ({ALTERNATIVES: b"{}"}, Reason.MODEL_CORRUPT),
        ({ALTERNATIVES: b" " * 100_000 + listing(0, 1)[ALTERNATIVES]}, Reason.MODEL_CORRUPT),
    ],
    ids=["none-such", "no-number", "twice", "no-list", "huge"],
)
async def test_a_list_of_alternatives_must_be_one_and_name_versions_that_exist(
    desk: Desk, extra: Mapping[str, bytes], reason: Reason
) -> None:
    await desk.create()
    await refused(desk.create(extra), reason)
    assert len((await desk.versions.list_versions("m", 0, ""))[0]) == 1


async def test_models_that_wait_for_their_check_are_not_copied_to_this_machine(desk: Desk) -> None:
    desk.check.free.clear()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        for index in range(20):
            group.create_task(desk.create(model=f"m{index}"))
        for _ in range(CHECKS):
            await desk.check.started.acquire()
        assert desk.contents.files == CHECKS
        desk.check.free.set()
    assert (desk.contents.files, desk.contents.most_files) == (0, CHECKS)


async def test_a_new_model_of_many_versions_at_once_is_not_checked_for_each(desk: Desk) -> None:
    desk.check.free.clear()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(desk.create())
        await desk.check.started.acquire()
        desk.check.free.set()
    assert len((await desk.versions.list_versions("m", 0, ""))[0]) == 5
    assert desk.contents.all_files <= CHECKS
