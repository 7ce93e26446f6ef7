"""The disk that patches need: one copy of what they make, and never of what shall stay free."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from services.registry.delta import Deltas
from services.registry.limits import Slots
from splitmesh.blobs.delta import make_delta
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import run_job
from tests.support.contents import FolderPlace, digest, write

BASE = random.Random(0).randbytes(200_000)
TARGET = BASE[:50_000] + random.Random(1).randbytes(100) + BASE[50_000:]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What child processes were asked to do."""
    asked: list[object] = []

    async def noted(work: object, *args: Any, **kwargs: Any) -> Any:
        asked.append(work)
        return await run_job(work, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("services.registry.delta.run_job", noted)
    return asked


class SmallDisk:
    """The disk of a store is as full as it would be with so many bytes in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, whole_bytes: int) -> None:
        self.whole_bytes = whole_bytes
        self._folder = folder
        monkeypatch.setattr("services.registry.content.staging.shutil.disk_usage", lambda _: self)

    @property
    def free(self) -> int:
        return self.whole_bytes - sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())


async def test_patches_need_room_for_one_copy_of_what_they_make_and_leave_free_what_shall_be(
    tmp_path: Path, children: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    place = FolderPlace(tmp_path / "store")
    delta = make_delta(BASE, TARGET)
    room_bytes = len(BASE) + len(delta) + len(TARGET) + 500
    disk = SmallDisk(monkeypatch, tmp_path, 10**9)
    async with place.store(min_free_bytes=500) as store:
        await write(store, BASE)
        await write(store, delta)
        deltas = Deltas(store, Slots("patches", 1), max_bytes=1_000_000, max_share=0.5, folder=tmp_path)
        disk.whole_bytes = room_bytes - 1
        with pytest.raises(MeshError) as error:
            await deltas.apply(digest(BASE), digest(delta), digest(TARGET), len(TARGET))
        assert (error.value.reason, len(children)) == (Reason.STORAGE_FULL, 0)
        disk.whole_bytes = room_bytes
        await deltas.apply(digest(BASE), digest(delta), digest(TARGET), len(TARGET))
        assert disk.free == 500
        assert (place.folder / "blobs" / digest(TARGET)[:2] / digest(TARGET)).stat().st_mode & 0o777 == 0o600
        disk.whole_bytes += len(BASE) // 2 - 1  # the largest patch that would be worth it does not fit
        with pytest.raises(MeshError) as error:
            await deltas.make(digest(TARGET), digest(BASE))
        assert (error.value.reason, len(children)) == (Reason.STORAGE_FULL, 1)
        disk.whole_bytes += 1
        assert await deltas.make(digest(TARGET), digest(BASE)) is not None


async def test_what_a_patch_makes_takes_the_place_of_an_unfinished_upload(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    place = FolderPlace(tmp_path / "store")
    delta = make_delta(BASE, TARGET)
    async with place.store(max_store_bytes=len(BASE) + len(delta) + len(TARGET)) as store:
        await write(store, BASE)
        await write(store, delta)
        await write(store, TARGET, upto=1000)
        deltas = Deltas(store, Slots("patches", 1), max_bytes=1_000_000, max_share=0.5, folder=tmp_path)
        await deltas.apply(digest(BASE), digest(delta), digest(TARGET), len(TARGET))
        with pytest.raises(MeshError, match="keeps at most"):
            await write(store, b"x")  # counted once, as a whole
        await store.remove(digest(delta))
        await write(store, b"x")
    assert place.whole()[digest(TARGET)] == TARGET
    assert not place.unfinished()
