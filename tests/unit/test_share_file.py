"""The grant last heard is on disk, whole, and one that is damaged is none."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
from pathlib import Path

import pytest

from edge.head.uplink.share_file import MAX_BYTES, GrantKeeper, ShareFile
from splitmesh.client.shares import ApplicationShare, Grant

GRANT = Grant(
    625e3, math.inf, (ApplicationShare("solder", 2.0, 0.1), ApplicationShare("faces", 1.0, 0.0)), "half of it"
)


@pytest.fixture
def file(tmp_path: Path) -> ShareFile:
    return ShareFile(tmp_path / "head" / "share.json", "line-3")


def kept_in(tmp_path: Path) -> Path:
    return tmp_path / "head" / "share.json"


def test_a_grant_is_read_as_it_was_written(file: ShareFile, tmp_path: Path) -> None:
    assert file.read() is None
    file.write(GRANT)
    assert file.read() == GRANT
    assert [path.name for path in (tmp_path / "head").iterdir()] == ["share.json"]
    json.loads(kept_in(tmp_path).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_another_sites_grant_is_not_kept_to(file: ShareFile, tmp_path: Path) -> None:
    file.write(GRANT)
    assert ShareFile(kept_in(tmp_path), "line-4").read() is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        '{"site": "line-3"}',
        "[" * 100_000,
        " " * (MAX_BYTES + 1),
        '{"site": "line-3", "bytes_per_s": -1, "cloud_ms_per_s": null, "applications": [], "why": ""}',
        '{"site": "line-3", "bytes_per_s": NaN, "cloud_ms_per_s": null, "applications": [], "why": ""}',
        '{"site": "line-3", "bytes_per_s": "much", "cloud_ms_per_s": null, "applications": [], "why": ""}',
        '{"site": "line-3", "bytes_per_s": 1, "cloud_ms_per_s": null, "applications": 7, "why": ""}',
        '{"site": "line-3", "bytes_per_s": 1, "cloud_ms_per_s": null, "applications": [{}], "why": ""}',
        '{"site": "line-3", "bytes_per_s": 1, "cloud_ms_per_s": null, "why": "",'
        ' "applications": [{"application": "a", "weight": -1, "min_share": 0}]}',
    ],
)
def test_a_damaged_file_is_no_grant_and_is_told_of(
    file: ShareFile, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write(GRANT)
    kept_in(tmp_path).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert file.read() is None
    assert "cannot be used" in caplog.text


def test_bytes_that_are_no_text_are_no_grant(file: ShareFile, tmp_path: Path) -> None:
    file.write(GRANT)
    kept_in(tmp_path).write_bytes(b"\xff\xfe\x00\x80")
    assert file.read() is None


class Counting(ShareFile):
    """Says what it writes; fails where it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "line-3")
        self.written: list[Grant] = []
        self.fails = False

    def write(self, grant: Grant) -> None:
        self.written.append(grant)
        if self.fails:
            raise OSError("no space left")
        super().write(grant)


async def test_of_many_grants_the_newest_is_written_at_the_stop_at_last(tmp_path: Path) -> None:
    file = Counting(tmp_path / "share.json")
    keeper = GrantKeeper(file, every_s=1000.0)
    assert await keeper.start() is None
    for number in range(1, 100):
        keeper.keep(Grant(float(number), math.inf, (), ""))
    await keeper.stop()
    assert file.written == [Grant(99.0, math.inf, (), "")]
    assert file.read() == file.written[-1]


async def test_a_grant_that_hardly_moved_is_not_written_again(tmp_path: Path) -> None:
    file = Counting(tmp_path / "share.json")
    file.write(GRANT)
    keeper = GrantKeeper(file, every_s=0.0)
    assert await keeper.start() == GRANT
    keeper.keep(Grant(630e3, math.inf, GRANT.applications, "other words"))
    await keeper.stop()
    assert file.written == [GRANT]
    again = GrantKeeper(file, every_s=0.0)
    await again.start()
    again.keep(Grant(625e3, 100.0, GRANT.applications, "no longer without limit"))
    await again.stop()
    assert len(file.written) == 2


async def test_a_full_disk_is_told_of_and_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = Counting(tmp_path / "share.json")
    file.fails = True
    keeper = GrantKeeper(file)
    await keeper.start()
    keeper.keep(GRANT)
    with caplog.at_level(logging.WARNING):
        await keeper.stop()
    assert "not kept for a restart" in caplog.text


class Slow(Counting):
    """Writes once it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def write(self, grant: Grant) -> None:
        self.begun.set()
        self.goes_on.wait(20.0)
        super().write(grant)


async def test_a_stop_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = Slow(tmp_path / "share.json")
    keeper = GrantKeeper(file, stop_s=0.01)
    await keeper.start()
    keeper.keep(GRANT)
    assert await asyncio.to_thread(file.begun.wait, 20.0)
    (thread,) = (one for one in threading.enumerate() if one.name == "grant")
    with caplog.at_level(logging.ERROR):
        await keeper.stop()
    assert thread.is_alive()
    assert thread.daemon
    assert file.written == []
    assert "does not answer" in caplog.text
    file.goes_on.set()
    await asyncio.to_thread(thread.join, 20.0)
    caplog.clear()


async def test_a_stop_while_the_last_grant_is_being_written_waits_until_it_is_kept(tmp_path: Path) -> None:
    file = Slow(tmp_path / "share.json")
    keeper = GrantKeeper(file, stop_s=20.0)
    await keeper.start()
    keeper.keep(GRANT)
    assert await asyncio.to_thread(file.begun.wait, 20.0)
    stopping = asyncio.create_task(keeper.stop())
    await asyncio.sleep(0)
    file.goes_on.set()
    await stopping
    assert file.read() == GRANT
