"""The registry's rules of datasets below gRPC: a child's limits, callers that hang up, requests that come again."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.registry.check import CheckLimits
from services.registry.content.folder import FolderStore
from services.registry.content.port import ContentLimits
from services.registry.datasets import check_manifest
from services.registry.datasets.check import MAX_WAITING, ManifestCheck
from services.registry.datasets.datasets import Datasets, Wanted
from services.registry.garbage import Pins
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Actor, DatasetDraft, DatasetVersion
from services.registry.signatures import Signatures
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from tests.unit.dataset_items import digest_of, item

LIMITS = CheckLimits(check_memory_bytes=4 << 30, check_cpu_s=60, check_deadline_s=60.0, max_checks=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def manifest(count: int, **fields: str) -> Dataset:
    return freeze_items([item(n, **fields) for n in range(count)], seed=1, shares={"train": 1})


def wanted(data: bytes, **fields: object) -> Wanted:
    values = {"parent": 0, "created_by": "ana", "description": "", "request_id": "", "signature": b"", **fields}
    return Wanted("joints", digest_of(data), **values)  # type: ignore[arg-type]


@pytest.fixture
async def contents(tmp_path: Path) -> AsyncIterator[FolderStore]:
    limits = ContentLimits(
        max_artifact_bytes=1 << 30,
        max_store_bytes=0,
        min_free_bytes=0,
        upload_wait_s=1.0,
        stale_upload_s=100.0,
        sweep_every_s=100.0,
    )
    store = FolderStore(tmp_path, limits)
    await store.start()
    yield store
    await store.stop()


class SlowStore(MemoryStore):
    """Writes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = asyncio.Event(), asyncio.Event()

    async def create_dataset_version(self, draft: DatasetDraft, actor: Actor, create_time: datetime) -> DatasetVersion:
        self.asked.set()
        await self.go.wait()
        return await super().create_dataset_version(draft, actor, create_time)


async def keep(contents: FolderStore, data: bytes) -> bytes:
    await contents.put([(hashlib.sha256(data).hexdigest(), data)])
    return data


async def test_a_caller_that_hangs_up_stops_no_write_and_frees_nothing_before_it_is_done(contents: FolderStore) -> None:
    store, pins = SlowStore(), Pins()
    datasets = Datasets(store, contents, Signatures(store, None), pins, ManifestCheck(LIMITS), now=lambda: NOW)
    data = await keep(contents, manifest(3).to_json())
    named = [digest_of(data), *(digest_of(n) for n in range(3))]
    creating = asyncio.create_task(datasets.create(wanted(data)))
    await store.asked.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    with pins.claim([*named, "other"]) as claimed:
        assert claimed == {"other"}, "nobody may collect what is being named"
    store.go.set()
    await datasets.stop()
    assert (await store.get_dataset_version("joints", 0)).version == 1
    with pins.claim(named) as claimed:
        assert claimed == set(named)


async def test_a_manifest_above_the_limit_is_refused_unread(contents: FolderStore) -> None:
    store = MemoryStore()
    check = ManifestCheck(replace(LIMITS, check_deadline_s=0.0))
    datasets = Datasets(store, contents, Signatures(store, None), Pins(), check, max_manifest_bytes=1000)
    data = await keep(contents, manifest(3).to_json())
    with pytest.raises(MeshError) as error:
        await datasets.create(wanted(data))
    assert error.value.reason is Reason.FRAME_TOO_LARGE
    assert error.value.metadata == {"limit_bytes": "1000"}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (replace(LIMITS, check_deadline_s=0.0), "was not done within"),
        # Without memory the parser may also hang, seldom: then the deadline ends it.
        (
            replace(LIMITS, check_memory_bytes=400 << 20, check_deadline_s=20.0),
            "too much memory|ended by signal|was not done within",
        ),
    ],
)
async def test_a_child_at_its_limits_is_a_refusal_not_a_crash(tmp_path: Path, limits: CheckLimits, words: str) -> None:
    file = tmp_path / "manifest.json"
    one = manifest(1).to_json()
    begin, end = one.index(b'"entries":[') + 11, one.index(b'],"schema_version"')
    file.write_bytes(one[:begin] + b",".join([one[begin:end]] * 200_000) + one[end:])
    with pytest.raises(MeshError, match=words) as error:
        await ManifestCheck(limits).read(nullcontext(file))
    assert error.value.reason is Reason.FRAME_TOO_LARGE


def test_a_parser_that_panics_for_want_of_memory_refuses_and_other_failures_are_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        """As pydantic's parser raises it."""

    file, error = tmp_path / "manifest.json", list[BaseException]()
    file.write_bytes(b"{}")

    def fails(_: bytes) -> Dataset:
        raise error.pop()

    monkeypatch.setattr(Dataset, "from_json", fails)
    for failure in (PanicException("PyObject pointer is null"), MemoryError()):
        error.append(failure)
        verdict, digests = check_manifest.read(file)
        assert (verdict["ok"], verdict["reason"], digests) == (False, "FRAME_TOO_LARGE", [])
    error.append(SystemError("a fault"))
    with pytest.raises(SystemError):
        check_manifest.read(file)


async def test_a_child_that_dies_or_says_nothing_is_an_error_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(manifest(1).to_json())
    for program, reason in (
        ("raise SystemExit(3)", Reason.INTERNAL),
        ("", Reason.INTERNAL),
        ("import os; os.abort()", Reason.FRAME_TOO_LARGE),
    ):
        child = tmp_path / "child.py"
        child.write_text(program)
        with pytest.raises(MeshError) as error:
            await ManifestCheck(LIMITS, child=child).read(nullcontext(file))
        assert error.value.reason is reason


async def test_a_dataset_of_too_many_classes_to_list_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    items = [item(n, label=f"{n:0200}") for n in range(400)]
    file.write_bytes(freeze_items(items, seed=1, shares={"train": 1}).to_json())
    with pytest.raises(MeshError, match="400 classes") as error:
        await ManifestCheck(LIMITS).read(nullcontext(file))
    assert error.value.reason is Reason.FRAME_TOO_LARGE


async def test_manifests_wait_their_turn_before_they_take_room_and_only_some_wait(tmp_path: Path) -> None:
    file, entered, go = tmp_path / "manifest.json", list[int](), asyncio.Event()
    file.write_bytes(manifest(1).to_json())

    @asynccontextmanager
    async def local(number: int) -> AsyncIterator[Path]:
        entered.append(number)
        await go.wait()
        yield file

    check = ManifestCheck(LIMITS)
    reading = [asyncio.create_task(check.read(local(n))) for n in range(MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(MeshError) as error:
        await check.read(local(99))
    assert error.value.reason is Reason.QUEUE_FULL
    assert entered == [0], "no copy of a manifest is made before its turn"
    for one in reading[1:]:
        one.cancel()
    await asyncio.wait(reading[1:])
    go.set()
    assert (await reading[0]).pictures == (digest_of(0),)
    assert (await check.read(nullcontext(file))).pictures == (digest_of(0),)


async def test_a_request_that_comes_again_with_another_manifest_is_refused(contents: FolderStore) -> None:
    store = SlowStore()
    datasets = Datasets(store, contents, Signatures(store, None), Pins(), ManifestCheck(LIMITS), now=lambda: NOW)
    one = await keep(contents, manifest(1).to_json())
    other = await keep(contents, manifest(2).to_json())
    both = [asyncio.create_task(datasets.create(wanted(data, request_id="r"))) for data in (one, other)]
    await store.asked.wait()
    store.go.set()
    found = await asyncio.gather(*both, return_exceptions=True)
    (refused,) = (answer for answer in found if isinstance(answer, MeshError))
    assert [name for name, _ in refused.fields] == ["request_id"]
    first = (await store.get_dataset_version("joints", 0)).manifest.sha256
    again, another = (one, other) if first == digest_of(one) else (other, one)
    assert (await datasets.create(wanted(again, request_id="r"))).version == 1
    with pytest.raises(MeshError, match="another manifest"):
        await datasets.create(wanted(another, request_id="r"))


async def test_a_deletion_tells_whether_another_version_names_the_manifest(contents: FolderStore) -> None:
    store = MemoryStore()
    datasets = Datasets(store, contents, Signatures(store, None), Pins(), ManifestCheck(LIMITS), now=lambda: NOW)
    data = await keep(contents, manifest(1).to_json())
    for dataset in ("joints", "cells"):
        await datasets.create(replace(wanted(data), dataset=dataset))
    assert not await datasets.delete("joints", 1, "", "ana")
    assert await datasets.delete("cells", 1, "", "ana")


async def test_a_page_of_versions_with_much_to_say_is_short_but_none_is_left_out(
    contents: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    datasets = Datasets(store, contents, Signatures(store, None), Pins(), ManifestCheck(LIMITS), now=lambda: NOW)
    data = await keep(contents, manifest(1).to_json())
    made = await datasets.create(wanted(data))
    for _ in range(44):
        draft = DatasetDraft("joints", made.manifest, 0, "ana", "", "", made.summary, ())
        await store.create_dataset_version(draft, Actor("ana"), NOW)
    for page_bytes in (1, 10_000, 1 << 20):
        monkeypatch.setattr("services.registry.datasets.datasets.MAX_PAGE_BYTES", page_bytes)
        found, token, pages = list[int](), "", 0
        while pages == 0 or token:
            page, token = await datasets.list_versions("joints", 30, token)
            assert 1 <= len(page) <= 30
            found += [one.version for one in page]
            pages += 1
        assert found == list(range(45, 0, -1))
        assert pages == {1: 45, 10_000: pages, 1 << 20: 2}[page_bytes]
