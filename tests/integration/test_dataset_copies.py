"""Thumbnails of several sites in one dataset: each push adds to what the others let go, and nothing flips back and forth."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from splitmesh.client import dataset_copies
from splitmesh.client.dataset_copies import Copies, publish_copies
from splitmesh.client.dataset_push import push_pictures
from splitmesh.client.dataset_sharing import Rule, Sharing
from splitmesh.client.datasets import DatasetClient, DatasetVersionInfo
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from tests.integration.board_pictures import COUNT, PICTURES, boards, site
from tests.integration.registry_world import World, running

SMALL = Sharing(pictures=(Rule(share="thumbnail", long_side=16),))
LARGER = Sharing(pictures=(Rule(share="thumbnail", long_side=20),))
NOTHING = Sharing()
NO_OK = Sharing(pictures=(Rule(labels=("ok",), share="nothing"), Rule(share="thumbnail", long_side=16)))


@dataclass
class Mesh:
    """A registry with versions of a dataset, and sites with a part of its pictures each."""

    world: World
    folder: Path
    client: DatasetClient
    source: DatasetVersionInfo

    async def push(
        self,
        name: str,
        pictures: Sequence[bytes],
        rules: Sharing = SMALL,
        source: DatasetVersionInfo | None = None,
        client: DatasetClient | None = None,
    ) -> DatasetVersionInfo:
        copies = await self.publish(name, pictures, rules, source, client)
        assert copies.version is not None
        assert copies.still == 0
        return copies.version

    async def publish(
        self,
        name: str,
        pictures: Sequence[bytes],
        rules: Sharing = SMALL,
        source: DatasetVersionInfo | None = None,
        client: DatasetClient | None = None,
        may_leave: bool = True,
    ) -> Copies:
        source, client = source or self.source, client or self.client
        dataset = await self.client.manifest(source)
        pushed = await push_pictures(self.world.client, "boards", dataset, site(self.folder / name, pictures), rules)
        about = (source, dataset, pushed.left, pushed.kept_here)
        return await publish_copies(client, *about, created_by=name, may_leave=may_leave)

    async def manifest(self, version: DatasetVersionInfo) -> Dataset:
        return await self.client.manifest(version)

    async def numbers(self) -> list[int]:
        return [one.version for one in await self.client.versions("boards-thumbnails")]


class NotLyon(DatasetClient):
    """For whom the key of Lyon is revoked."""

    async def verify(self, version: DatasetVersionInfo) -> None:
        if version.created_by == "lyon":
            raise MeshError(Reason.KEY_REVOKED, "stolen")


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running(tmp_path / "registry") as world:
        client = DatasetClient(world.channels)
        yield Mesh(world, tmp_path, client, await client.create("boards", boards(), created_by="ana"))


async def test_each_site_adds_its_pictures_to_those_of_the_others_and_then_nothing_is_new(mesh: Mesh) -> None:
    first = await mesh.push("lyon", PICTURES[:5])
    assert (first.version, first.pictures) == (1, 5)
    second = await mesh.push("oulu", PICTURES[5:])
    assert (second.version, second.parent, second.pictures) == (2, 1, COUNT)
    for _ in range(2):
        assert (await mesh.push("lyon", PICTURES[:5])).version == 2
        assert (await mesh.push("oulu", PICTURES[5:])).version == 2
    assert (await mesh.manifest(second)).classes == boards().classes
    alone = await mesh.push("both", PICTURES)
    assert alone.version == 2, "the same as one site with all pictures would make"


async def test_versions_of_the_source_have_versions_of_their_own(mesh: Mesh) -> None:
    other = await mesh.client.create("boards", boards(5), created_by="ana")
    found = [
        (await mesh.push("lyon", PICTURES, source=source)).version for source in (mesh.source, other) for _ in range(2)
    ]
    assert found == [1, 1, 2, 2]
    assert (await mesh.push("lyon", PICTURES)).version == 1
    assert await mesh.numbers() == [2, 1]


async def test_what_a_site_keeps_by_now_goes_out_of_the_next_version_and_other_sizes_take_the_place(mesh: Mesh) -> None:
    await mesh.push("lyon", PICTURES[:6])
    await mesh.push("oulu", PICTURES[6:])
    kept = await mesh.manifest(await mesh.push("lyon", PICTURES[:6], NO_OK))
    ok = [entry.picture for entry in boards().entries if entry.label == "ok"]
    lyons = {hashlib.sha256(data).hexdigest() for data in PICTURES[:6]}
    assert len(kept.entries) == COUNT - len(lyons.intersection(ok))
    larger = await mesh.manifest(await mesh.push("lyon", PICTURES[:6], LARGER))
    assert sorted(entry.width for entry in larger.entries) == [16] * (COUNT - 6) + [20] * 6


async def test_sites_that_push_at_the_same_time_lose_nothing(mesh: Mesh) -> None:
    await mesh.push("bern", PICTURES[:2])

    class Slow(DatasetClient):
        """Another site comes between its look and its version."""

        raced = False

        async def create(self, *arguments: Any, **options: Any) -> DatasetVersionInfo:
            if not self.raced:
                self.raced = True
                await mesh.push("oulu", PICTURES[7:])
            return await super().create(*arguments, **options)

    made = await mesh.push("lyon", PICTURES[2:7], client=Slow(mesh.world.channels))
    assert (made.version, made.pictures) == (4, COUNT)
    assert (await mesh.push("oulu", PICTURES[7:])).version == 4


async def test_the_first_two_sites_at_once_lose_nothing_and_a_site_does_not_merge_for_ever(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(mesh.push("lyon", PICTURES[:6]), mesh.push("oulu", PICTURES[6:]))
    assert (await mesh.push("lyon", PICTURES[:6])).pictures == COUNT
    monkeypatch.setattr(dataset_copies, "ROUNDS", 1)
    with pytest.raises(MeshError) as error:
        await mesh.push("lyon", PICTURES[:6], LARGER)
    assert error.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_version_that_does_not_verify_is_passed_over(mesh: Mesh) -> None:
    await mesh.push("lyon", PICTURES[:5])

    made = await mesh.push("oulu", PICTURES[5:], client=NotLyon(mesh.world.channels))
    assert (made.version, made.parent, made.pictures) == (2, 0, COUNT - 5)


async def test_what_was_let_go_before_a_version_that_does_not_verify_is_not_lost(mesh: Mesh) -> None:
    await mesh.push("bern", PICTURES[:5])
    await mesh.push("lyon", PICTURES[5:8])
    made = await mesh.push("oulu", PICTURES[8:], client=NotLyon(mesh.world.channels))
    assert (made.version, made.parent, made.pictures) == (3, 1, COUNT - 3)


async def test_a_version_that_says_the_same_and_does_not_verify_is_made_again_once(mesh: Mesh) -> None:
    stolen = await mesh.push("lyon", PICTURES[:5])
    client = NotLyon(mesh.world.channels)
    again = [await mesh.push("oulu", PICTURES[:5], client=client) for _ in range(2)]
    assert [one.version for one in again] == [2, 2]
    assert again[0].manifest == stolen.manifest


async def test_what_is_taken_back_is_not_in_the_newest_version_though_an_earlier_one_said_so_already(
    mesh: Mesh,
) -> None:
    before = await mesh.push("lyon", PICTURES[:6], NO_OK)
    await mesh.push("lyon", PICTURES[:6])
    for _ in range(2):
        back = await mesh.push("lyon", PICTURES[:6], NO_OK)
        assert (back.version, back.manifest) == (3, before.manifest)
    assert await mesh.numbers() == [3, 2, 1]
    assert (await mesh.push("oulu", PICTURES[6:])).pictures == before.pictures + COUNT - 6


async def test_smaller_copies_take_the_place_again_and_two_sites_with_one_picture_do_not_take_turns(mesh: Mesh) -> None:
    first = await mesh.push("lyon", PICTURES)
    assert (await mesh.push("oulu", PICTURES, LARGER)).version == 2
    for _ in range(2):
        smaller = await mesh.push("lyon", PICTURES)
        assert (smaller.version, smaller.manifest) == (3, first.manifest)
        assert (await mesh.push("oulu", PICTURES, LARGER)).version == 2


async def test_a_site_that_lets_nothing_go_any_more_takes_its_own_back_and_leaves_those_of_others(mesh: Mesh) -> None:
    assert await mesh.publish("lyon", PICTURES[:6], NOTHING) == Copies()
    await mesh.push("lyon", PICTURES[:6])
    assert await mesh.publish("bern", PICTURES[6:], NOTHING) == Copies()
    both = await mesh.push("oulu", PICTURES[6:])
    assert await mesh.publish("lyon", PICTURES[:6], NOTHING, may_leave=False) == Copies(both, 6)
    back = (await mesh.publish("lyon", PICTURES[:6], NOTHING)).version
    assert back is not None
    assert (back.version, back.pictures) == (3, COUNT - 6)
    assert await mesh.publish("lyon", PICTURES[:6], NOTHING) == Copies()


async def test_a_version_of_which_nothing_would_be_left_is_told_until_it_is_deleted(mesh: Mesh) -> None:
    made = await mesh.push("lyon", PICTURES[:6])
    for _ in range(2):
        assert await mesh.publish("lyon", PICTURES[:6], NOTHING) == Copies(made, 6)
    await mesh.client.delete("boards-thumbnails", 1, deleted_by="lyon")
    assert await mesh.publish("lyon", PICTURES[:6], NOTHING) == Copies()


async def test_a_site_that_fetched_whole_pictures_takes_them_from_nobody(mesh: Mesh) -> None:
    ok_whole = Sharing(pictures=(Rule(labels=("ok",), share="whole"), Rule(share="thumbnail", long_side=16)))
    await mesh.push("lyon", PICTURES, ok_whole)
    fetched = [PICTURES[n] for n in range(1, COUNT, 2)]
    assert await mesh.publish("paris", fetched, NOTHING) == Copies()


async def test_a_name_too_long_for_thumbnails_keeps_nobody_from_pushing(mesh: Mesh) -> None:
    source = await mesh.client.create("b" * 60, boards(), created_by="ana")
    assert await mesh.publish("lyon", PICTURES, NOTHING, source) == Copies()
