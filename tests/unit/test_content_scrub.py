"""Contents that are read again by and by: all of them in their time, however often the registry is started meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.registry.content import scrub as scrubbing
from services.registry.content.folder import FolderStore
from services.registry.content.folder_shelf import FolderShelf
from services.registry.content.port import ContentLimits
from services.registry.content.scrub import FOLDERS, Scrub
from services.registry.content.shelf import Shelved
from splitmesh.errors import MeshError, Reason
from tests.support.contents import LIMITS, FolderPlace, digest

WAIT_S = 10.0


class Period:
    """A sleep that nobody waits for, until so much has been slept."""

    def __init__(self, whole_s: float) -> None:
        self.slept: list[float] = []
        self.over = asyncio.Event()
        self._whole_s = whole_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if sum(self.slept) > self._whole_s * 1.0001:
            self.over.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


async def run(scrub: Scrub, period: Period) -> None:
    """Until the period is over."""
    await scrub.start()
    try:
        async with asyncio.timeout(WAIT_S):
            await period.over.wait()
    finally:
        await scrub.stop()


async def test_one_pass_reads_everything_once_in_its_time_and_sets_aside_what_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, every_s, noted = FolderPlace(tmp_path), 1000.0, tmp_path / "noted"
    contents = {digest(data): data for data in (bytes([number]) * number for number in range(1, 120))}
    broken = sorted(contents)[60]
    asked: list[str] = []
    noted.write_text("3f".ljust(64, "f"))  # so far it was when the process ended
    async with place.store() as store:
        await store.put(list(contents.items()))
        place.damage(broken, b"?" * len(contents[broken]))

        async def check(sha256: str) -> None:
            asked.append(sha256)
            await store.doubt(sha256)

        period = Period(every_s)
        under = FolderShelf(tmp_path).under
        await run(Scrub(under, check, place=noted, every_s=every_s, sleep=period.sleep), period)
        assert await store.missing(list(contents)) == [broken]
    once, again = asked[: len(contents)], asked[len(contents) :]
    assert once == [one for one in sorted(contents) if one >= "40"] + [one for one in sorted(contents) if one < "40"]
    assert {sha256[:2] for sha256 in again} <= {"40"}
    assert max(period.slept) <= every_s / FOLDERS
    assert (tmp_path / "damaged" / broken).exists()
    assert broken in caplog.text


async def test_a_registry_that_never_runs_long_reads_everything_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life is shorter than what one folder takes, be it empty, of one content or of many."""
    monkeypatch.setattr(scrubbing, "FOLDERS", 8)
    kept = [f"{folder}{number:062x}" for folder, many in (("01", 1), ("04", 10), ("07", 1)) for number in range(many)]
    asked: list[str] = []

    async def under(name: str) -> Sequence[Shelved]:
        return [Shelved(one, 1000) for one in reversed(kept) if one.startswith(name)]

    async def check(sha256: str) -> None:
        asked.append(sha256)

    for _ in range(12):
        life = Period(2500.0)
        await run(Scrub(under, check, place=tmp_path / "noted", every_s=80_000.0, sleep=life.sleep), life)
    assert asked[: len(kept)] == kept


async def test_how_far_it_is_is_kept_now_and_then_not_with_every_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    monkeypatch.setattr(scrubbing, "write_file", lambda path, content: written.append(content))
    kept = [f"00{number:062x}" for number in range(1000)]

    async def under(name: str) -> Sequence[Shelved]:
        return [Shelved(one, 1) for one in kept if one.startswith(name)]

    async def check(_: str) -> None:
        pass

    period = Period(999.0)
    await run(Scrub(under, check, place=tmp_path / "noted", every_s=256_000.0, sleep=period.sleep), period)
    assert written == [f"{kept[59 + 60 * minute]}\n".encode() for minute in range(16)]


@pytest.mark.parametrize("left", [None, b"", b"\xff" * 5000, b"../../x", b"a" * 63, b"a" * 66])
async def test_a_note_that_says_nothing_sensible_is_passed_over(tmp_path: Path, left: bytes | None) -> None:
    noted = tmp_path / "noted"
    if left is None:
        noted.mkdir()  # neither read nor written
    else:
        noted.write_bytes(left)
    names: list[str] = []

    async def under(name: str) -> Sequence[Shelved]:
        names.append(name)
        return []

    async def check(_: str) -> None:
        pass

    period = Period(300.0)
    await run(Scrub(under, check, place=noted, every_s=100.0 * FOLDERS, sleep=period.sleep), period)
    assert names == ["00", "01", "02", "03"]
    assert noted.is_dir() or noted.read_text() == f"{'03'.ljust(64, 'f')}\n"


async def test_what_cannot_be_read_or_is_gone_does_not_end_the_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    errors = iter(
        [OSError(5, "I/O error"), MeshError(Reason.ARTIFACT_NOT_FOUND, "gone"), MeshError(Reason.STORAGE_FULL, "full")]
    )
    period = Period(100.0)

    async def under(name: str) -> Sequence[Shelved]:
        raise OSError(5, "no folder")

    async def check(sha256: str) -> None:
        raise next(errors)

    scrub = Scrub(under, check, place=tmp_path / "noted", every_s=100.0, sleep=period.sleep)
    for name in "abc":
        await scrub._look(name)
    await run(scrub, period)
    assert len(period.slept) == FOLDERS + 1
    assert [record.message for record in caplog.records if "content " in record.message] == [
        "the stored content a could not be read: [Errno 5] I/O error",
        "the stored content c could not be checked: STORAGE_FULL: full",
    ]


@pytest.mark.parametrize(("every_s", "tasks"), [(0.0, 0), (100.0, 1)])
async def test_the_setting_alone_says_whether_contents_are_read_again(
    tmp_path: Path, every_s: float, tasks: int
) -> None:
    before = asyncio.all_tasks()
    store = FolderStore(tmp_path, ContentLimits(**LIMITS), scrub_every_s=every_s)  # type: ignore[arg-type]
    await store.start()
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]  # type: ignore[union-attr]
    await store.stop()
    assert names.count("Scrub._forever") == tasks
    assert asyncio.all_tasks() == before
