"""Datasets in a real registry: versions that are signed and verified, and pictures that cross once, as far as rules let them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitmesh.client.dataset_pull import Pulled, Source, look_for, pull_pictures
from splitmesh.client.dataset_push import Pushed, push_pictures
from splitmesh.client.dataset_sharing import NO_RULE, Rule, Sharing
from splitmesh.client.dataset_thumbnails import with_thumbnails
from splitmesh.client.datasets import DatasetClient
from splitmesh.client.registry import RegistryClient
from splitmesh.datasets.folder import FolderLimits, PictureFolder
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from tests.integration.board_pictures import COUNT, LIMITS, OPEN, PICTURES, boards, site
from tests.integration.registry_world import World, running


class Crossing:
    """The registry, with everything that crosses counted; a push breaks after ``breaks_after`` contents."""

    def __init__(self, registry: RegistryClient, breaks_after: int | None = None) -> None:
        self.registry = registry
        self.breaks_after = breaks_after
        self.up: list[str] = []
        self.down: list[str] = []

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        return await self.registry.missing(sha256s)

    async def push_contents(self, contents: AsyncIterable[tuple[str, bytes]], *, on_progress: Any = None) -> int:
        async def counted() -> AsyncIterator[tuple[str, bytes]]:
            async for sha, data in contents:
                # Each alone, so that what came before the break is on disk.
                await self.registry.push_contents(only((sha, data)))
                self.up.append(sha)
                if len(self.up) == self.breaks_after:
                    raise asyncio.CancelledError
                yield sha, data

        return sum([1 async for _ in counted()])

    async def pull_contents(self, sha256s: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
        async for sha, data in self.registry.pull_contents(sha256s):
            self.down.append(sha)
            yield sha, data


async def only(content: tuple[str, bytes]) -> AsyncIterator[tuple[str, bytes]]:
    yield content


async def pull(registry: Source, name: str, dataset: Dataset, folder: PictureFolder, sharing: Sharing) -> Pulled:
    lacking = look_for(dataset, folder)
    return await pull_pictures(registry, name, dataset, folder, sharing, lacking)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path / "registry") as made:
        yield made


async def test_a_version_is_made_listed_read_and_deleted(world: World) -> None:
    client = DatasetClient(world.channels)
    first = await client.create("boards", boards(), created_by="ana", description="first", request_id="r1")
    assert (first.dataset, first.version, first.parent, first.task) == ("boards", 1, 0, "classification")
    assert (first.classes, first.sites, first.pictures, first.pictures_here) == (("ng", "ok"), ("lyon",), COUNT, None)
    assert first.manifest.sha256 == boards().id
    assert {one.split: (one.pictures, one.groups, dict(one.labels)) for one in first.splits}["train"] == (
        *(COUNT, COUNT),
        {"ng": COUNT // 2, "ok": COUNT // 2},
    )
    assert await client.create("boards", boards(), created_by="ana", request_id="r1") == first
    second = await client.create("boards", boards(5), created_by="bo", parent=1)
    assert [one.version for one in await client.versions("boards")] == [2, 1]
    assert [(one.name, one.latest_version) for one in await client.list()] == [("boards", 2)]
    assert await client.get("boards") == second
    assert await client.manifest(second) == boards(5)
    await client.delete("boards", 2, deleted_by="ana", reason="too small")
    with pytest.raises(MeshError) as error:
        await client.get("boards", 2)
    assert error.value.reason is Reason.VERSION_NOT_FOUND
    events = await world.client.events("boards")
    assert [event.kind for event in events] == ["dataset.deleted", "dataset.created", "dataset.created"]


async def test_what_is_no_manifest_makes_no_version(world: World) -> None:
    client = DatasetClient(world.channels)
    lie = boards().to_json().replace(b'"pictures":12', b'"pictures":13')
    for data in (b"{}", lie):
        with pytest.raises(MeshError) as error:
            await client.create("boards", data, created_by="ana")
        assert error.value.reason is Reason.FIELD_INVALID
    with pytest.raises(MeshError) as error:
        await client.create("boards", boards(), created_by="ana", parent=7)
    assert error.value.reason is Reason.VERSION_NOT_FOUND
    assert await client.list() == []


async def test_a_manifest_that_is_another_than_was_named_is_refused(world: World) -> None:
    client = DatasetClient(world.channels)
    version = await client.create("boards", boards(), created_by="ana")
    other = await client.create("boards", boards(5), created_by="ana")
    swapped = replace(version, manifest=replace(version.manifest, size_bytes=other.manifest.size_bytes))
    with pytest.raises(MeshError):
        await client.manifest(swapped)
    with pytest.raises(MeshError) as error:
        await client.manifest(replace(version, manifest=replace(version.manifest, size_bytes=1 << 40)))
    assert error.value.reason is Reason.FRAME_TOO_LARGE


async def test_pictures_go_up_and_come_down_at_another_site_each_once(world: World, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    up = Crossing(world.client)
    pushed = await push_pictures(
        up, "boards", boards(), site(tmp_path / "lyon"), OPEN, on_progress=lambda *at: told.append(at)
    )
    total = sum(map(len, PICTURES))
    assert pushed == Pushed(COUNT, total, left=dict.fromkeys((entry.picture for entry in boards().entries), None))
    assert told[-1] == (total, total)
    again = await push_pictures(up, "boards", boards(), site(tmp_path / "lyon"), OPEN)
    assert (again.sent, again.there, len(up.up)) == (0, COUNT, COUNT)
    paris = PictureFolder(tmp_path / "paris", LIMITS)
    down = Crossing(world.client)
    assert await pull(down, "boards", boards(), paris, OPEN) == Pulled(COUNT, total)
    assert await pull(down, "boards", boards(), paris, OPEN) == Pulled(here=COUNT)
    assert len(down.down) == COUNT
    assert [paris.read(entry.picture) for entry in boards().entries] == sorted(
        PICTURES, key=lambda data: hashlib.sha256(data).hexdigest()
    )


async def test_a_push_that_was_killed_goes_on_with_what_is_missing(world: World, tmp_path: Path) -> None:
    lyon, crossing = site(tmp_path / "lyon"), Crossing(world.client, breaks_after=5)
    with pytest.raises(asyncio.CancelledError):
        await push_pictures(crossing, "boards", boards(), lyon, OPEN)
    crossing.breaks_after = None
    pushed = await push_pictures(crossing, "boards", boards(), lyon, OPEN)
    assert (pushed.sent, pushed.there) == (COUNT - 5, 5)
    assert sorted(crossing.up) == [entry.picture for entry in boards().entries]


async def test_a_pull_that_was_killed_goes_on_with_what_is_missing(world: World, tmp_path: Path) -> None:
    await push_pictures(world.client, "boards", boards(), site(tmp_path / "lyon"), OPEN)
    paris = PictureFolder(tmp_path / "paris", LIMITS)

    class Broken(Crossing):
        async def pull_contents(self, sha256s: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
            async for content in super().pull_contents(sha256s):
                if len(self.down) == 5:
                    raise asyncio.CancelledError
                yield content

    with pytest.raises(asyncio.CancelledError):
        await pull(Broken(world.client), "boards", boards(), paris, OPEN)
    crossing = Crossing(world.client)
    assert (await pull(crossing, "boards", boards(), paris, OPEN)).here == 4
    assert len(crossing.down) == COUNT - 4


async def test_what_no_rule_lets_go_is_not_even_opened(world: World, tmp_path: Path) -> None:
    opened: list[str] = []

    class Watched(PictureFolder):
        def read(self, digest: str) -> bytes:
            opened.append(digest)
            return super().read(digest)

    site(tmp_path / "lyon")
    lyon = Watched(tmp_path / "lyon", LIMITS)
    sharing = Sharing(pictures=(Rule(labels=("ok",), share="nothing"), Rule(datasets=("joints",), share="whole")))
    pushed = await push_pictures(world.client, "boards", boards(), lyon, sharing)
    here = frozenset(entry.picture for entry in boards().entries)
    assert pushed == Pushed(stayed={"rule 1 keeps it": COUNT // 2, NO_RULE: COUNT // 2}, kept_here=here)
    assert opened == []
    assert len(await world.client.missing([entry.picture for entry in boards().entries])) == COUNT


async def test_thumbnails_leave_in_place_of_pictures(world: World, tmp_path: Path) -> None:
    sharing = Sharing(pictures=(Rule(labels=("ok",), share="thumbnail", long_side=16), Rule(share="whole")))
    dataset, lyon = boards(), site(tmp_path / "lyon")
    pushed = await push_pictures(world.client, "boards", dataset, lyon, sharing)
    assert (pushed.sent, pushed.thumbnails) == (COUNT, COUNT // 2)
    missing = set(await world.client.missing([entry.picture for entry in dataset.entries]))
    assert missing == {entry.picture for entry in dataset.entries if entry.label == "ok"}
    small = with_thumbnails(dataset, pushed.left)
    assert {(entry.label, entry.width) for entry in small.entries} == {("ok", 16), ("ng", 40)}
    paris = PictureFolder(tmp_path / "paris", LIMITS)
    assert (await pull(world.client, "boards-small", small, paris, OPEN)).fetched == COUNT
    again = await push_pictures(world.client, "boards", dataset, lyon, sharing)
    assert (again.sent, again.there, again.left) == (0, COUNT, pushed.left)


async def test_pictures_that_are_damaged_or_not_at_the_site_do_not_stop_the_others(
    world: World, tmp_path: Path
) -> None:
    lyon = site(tmp_path / "lyon", PICTURES[1:])
    (damaged,) = (tmp_path / "lyon").rglob(hashlib.sha256(PICTURES[1]).hexdigest())
    damaged.write_bytes(PICTURES[1][:-1] + b"x")
    pushed = await push_pictures(world.client, "boards", boards(), lyon, OPEN)
    assert (pushed.sent, pushed.not_here, pushed.damaged) == (COUNT - 2, 1, 1)
    paris = PictureFolder(tmp_path / "paris", LIMITS)
    pulled = await pull(world.client, "boards", boards(), paris, OPEN)
    assert (pulled.fetched, pulled.elsewhere) == (COUNT - 2, 2)


async def test_what_is_damaged_at_a_site_is_fetched_again_where_the_registry_has_it(
    world: World, tmp_path: Path
) -> None:
    lyon = site(tmp_path / "lyon")
    sharing = Sharing(pictures=(Rule(labels=("ok",), share="whole"),))
    await push_pictures(world.client, "boards", boards(), lyon, sharing)
    ok, ng = (next(entry.picture for entry in boards().entries if entry.label == label) for label in ("ok", "ng"))
    for digest in (ok, ng):
        (path,) = (tmp_path / "lyon" / "pictures").rglob(digest)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    checked: list[tuple[int, int]] = []
    lacking = look_for(boards(), lyon, on_checked=lambda *at: checked.append(at))
    assert (set(lacking.pictures), set(lacking.damaged)) == ({ok, ng}, {ok, ng})
    assert checked[-1] == (COUNT, COUNT)
    pulled = await pull(world.client, "boards", boards(), lyon, OPEN)
    assert (pulled.fetched, pulled.here, pulled.elsewhere, pulled.damaged) == (1, COUNT - 2, 0, 1)
    assert look_for(boards(), lyon).pictures == [ng]


async def test_a_manifest_that_lies_about_a_picture_brings_nothing_in(world: World, tmp_path: Path) -> None:
    no_picture = b"this is no picture"
    await world.client.push_artifact("x", no_picture)
    await push_pictures(world.client, "boards", boards(), site(tmp_path / "lyon"), OPEN)
    first, second, *others = boards().entries
    lies = [
        first.model_copy(update={"picture": hashlib.sha256(no_picture).hexdigest(), "picture_bytes": len(no_picture)}),
        second.model_copy(update={"picture_bytes": second.picture_bytes + 1}),
    ]
    lying = boards().model_copy(update={"entries": (*lies, *others)})
    paris = PictureFolder(tmp_path / "paris", LIMITS)
    pulled = await pull(world.client, "boards", lying, paris, OPEN)
    assert (pulled.fetched, pulled.refused) == (COUNT - 2, 2)
    assert [digest for digest, _ in pulled.problems] == [lie.picture for lie in lies]
    assert [paris.has(lie.picture) for lie in lies] == [False, False]


async def test_a_site_that_does_not_accept_a_dataset_takes_nothing_in(world: World, tmp_path: Path) -> None:
    await push_pictures(world.client, "boards", boards(), site(tmp_path / "lyon"), OPEN)
    paris = PictureFolder(tmp_path / "paris", LIMITS)
    with pytest.raises(MeshError) as error:
        await pull(world.client, "boards", boards(), paris, Sharing(accept=("joints",)))
    assert error.value.reason is Reason.CONTENT_NOT_ALLOWED
    assert not (tmp_path / "paris").exists()


async def test_a_full_disk_at_the_site_stops_a_pull_and_what_came_stays(world: World, tmp_path: Path) -> None:
    await push_pictures(world.client, "boards", boards(), site(tmp_path / "lyon"), OPEN)
    small = PictureFolder(tmp_path / "paris", FolderLimits(min_free_bytes=0, max_pictures=4))
    with pytest.raises(MeshError) as error:
        await pull(world.client, "boards", boards(), small, OPEN)
    assert error.value.reason is Reason.STORAGE_FULL
    larger = PictureFolder(tmp_path / "paris", LIMITS)
    assert (await pull(world.client, "boards", boards(), larger, OPEN)).here == 4
