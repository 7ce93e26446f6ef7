"""Neither keeping samples nor a disk that hangs, is full or is broken ever holds a frame or a head up."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from edge.head.frame import Tensors
from edge.head.samples import keeper as samples
from splitmesh.samples.kept import StoreLimits
from tests.unit.kept_frames import DIFFERS, WAIT_S, Disk, counts, frame, happens, keeper, kept
from tests.unit.sample_records import picture, spread


async def test_a_disk_that_hangs_holds_no_frame_up_and_what_does_not_fit_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_WAITING", 3)
    disk = Disk(tmp_path / "samples")
    keeping = keeper(tmp_path, disk)
    disk.goes_on.clear()
    await keeping.start()
    keeping.decided(frame(1))
    await happens(disk.hangs)
    for n in range(2, 10):
        keeping.decided(frame(n))  # returns, although the disk does not
    disk.goes_on.set()
    await keeping.stop()
    assert [one.record.captured_at.minute for one in kept(tmp_path)] == [1, 2, 3, 4]
    assert counts(tmp_path).dropped == {"QUEUE_FULL": 5}


async def test_the_bytes_that_wait_are_bounded_with_those_that_are_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(picture(spread(1)))
    monkeypatch.setattr(samples, "MAX_WAITING_BYTES", 2 * size + size // 2)
    disk = Disk(tmp_path / "samples")
    keeping = keeper(tmp_path, disk)
    disk.goes_on.clear()
    await keeping.start()
    keeping.decided(frame(1))
    await happens(disk.hangs)
    keeping.decided(frame(2))
    keeping.decided(frame(3))
    disk.goes_on.set()
    await keeping.stop()
    assert [one.record.captured_at.minute for one in kept(tmp_path)] == [1, 2]
    assert counts(tmp_path).dropped == {"QUEUE_FULL": 1}


async def test_the_place_of_what_was_written_is_free_again_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_WAITING_BYTES", len(picture(spread(1))) * 3 // 2)
    keeping = keeper(tmp_path)
    for n in (1, 2):
        await keeping.start()
        keeping.decided(frame(n))
        await keeping.stop()
    assert len(kept(tmp_path)) == 2


async def test_what_is_written_keeps_to_a_rate_and_leaves_half_to_what_tells_more(tmp_path: Path) -> None:
    # A minute of the rate is ten records; five of them are for disputed samples.
    keeping = keeper(tmp_path, sample_bytes_per_s=samples.RECORD_BYTES * 10 // 60 + 1)
    await keeping.start()
    for n in range(1, 10):
        keeping.decided(frame(n, content=Tensors(())))
    for n in range(11, 20):
        keeping.decided(frame(n, content=Tensors(()), tail=DIFFERS))
    await keeping.stop()
    assert [one.record.kind for one in kept(tmp_path)] == ["hard"] * 5 + ["disputed"] * 5
    assert counts(tmp_path).dropped == {"QUEUE_FULL": 8}


async def test_a_full_disk_drops_samples_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    keeping = keeper(tmp_path, Disk(tmp_path / "samples", StoreLimits(min_free_bytes=1 << 60)))
    await keeping.start()
    keeping.decided(frame(1))
    await keeping.stop()
    assert kept(tmp_path) == []
    assert counts(tmp_path).dropped == {"STORAGE_FULL": 1}
    assert "1 STORAGE_FULL" in caplog.text


async def test_a_broken_folder_is_told_and_used_once_it_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(tmp_path / "samples", broken=3)
    keeping = keeper(tmp_path, disk, reopen_s=0.001)
    await keeping.start()
    keeping.decided(frame(1))
    await happens(disk.opened)
    await keeping.stop()
    assert len(kept(tmp_path)) == 1
    assert [one.levelname for one in caplog.records if "no such disk" in one.message] == ["ERROR"]
    caplog.clear()


async def test_a_folder_that_is_no_folder_keeps_no_head_from_starting_or_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples").write_text("in the way")
    disk = Disk(tmp_path / "samples")
    keeping = keeper(tmp_path, disk)
    await keeping.start()
    await happens(disk.tried)
    for n in range(samples.MAX_WAITING + 2):
        keeping.decided(frame(n))
    async with asyncio.timeout(WAIT_S):
        await keeping.stop()
    assert f"{samples.MAX_WAITING} samples are lost" in caplog.text
    caplog.clear()


async def test_a_stop_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(tmp_path / "samples")
    keeping = keeper(tmp_path, disk, stop_s=0.05)
    disk.goes_on.clear()
    await keeping.start()
    keeping.decided(frame(1))
    await happens(disk.hangs)
    keeping.decided(frame(2))
    (thread,) = (one for one in threading.enumerate() if one.name == "samples")
    await keeping.stop()
    assert thread.is_alive()
    assert "1 samples are lost" in caplog.text
    disk.goes_on.set()
    await asyncio.to_thread(thread.join, WAIT_S)
    assert len(kept(tmp_path)) == 1
    caplog.clear()
