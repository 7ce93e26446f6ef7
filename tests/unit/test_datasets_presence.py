"""How many pictures of a manifest are here: found in its bytes, counted in turns, remembered while that is right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.registry.datasets import presence as module
from services.registry.datasets.presence import Presence
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import item

WAIT_S = 30.0


def manifest(count: int, **fields: str) -> Dataset:
    return freeze_items([item(n, **fields) for n in range(count)], seed=1, shares={"train": 1})


class Slices:
    """Contents that remember what was asked; manifests are called by any name."""

    def __init__(self, there: Sequence[str] = (), **manifests: bytes) -> None:
        self.manifests, self.there = manifests, set(there)
        self.asked, self.reads = list[str](), 0
        self.batches = list[Sequence[str]]()
        self.slow: dict[str, asyncio.Event] = {}

    async def read(self, sha256: str, offset: int, length: int) -> bytes:
        if sha256 not in self.manifests:
            raise MeshError(Reason.ARTIFACT_NOT_FOUND, "gone")
        if sha256 in self.slow:
            await self.slow[sha256].wait()
        await asyncio.sleep(0)  # as any reading from a disk lets others work
        self.reads += offset == 0
        return self.manifests[sha256][offset : offset + length]

    async def missing(self, sha256s: Sequence[str], *, touch: bool = True) -> list[str]:
        assert not touch, "what is only counted must not stay for it"
        self.asked += sha256s
        self.batches.append(sha256s)
        return [sha256 for sha256 in sha256s if sha256 not in self.there]


def counting(contents: Slices, at: Sequence[float] = (0.0,)) -> Presence:
    return Presence(contents, for_s=10.0, monotonic=lambda: at[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("slice_bytes", [1, 13, 76, 100, 311, 1 << 20])
async def test_pictures_are_found_wherever_a_slice_ends_and_texts_that_look_like_one_are_none(
    slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLICE_BYTES", slice_bytes)
    dataset = manifest(20, provenance=f'"picture":"{"f" * 64}"')
    pictures = [entry.picture for entry in dataset.entries]
    contents = Slices(pictures[:7], a=dataset.to_json())
    assert await counting(contents).count("a", WAIT_S) == 7
    assert sorted(contents.asked) == sorted(pictures)


async def test_pictures_are_asked_for_folder_by_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_BYTES", 5000)
    monkeypatch.setattr(module, "_BATCH", 30)
    dataset = manifest(500)
    pictures = {entry.picture for entry in dataset.entries}
    contents = Slices(list(pictures), a=dataset.to_json())
    assert await counting(contents).count("a", WAIT_S) == 500
    folders = [folder for batch in contents.batches for folder in {sha256[:2] for sha256 in batch}]
    assert sorted(folders) == sorted({sha256[:2] for sha256 in pictures}), "each of them in one question"
    assert 10 < len(contents.batches) <= -(-500 // 30)
    monkeypatch.setattr(module, "_GATHERED", 100)
    assert await counting(contents).count("a", WAIT_S) == 500


async def test_a_count_holds_for_a_while_and_is_made_once_for_all_who_ask() -> None:
    at = [0.0]
    dataset = manifest(5)
    contents = Slices(a=dataset.to_json())
    presence = counting(contents, at)
    assert await asyncio.gather(*(presence.count("a", WAIT_S) for _ in range(5))) == [0] * 5
    contents.there.add(dataset.entries[0].picture)
    assert await presence.count("a", WAIT_S) == 0
    assert contents.reads == 1
    at[0] = 10.0
    assert await presence.count("a", WAIT_S) == 1
    assert contents.reads == 2


async def test_once_all_are_here_nobody_counts_again_until_a_version_is_deleted() -> None:
    at = [0.0]
    dataset = manifest(5)
    contents = Slices([entry.picture for entry in dataset.entries], a=dataset.to_json())
    presence = counting(contents, at)
    for at[0] in (0.0, 1e9):
        assert await presence.count("a", WAIT_S) == 5
    assert contents.reads == 1
    contents.there.clear()
    presence.forget("a")
    assert await presence.count("a", WAIT_S) == 0


async def test_who_does_not_wait_gets_no_number_and_leaves_the_count_to_the_next() -> None:
    contents = Slices(a=manifest(3).to_json())
    contents.slow["a"] = asyncio.Event()
    presence = counting(contents)
    assert await presence.count("a", 0.0) is None
    waiting = asyncio.create_task(presence.count("a", WAIT_S))
    contents.slow["a"].set()
    assert await waiting == 0
    assert contents.reads == 1


async def test_a_count_takes_turns_with_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE_BYTES", 400)
    large = manifest(200).to_json()
    contents = Slices(a=large, b=large, small=manifest(1).to_json())
    presence = counting(contents)
    for name in ("a", "b"):
        assert await presence.count(name, 0.0) is None
    assert await presence.count("small", WAIT_S) == 0
    assert len(contents.asked) < 200, "the large ones are still being counted"
    await presence.stop()


async def test_what_cannot_be_counted_has_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = Slices(a=manifest(1).to_json())
    presence = counting(contents)
    assert await presence.count("lost", WAIT_S) is None
    contents.slow["a"] = asyncio.Event()
    contents.manifests["b"] = contents.manifests["a"]
    monkeypatch.setattr(module, "_COUNTS_AT_ONCE", 1)
    assert await presence.count("a", 0.0) is None
    assert await presence.count("b", WAIT_S) is None, "too many at once"
    waiting = asyncio.create_task(presence.count("a", WAIT_S))
    await asyncio.sleep(0)
    presence.forget("a")
    assert await waiting is None
