"""A spool never holds anybody up, shares its syncs, and keeps what it acknowledged through a kill and a power cut."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.spool.spool import Spool
from splitmesh.spool.values import Dropped, Limits, Noted
from tests.support.power_cut import CutDisk, why_not
from tests.unit.spooled import (
    TOPIC,
    WAIT_S,
    NoRoomForAnother,
    SlowDisk,
    damage_in_use,
    entry,
    everything,
    store,
    texts,
    total,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Spool, SlowDisk]]:
    limits = Limits(max_waiting=10)
    disk = SlowDisk(tmp_path, limits)
    spool = Spool(tmp_path, limits, store=disk)
    spool.start()
    yield spool, disk
    disk.goes_on.set()
    assert spool.stop(WAIT_S)


def test_what_comes_while_the_disk_syncs_shares_the_next_sync(slow: tuple[Spool, SlowDisk]) -> None:
    spool, disk = slow
    first = spool.note(entry("0"))
    assert disk.hangs.wait(WAIT_S)
    later = [spool.note(entry(str(number))) for number in range(1, 9)]
    disk.goes_on.set()
    outcomes = [future.result(WAIT_S) for future in (first, *later)]
    assert disk.groups == [1, 8]
    assert [one.sequence for one in outcomes if isinstance(one, Noted)] == list(range(1, 10))


def test_a_disk_that_hangs_holds_nobody_up_and_what_does_not_fit_is_counted(slow: tuple[Spool, SlowDisk]) -> None:
    spool, disk = slow
    futures = [spool.note(entry(str(number))) for number in range(14)]
    refused = [future.result(0) for future in futures[10:]]
    assert [one.reason for one in refused if isinstance(one, Dropped)] == [Reason.QUEUE_FULL] * 4
    disk.goes_on.set()
    assert all(isinstance(future.result(WAIT_S), Noted) for future in futures[:10])
    balance = spool.balance().result(WAIT_S)
    assert (balance.captured, balance.queued, balance.dropped, balance.holds) == (14, 10, {"QUEUE_FULL": 4}, True)


def test_the_balance_holds_at_every_moment_of_a_busy_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path, Limits(max_records=50, batch=10, max_waiting=200))
    spool.start()
    stop, draws = threading.Event(), random.Random(1)

    def take() -> None:
        while not stop.is_set():
            records = spool.take(TOPIC, 10, 1 << 20).result(WAIT_S)
            if records and draws.random() < 0.1:
                spool.refuse(records[:1], "FIELD_INVALID").result(WAIT_S)
            elif records:
                spool.acknowledge(records).result(WAIT_S)

    def note(worth: int) -> None:
        for number in range(300):
            noted = spool.note(entry(f"{worth}-{number}", worth))
            if number % 50 == 0:
                noted.result(WAIT_S)

    threads = [threading.Thread(target=take), *(threading.Thread(target=note, args=(worth,)) for worth in range(3))]
    for thread in threads:
        thread.start()
    seen = []
    while any(thread.is_alive() for thread in threads[1:]):
        seen.append(spool.balance().result(WAIT_S))
    stop.set()
    threads[0].join()
    last = spool.balance().result(WAIT_S)
    assert all(balance.holds for balance in (*seen, last))
    assert last.captured == 900
    assert last.committed > 0
    assert spool.stop(WAIT_S)


def test_a_folder_that_cannot_be_used_is_counted_and_used_as_soon_as_it_can_be(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.write_text("a file in the way")
    spool = Spool(folder, reopen_s=0.01)
    spool.start()
    lost = spool.note(entry("lost")).result(WAIT_S)
    assert isinstance(lost, Dropped)
    assert lost.reason is Reason.SERVICE_UNAVAILABLE
    with pytest.raises(MeshError):
        spool.take(TOPIC, 1, 1).result(WAIT_S)
    folder.unlink()
    tries = 1
    while not isinstance(spool.note(entry("kept")).result(WAIT_S), Noted):
        tries += 1
    balance = spool.balance().result(WAIT_S)
    assert (balance.captured, balance.queued, balance.holds) == (1 + tries, 1, True)
    assert spool.stop(WAIT_S)


def test_a_file_that_is_damaged_on_a_full_disk_is_replaced_as_soon_as_there_is_room(tmp_path: Path) -> None:
    limits = Limits()
    disk = NoRoomForAnother(tmp_path, limits)
    spool = Spool(tmp_path, limits, store=disk, reopen_s=0.01)
    spool.start()
    for number in range(100):
        spool.note(entry(f"{number:04d}" + "x" * 1500)).result(WAIT_S)
    disk.full = True
    damage_in_use(disk, tmp_path)
    lost = spool.note(entry("lost")).result(WAIT_S)
    assert isinstance(lost, Dropped)
    assert lost.reason is Reason.STORAGE_FULL
    disk.full = False
    while not isinstance(spool.note(entry("kept")).result(WAIT_S), Noted):
        pass
    balance = spool.balance().result(WAIT_S)
    assert balance.holds
    assert balance.dropped["STORAGE_FULL"] == 1
    assert spool.stop(WAIT_S)
    again = store(tmp_path)
    assert again.times_set_aside() == 1
    assert everything(again)[-1] == "kept"
    again.close()


def test_at_a_stop_what_is_waiting_is_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.start()
    futures = [spool.note(entry(str(number))) for number in range(100)]
    assert spool.stop(WAIT_S)
    assert all(isinstance(future.result(0), Noted) for future in futures)
    again = store(tmp_path)
    assert everything(again) == [str(number) for number in range(100)]
    again.close()


def test_in_memory_it_is_a_spool_like_any_other_and_gone_at_the_end() -> None:
    spool = Spool(None)
    spool.start()
    spool.note(entry("a"))
    assert texts(spool.take(TOPIC, 1, 1).result(WAIT_S)) == ["a"]
    assert spool.stop(WAIT_S)


class Noting:
    """A process that notes until it is killed, and what it was told to be on disk."""

    def __init__(self, folder: Path, said: Path) -> None:
        self._said = said
        with said.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.noting", str(folder)], cwd=ROOT, stdout=out, env={**os.environ}
            )

    def acknowledged(self) -> list[tuple[str, int, str]]:
        """Boot, sequence and text; a line that is not whole is none."""
        lines = self._said.read_text().split("\n")[:-1]
        return [(boot, int(sequence), text) for boot, sequence, text in (line.split(" ") for line in lines)]

    def until(self, count: int) -> None:
        """So many notes are acknowledged."""
        while len(self.acknowledged()) < count:
            assert self._process.poll() is None, "the process ended by itself"
            try:
                self._process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue

    def kill(self) -> None:
        """As a power cut does to a process."""
        self._process.kill()
        self._process.wait()


def check(folder: Path, acknowledged: list[tuple[str, int, str]]) -> int:
    """Everything acknowledged is there, under its name, and nothing twice; how many records there are."""
    spool = store(folder, batch=100_000)
    assert spool.times_set_aside() == 0
    found = {(one.boot_id, one.sequence): one.body.decode() for one in spool.take(TOPIC, 100_000, 1 << 30)}
    assert {(boot, sequence): text for boot, sequence, text in acknowledged}.items() <= found.items()
    assert sorted(sequence for _, sequence in found) == list(range(1, len(found) + 1))
    assert total(spool).holds
    spool.close()
    return len(found)


def test_killed_at_any_moment_everything_acknowledged_is_there(tmp_path: Path) -> None:
    for count in (1, 40, 150):
        folder, said = tmp_path / f"spool-{count}", tmp_path / f"said-{count}"
        noting = Noting(folder, said)
        noting.until(count)
        noting.kill()
        assert check(folder, noting.acknowledged()) >= count


@pytest.mark.skipif(bool(why_not()), reason=f"no power cut can be simulated here: {why_not()}")
def test_after_a_power_cut_everything_acknowledged_is_there(tmp_path: Path) -> None:
    with CutDisk(tmp_path) as disk:
        noting = Noting(disk.at / "spool", tmp_path / "said")
        cuts = []
        for count in (1, 30, 90, 200, 400):
            noting.until(count)
            acknowledged = noting.acknowledged()
            cuts.append((acknowledged, disk.image()))
        noting.kill()
        for acknowledged, image in cuts:
            disk.restart_from(image)
            assert check(disk.at / "spool", acknowledged) >= len(acknowledged)
