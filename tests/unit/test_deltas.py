"""Patches in the registry: made once for everybody who asks, kept as contents, applied and verified, and bounded."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.registry.content.staged import StagedStore
from services.registry.delta import Deltas
from services.registry.limits import Slots
from splitmesh.blobs.delta import apply_delta, make_delta
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.jobs import run_job
from tests.support.contents import FolderPlace, digest, write

BASE = random.Random(0).randbytes(200_000)
TARGET = BASE[:50_000] + random.Random(1).randbytes(100) + BASE[50_000:]
MAX_BYTES = 1_000_000


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    (tmp_path / "store").mkdir()
    return FolderPlace(tmp_path / "store")


@pytest.fixture
async def store(place: FolderPlace) -> AsyncIterator[StagedStore]:
    async with place.store() as made:
        yield made


def deltas_of(store: StagedStore, tmp_path: Path, slots: int = 1, **changes: Any) -> Deltas:
    settings = {"max_bytes": MAX_BYTES, "max_share": 0.5, "folder": tmp_path, **changes}
    return Deltas(store, Slots("patches", slots), **settings)


class Children:
    """Counts child processes; the test may hold them back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()

        async def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            self.started.set()
            try:
                await self.gate.wait()
                return await run_job(*args, **kwargs)
            finally:
                self.ended.set()

        monkeypatch.setattr("services.registry.delta.run_job", counted)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(monkeypatch)


async def test_a_patch_is_a_content_and_makes_the_target(
    place: FolderPlace, store: StagedStore, tmp_path: Path
) -> None:
    await write(store, BASE)
    await write(store, TARGET)
    made = await deltas_of(store, tmp_path).make(digest(BASE), digest(TARGET))
    assert made is not None
    delta = place.whole()[made[0]]
    assert len(delta) == made[1] < 1000
    assert apply_delta(BASE, delta, len(TARGET)) == TARGET
    assert list(tmp_path.iterdir()) == [place.folder]  # nothing else is left


async def test_what_a_killed_process_left_in_the_folder_is_removed_at_the_start_and_nothing_else(
    store: StagedStore, tmp_path: Path
) -> None:
    folder = tmp_path / "patches"
    for _ in range(2):
        await deltas_of(store, tmp_path, folder=folder).start()
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "registry-delta-x").mkdir()
        (folder / "registry-delta-x" / "result").write_bytes(b"half")
        (folder / "file").write_bytes(b"?")
    assert (tmp_path / "store").exists()


async def test_a_patch_is_made_once_and_again_when_it_was_collected(
    store: StagedStore, tmp_path: Path, children: Children
) -> None:
    await write(store, BASE)
    await write(store, TARGET)
    deltas = deltas_of(store, tmp_path)
    first = await deltas.make(digest(BASE), digest(TARGET))
    assert await deltas.make(digest(BASE), digest(TARGET)) == first
    assert children.count == 1
    assert first is not None
    await store.remove(first[0])
    assert await deltas.make(digest(BASE), digest(TARGET)) == first
    assert children.count == 2
    assert await store.missing([first[0]]) == []


async def test_a_patch_that_is_not_worth_it_is_none_and_that_is_remembered(
    place: FolderPlace, store: StagedStore, tmp_path: Path, children: Children
) -> None:
    other = os.urandom(100_000)
    await write(store, BASE)
    await write(store, other)
    deltas = deltas_of(store, tmp_path)
    for _ in range(2):
        assert await deltas.make(digest(BASE), digest(other)) is None
    assert children.count == 1
    assert set(place.whole()) == {digest(BASE), digest(other)}


async def test_many_who_ask_for_one_patch_share_one_child_also_when_the_first_goes_away(
    store: StagedStore, tmp_path: Path, children: Children
) -> None:
    await write(store, BASE)
    await write(store, TARGET)
    deltas = deltas_of(store, tmp_path)
    children.gate.clear()
    asking = [asyncio.create_task(deltas.make(digest(BASE), digest(TARGET))) for _ in range(5)]
    async with asyncio.timeout(10):
        await children.started.wait()
    asking[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking[0]
    with pytest.raises(MeshError) as error:
        await deltas.make(digest(TARGET), digest(BASE))  # another one: no child is free
    assert error.value.reason is Reason.QUEUE_FULL
    children.gate.set()
    made = await asyncio.gather(*asking[1:])
    assert children.count == 1
    assert len(set(made)) == 1
    assert made[0] is not None


async def test_work_that_nobody_waits_for_ends_and_gives_its_place_back(
    store: StagedStore, tmp_path: Path, children: Children
) -> None:
    await write(store, BASE)
    await write(store, TARGET)
    deltas = deltas_of(store, tmp_path)
    children.gate.clear()
    asking = asyncio.create_task(deltas.make(digest(BASE), digest(TARGET)))
    async with asyncio.timeout(10):
        await children.started.wait()
        asking.cancel()
        await children.ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await asking
    children.gate.set()
    assert await deltas.make(digest(BASE), digest(TARGET)) is not None
    assert await store.remove(digest(BASE)) is not None  # nobody reads it any more


async def test_a_content_is_made_of_a_base_and_a_patch(
    place: FolderPlace, store: StagedStore, tmp_path: Path, children: Children
) -> None:
    delta = make_delta(BASE, TARGET)
    await write(store, BASE)
    await write(store, delta)
    deltas = deltas_of(store, tmp_path)
    for _ in range(2):
        await deltas.apply(digest(BASE), digest(delta), digest(TARGET), len(TARGET))
    assert place.whole()[digest(TARGET)] == TARGET
    assert children.count == 1
    assert list(tmp_path.iterdir()) == [place.folder]


@pytest.mark.parametrize(
    ("base", "delta", "sha256", "size_bytes", "reason"),
    [
        (BASE, make_delta(BASE, TARGET), "0" * 64, len(TARGET), Reason.DIGEST_MISMATCH),
        (BASE, make_delta(BASE, TARGET), digest(TARGET), len(TARGET) - 1, Reason.PAYLOAD_CORRUPT),
        (BASE[1:], make_delta(BASE, TARGET), digest(TARGET), len(TARGET), Reason.PAYLOAD_CORRUPT),
        (BASE, b"no patch", digest(TARGET), len(TARGET), Reason.PAYLOAD_CORRUPT),
        (BASE, make_delta(BASE, TARGET), digest(TARGET), MAX_BYTES + 1, Reason.FRAME_TOO_LARGE),
        (BASE, make_delta(BASE, TARGET), "nonsense", len(TARGET), Reason.FIELD_INVALID),
    ],
)
async def test_a_patch_that_makes_something_else_leaves_nothing(
    place: FolderPlace,
    store: StagedStore,
    tmp_path: Path,
    base: bytes,
    delta: bytes,
    sha256: str,
    size_bytes: int,
    reason: Reason,
) -> None:
    await write(store, base)
    await write(store, delta)
    with pytest.raises(MeshError) as error:
        await deltas_of(store, tmp_path).apply(digest(base), digest(delta), sha256, size_bytes)
    assert error.value.reason is reason
    assert set(place.whole()) == {digest(base), digest(delta)}
    assert not place.unfinished()


async def test_a_patch_that_lies_does_not_cost_somebody_else_their_unfinished_upload(
    store: StagedStore, tmp_path: Path
) -> None:
    wanted = os.urandom(len(TARGET))
    delta = make_delta(BASE, TARGET)
    await write(store, BASE)
    await write(store, delta)
    await write(store, wanted, upto=1000)
    with pytest.raises(MeshError) as error:
        await deltas_of(store, tmp_path).apply(digest(BASE), digest(delta), digest(wanted), len(wanted))
    assert error.value.reason is Reason.DIGEST_MISMATCH
    assert (await store.progress(digest(wanted))).offset == 1000


async def test_what_is_not_there_or_too_large_is_told(store: StagedStore, tmp_path: Path) -> None:
    large = bytes(MAX_BYTES + 1)
    for content in (BASE, large):
        await write(store, content)
    deltas = deltas_of(store, tmp_path)
    known, unknown, too_large = digest(BASE), "1" * 64, digest(large)
    for call, reason in (
        (deltas.make(known, unknown), Reason.ARTIFACT_NOT_FOUND),
        (deltas.make(unknown, known), Reason.ARTIFACT_NOT_FOUND),
        (deltas.make(known, too_large), Reason.FRAME_TOO_LARGE),
        (deltas.make(too_large, known), Reason.FRAME_TOO_LARGE),
        (deltas.apply(known, unknown, "2" * 64, 10), Reason.ARTIFACT_NOT_FOUND),
        (deltas.apply(unknown, known, "2" * 64, 10), Reason.ARTIFACT_NOT_FOUND),
        (deltas.apply(too_large, known, "2" * 64, 10), Reason.FRAME_TOO_LARGE),
    ):
        with pytest.raises(MeshError) as error:
            await call
        assert error.value.reason is reason


async def test_a_pair_that_needs_more_memory_than_a_child_has_is_refused(
    store: StagedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hungry(*_: object, **__: object) -> None:
        raise MeshError(Reason.MODEL_TOO_LARGE, "more memory")

    monkeypatch.setattr("services.registry.delta.run_job", hungry)
    await write(store, BASE)
    await write(store, TARGET)
    with pytest.raises(MeshError) as error:
        await deltas_of(store, tmp_path).make(digest(BASE), digest(TARGET))
    assert error.value.reason is Reason.FRAME_TOO_LARGE


async def test_a_pair_that_takes_too_long_is_given_up(store: StagedStore, tmp_path: Path) -> None:
    await write(store, BASE)
    await write(store, TARGET)
    with pytest.raises(MeshError) as error:
        await deltas_of(store, tmp_path, deadline_s=0.0).make(digest(BASE), digest(TARGET))
    assert error.value.reason is Reason.DEADLINE_EXPIRED
