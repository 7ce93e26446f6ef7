"""What a spool keeps: in order, once, within its bounds, and with every loss counted."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.spool import damaged as damaged_file
from splitmesh.spool import store as spool_store
from splitmesh.spool.damaged import ASIDE, FILE, MOST_ASIDE
from splitmesh.spool.peek import peek
from splitmesh.spool.store import balances_beside
from splitmesh.spool.values import CORRUPT, EVICTED, Amend, Dropped, Limits, Noted
from tests.unit.spooled import (
    TOPIC,
    FullDisk,
    NoRoomForAnother,
    break_pages,
    damage,
    damage_in_use,
    entry,
    everything,
    fill,
    pages,
    store,
    texts,
    total,
)


def test_what_was_noted_is_there_in_the_next_life_in_order_and_goes_when_it_is_acknowledged(tmp_path: Path) -> None:
    first = store(tmp_path)
    fill(first, "a", "b")
    first.note([entry("other", topic="outcomes")])
    fill(first, "c")
    lives = [first.boot_id]
    first.close()
    second = store(tmp_path)
    lives.append(second.boot_id)
    fill(second, "d")
    found = second.take(TOPIC, 10, 1000)
    assert texts(found) == ["a", "b", "c", "d"]
    assert [(lives.index(one.boot_id), one.sequence) for one in found] == [(0, 1), (0, 2), (0, 3), (1, 1)]
    assert texts(second.take(TOPIC, 10, 1000)) == ["a", "b", "c", "d"]
    second.acknowledge(found[:2])
    second.acknowledge(found[:2])  # it came twice: it counts once
    assert texts(second.take(TOPIC, 10, 1000)) == ["c", "d"]
    assert (second.balances()[TOPIC].committed, total(second).captured, total(second).queued) == (2, 5, 3)
    assert total(second).holds
    second.close()


def test_each_topic_counts_its_own_records_from_one(tmp_path: Path) -> None:
    spool = store(tmp_path)
    noted = spool.note([entry("a"), entry("b", topic="outcomes"), entry("c"), entry("d", topic="outcomes")])
    assert [one.sequence for one in noted if isinstance(one, Noted)] == [1, 1, 2, 2]
    spool.close()


def test_a_batch_keeps_to_its_bytes_but_one_record_always_goes(tmp_path: Path) -> None:
    spool = store(tmp_path)
    fill(spool, "x" * 100, "y" * 100, "z" * 100)
    assert len(spool.take(TOPIC, 10, 250)) == 2
    assert len(spool.take(TOPIC, 10, 1)) == 1
    spool.close()


def test_a_full_spool_gives_up_the_oldest_of_those_worth_least_and_counts_them(tmp_path: Path) -> None:
    spool = store(tmp_path, max_records=6, batch=1)
    fill(spool, "first", worth=0)
    fill(spool, "low-1", "low-2", worth=1)
    fill(spool, "high", worth=3)
    fill(spool, "low-3", "low-4", worth=1)
    fill(spool, "new", worth=2)
    fill(spool, "newer", worth=1)
    # The very first is worth least, and stays: it may be on its way.
    assert everything(spool) == ["first", "high", "low-3", "low-4", "new", "newer"]
    assert total(spool).dropped == {EVICTED: 2}
    assert total(spool).holds
    spool.close()


def test_what_is_worth_less_than_all_that_is_there_is_not_noted_and_counted(tmp_path: Path) -> None:
    spool = store(tmp_path, max_records=2, batch=1)
    fill(spool, "a", "b", worth=2)
    (refused,) = spool.note([entry("c", worth=1)])
    assert isinstance(refused, Dropped)
    assert refused.reason is Reason.BUDGET_EXCEEDED
    (noted,) = spool.note([entry("d", worth=2)])
    assert isinstance(noted, Noted)
    assert noted.sequence == 3  # what was refused has taken no number
    assert everything(spool) == ["a", "d"]
    assert total(spool).holds
    spool.close()


def test_bytes_are_bounded_too_also_after_a_restart(tmp_path: Path) -> None:
    spool = store(tmp_path, max_bytes=1000, batch=1)
    fill(spool, *("x" * 300 for _ in range(3)))
    spool.close()
    spool = store(tmp_path, max_bytes=1000, batch=1)
    fill(spool, "y" * 600)
    balance = total(spool)
    assert (balance.queued_bytes, balance.dropped, balance.holds) == (900, {EVICTED: 2}, True)
    spool.close()


def test_what_may_be_on_its_way_is_never_given_up(tmp_path: Path) -> None:
    spool = store(tmp_path, max_records=4, batch=2)
    fill(spool, "a", "b")
    taken = spool.take(TOPIC, 10, 1000)
    fill(spool, *"cdefgh")
    assert texts(taken) == ["a", "b"]
    spool.acknowledge(taken)
    assert spool.balances()[TOPIC].committed == 2
    assert everything(spool) == ["g", "h"]
    assert total(spool).holds
    spool.close()


def test_a_record_that_nobody_has_taken_is_amended_and_one_that_was_taken_is_not(tmp_path: Path) -> None:
    spool = store(tmp_path)
    (noted,) = spool.note([entry("1")])
    assert isinstance(noted, Noted)
    amend = Amend(noted.boot_id, noted.sequence, b"1+2")
    assert spool.note([entry("2", amends=amend)]) == [Noted(noted.boot_id, 1, amended=True)]
    assert texts(spool.take(TOPIC, 1, 1000)) == ["1+2"]
    again = Amend(noted.boot_id, noted.sequence, b"1+2+3")
    assert spool.note([entry("3", amends=again)]) == [Noted(noted.boot_id, 2, amended=False)]
    assert everything(spool) == ["1+2", "3"]
    assert (total(spool).captured, total(spool).holds) == (2, True)
    spool.close()


def test_a_record_of_an_earlier_life_is_not_amended(tmp_path: Path) -> None:
    spool = store(tmp_path)
    fill(spool, "1")
    before = spool.boot_id
    spool.close()
    spool = store(tmp_path)
    spool.note([entry("2", amends=Amend(before, 1, b"1+2"))])
    assert everything(spool) == ["1", "2"]
    spool.close()


def test_a_record_that_the_disk_has_changed_is_dropped_and_counted_and_the_others_go(tmp_path: Path) -> None:
    spool = store(tmp_path)
    fill(spool, "aaaa-1", "bbbb-2", "cccc-3")
    spool.close()
    damage(tmp_path, "bbbb-2")
    spool = store(tmp_path)
    assert everything(spool) == ["aaaa-1", "cccc-3"]
    assert total(spool).dropped == {CORRUPT: 1}
    assert total(spool).holds
    spool.close()


def test_what_is_too_large_is_refused_alone(tmp_path: Path) -> None:
    spool = store(tmp_path, max_body_bytes=4)
    outcomes = spool.note([entry("tiny"), entry("large"), entry("wee")])
    assert [isinstance(one, Noted) for one in outcomes] == [True, False, True]
    assert total(spool).dropped == {"FRAME_TOO_LARGE": 1}
    assert total(spool).holds
    spool.close()


def test_what_will_never_be_taken_is_dropped_by_its_reason(tmp_path: Path) -> None:
    spool = store(tmp_path)
    fill(spool, "a", "b")
    spool.refuse(spool.take(TOPIC, 1, 1000), "FIELD_INVALID")
    assert everything(spool) == ["b"]
    assert (total(spool).dropped, total(spool).holds) == ({"FIELD_INVALID": 1}, True)
    spool.close()


def test_on_a_full_disk_drops_are_counted_nothing_is_lost_and_what_makes_room_still_works(tmp_path: Path) -> None:
    spool = FullDisk(tmp_path, Limits())
    spool.open()
    fill(spool, "a", "b")
    spool.fill_up()
    outcomes = spool.note([entry("x" * 20_000) for _ in range(3)])
    assert [one.reason for one in outcomes if isinstance(one, Dropped)] == [Reason.STORAGE_FULL] * 3
    assert (total(spool).dropped, total(spool).captured, total(spool).holds) == ({"STORAGE_FULL": 3}, 5, True)
    assert everything(spool) == ["a", "b"]
    spool.free()
    (noted,) = spool.note([entry("c")])
    assert isinstance(noted, Noted)
    assert noted.sequence == 3
    spool.close()
    again = store(tmp_path)
    assert (total(again).dropped, total(again).holds) == ({"STORAGE_FULL": 3}, True)
    assert everything(again) == ["c"]
    again.close()


def test_what_is_noted_elsewhere_when_it_cannot_be_noted_here_is_no_drop(tmp_path: Path) -> None:
    spool = FullDisk(tmp_path, Limits())
    spool.open()
    spool.fill_up()
    (dropped,) = spool.note([entry("x" * 20_000, elsewhere=True)])
    assert isinstance(dropped, Dropped)
    assert (total(spool).captured, total(spool).holds) == (0, True)
    spool.close()


def test_another_process_does_not_share_a_spool(tmp_path: Path) -> None:
    spool = store(tmp_path)
    with pytest.raises(MeshError) as caught:
        store(tmp_path)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    fill(spool, "a")
    spool.close()
    store(tmp_path).close()


@pytest.mark.parametrize("content", [b"", b"not a database, really not" * 400, b"SQLite format 3\x00" + bytes(4000)])
def test_a_file_that_is_no_database_is_set_aside_and_a_new_one_made(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    spool = store(tmp_path)
    fill(spool, "a")
    assert everything(spool) == ["a"]
    assert total(spool).holds
    assert spool.times_set_aside() == bool(content)  # an empty file is one that was just being made
    spool.close()


def test_of_a_damaged_file_what_can_be_read_is_saved_and_the_rest_counted(tmp_path: Path) -> None:
    spool = store(tmp_path)
    names = [f"{number:04d}" + "x" * 1500 for number in range(200)]
    fill(spool, *names)
    spool.acknowledge(spool.take(TOPIC, 10, 1 << 20))
    life = spool.boot_id
    spool.close()
    middle = pages(tmp_path) // 2
    break_pages(tmp_path, first=middle, last=middle + 1)
    spool = store(tmp_path)
    balance = total(spool)
    assert spool.times_set_aside() == 1
    assert balance.holds
    assert (balance.captured, balance.committed) == (200, 10)
    assert 0 < balance.dropped[CORRUPT] < 20
    found = spool.take(TOPIC, 500, 1 << 20)
    assert {one.boot_id for one in found} == {life}
    assert [int(one.body[:4]) + 1 for one in found] == [one.sequence for one in found]
    assert len(found) + balance.dropped[CORRUPT] == 190
    spool.close()
    assert (tmp_path / f"{ASIDE}1" / FILE).is_file()


def test_damaged_in_mid_work_it_goes_on_with_a_new_file(tmp_path: Path) -> None:
    spool = store(tmp_path)
    fill(spool, *(f"{number:04d}" + "x" * 1500 for number in range(100)))
    damage_in_use(spool, tmp_path)
    (noted,) = spool.note([entry("after")])
    assert isinstance(noted, Noted)
    assert spool.times_set_aside() == 1
    assert everything(spool)[-1] == "after"
    assert total(spool).holds
    spool.close()


def test_only_the_last_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(MOST_ASIDE + 3):
        (tmp_path / FILE).write_bytes(b"no database" * 400)
        store(tmp_path).close()
    kept = sorted(folder.name for folder in tmp_path.glob(f"{ASIDE}*"))
    assert kept == [f"{ASIDE}{number}" for number in range(4, 4 + MOST_ASIDE)]


def test_a_file_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    store(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(MeshError) as caught:
        store(tmp_path)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert not list(tmp_path.glob(f"{ASIDE}*"))


def test_a_closed_spool_says_so(tmp_path: Path) -> None:
    spool = store(tmp_path)
    spool.close()
    spool.close()
    for call in (lambda: spool.note([entry()]), lambda: spool.take(TOPIC, 1, 1), spool.balances):
        with pytest.raises(MeshError) as caught:
            call()
        assert caught.value.reason is Reason.NOT_READY


def test_who_reads_beside_a_spool_in_use_sees_the_same_figures(tmp_path: Path) -> None:
    spool = store(tmp_path, max_records=4, batch=1)
    fill(spool, *"abcdef")
    spool.note([entry("r", topic="outcomes", worth=9)])
    spool.acknowledge(spool.take(TOPIC, 1, 1000))
    assert balances_beside(tmp_path) == spool.balances()
    balance = total(spool)
    assert peek([tmp_path, tmp_path / "no such folder"]) == (balance.queued, sum(balance.dropped.values())) == (3, 3)
    spool.close()
    assert balances_beside(tmp_path)[TOPIC].committed == 1
    with pytest.raises(MeshError):
        balances_beside(tmp_path / "no such folder")


def broken_in_the_middle(folder: Path) -> int:
    """A hundred records in a file with a page that cannot be read; how many of them can."""
    spool = store(folder)
    fill(spool, *(f"{number:04d}" + "x" * 1500 for number in range(100)))
    spool.close()
    middle = pages(folder) // 2
    break_pages(folder, first=middle, last=middle)
    whole = folder.parent / f"{folder.name}-whole"
    shutil.copytree(folder, whole)
    spool = store(whole)
    queued = total(spool).queued
    spool.close()
    assert 50 < queued < 100
    return queued


class Killed(BaseException):
    """Nothing of the program runs after it."""


STEPS = ("save", "_restore", "change_places", "replace 1", "replace 2", "replace 3", "remove")


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_a_damaged_file_is_replaced_loses_nothing_that_could_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder = tmp_path / "spool"
    queued = broken_in_the_middle(folder)
    for number in range(MOST_ASIDE):  # so that old ones go, too
        (folder / f"{ASIDE}{number + 1}").mkdir()
        (folder / f"{ASIDE}{number + 1}" / FILE).touch()
    calls = itertools.count(1)
    replace = os.replace

    def kill(*_: object) -> None:
        raise Killed

    def replacing(source: Path, target: Path) -> None:
        done = Path(source).exists()
        replace(source, target)
        if done and next(calls) == int(step.split()[1]):
            raise Killed

    if step.startswith("replace"):
        monkeypatch.setattr(os, "replace", replacing)
    else:
        monkeypatch.setattr(damaged_file if step == "remove" else spool_store, step, kill)
    with pytest.raises(Killed):
        store(folder)
    monkeypatch.undo()
    spool = store(folder)
    balance = total(spool)
    assert (balance.captured, balance.queued, balance.dropped) == (100, queued, {CORRUPT: 100 - queued})
    assert (spool.times_set_aside(), len(everything(spool))) == (1, queued)
    assert list(folder.glob(f"{ASIDE}*/*.db")) == list(folder.glob(f"{ASIDE}*/{FILE}"))
    spool.close()


def test_a_damaged_file_that_there_is_no_room_to_replace_stays_until_there_is(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    queued = broken_in_the_middle(folder)
    spool = NoRoomForAnother(folder, Limits())
    spool.full = True
    for _ in range(2):
        with pytest.raises(MeshError) as caught:
            spool.open()
        assert caught.value.reason is Reason.STORAGE_FULL
        assert not list(folder.glob(f"{ASIDE}*"))  # what was begun does not keep the disk full
    spool.full = False
    spool.open()
    assert (total(spool).captured, total(spool).queued, spool.times_set_aside()) == (100, queued, 1)
    spool.close()


def test_an_answer_for_what_was_lost_takes_nothing_else_away(tmp_path: Path) -> None:
    spool = store(tmp_path)
    fill(spool, "sent before")
    sent = spool.take(TOPIC, 10, 1000)
    spool.close()
    (tmp_path / FILE).write_bytes(b"no database, really none" * 400)
    spool = store(tmp_path)
    fill(spool, "never sent")
    (waiting,) = spool.take(TOPIC, 10, 1000)
    assert waiting.number == sent[0].number
    spool.acknowledge(sent)
    spool.refuse(sent, "FIELD_INVALID")
    assert texts(spool.take(TOPIC, 10, 1000)) == ["never sent"]
    assert (total(spool).committed, total(spool).dropped, total(spool).holds) == (0, {}, True)
    spool.close()


def test_drops_are_told_with_the_life_of_their_counts(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    broken_in_the_middle(folder)
    whole = store(folder.parent / "spool-whole")
    found = whole.drops(TOPIC)
    whole.close()
    spool = store(folder)
    assert spool.drops(TOPIC) == found  # the counts could be read, and go on
    assert list(found.by_reason) == [CORRUPT]
    spool.close()
    (folder / FILE).write_bytes(b"no database, really none" * 400)
    spool = store(folder)
    assert spool.drops(TOPIC).by_reason == {}
    assert spool.drops(TOPIC).life not in ("", found.life)
    spool.close()
