"""The store of samples when it is killed, when the disk is full, and when files are not what they were."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.samples.kept import Added, Dropped, StoreLimits
from splitmesh.samples.store import SampleStore
from tests.unit.sample_records import NOW, ROOMY, add, files, held, picture, sample, spread

STEPS = ("open", "write", "fsync", "replace", "unlink", "mkdir")
"""Of ``os``: all that a store does to the disk beside SQLite."""
READS = ("SELECT", "PRAGMA", "--")
"""Statements that change nothing, and those of triggers: killed before these is killed before the next."""
TWO = StoreLimits(max_records=2, min_free_bytes=0)


def before_each_step(hook: Callable[[str], None], patch: Callable[[Any, str, Any], None]) -> None:
    """Calls ``hook`` with its name before each step on the disk and before each statement of SQLite, COMMIT included."""
    for name in STEPS:
        real = getattr(os, name)

        def step(*arguments: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
            hook(_name)
            return _real(*arguments, **named)

        patch(os, name, step)
    connect = sqlite3.connect

    def traced(*arguments: Any, **named: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*arguments, **named)
        db.set_trace_callback(hook)
        return db

    patch(sqlite3, "connect", traced)


def killed_at(folder: Path, step: int) -> tuple[bool, bytes]:
    """Runs the scenario in a process that dies before its ``step``; whether it got that far, and what it reported as done."""
    reading, writing = os.pipe()
    report = os.write
    child = os.fork()
    if child == 0:
        left = itertools.count(step, -1)

        def hook(name: str) -> None:
            if not name.startswith(READS) and next(left) <= 1:
                os._exit(9)

        try:
            before_each_step(hook, setattr)
            store = SampleStore(folder, TWO)
            store.open()
            report(writing, b"o")
            outcome = store.add(sample(3), picture(spread(3)), b"features of 3")
            report(writing, b"a" if isinstance(outcome, Added) else b"?")
            store.delete(sample(2).id)
            report(writing, b"d")
            store.close()
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    done = os.read(reading, 10)
    os.close(reading)
    return os.waitstatus_to_exitcode(status) == 9, done


def test_killed_at_any_step_no_record_lacks_its_picture_and_no_picture_stays_without_a_record(tmp_path: Path) -> None:
    with SampleStore(tmp_path / "before", TWO) as store:
        one, two, three = (sample(n).id for n in (1, 2, 3))
        add(store, 1)
        add(store, 2)
    orphans = 0
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "before", folder)
        died, done = killed_at(folder, step)
        left = files(folder)
        with SampleStore(folder, TWO) as store:
            found = {kept.record.id for kept in store.list().samples}
            for sample_id in found:
                store.picture(sample_id)
            assert files(folder) == held(store), step
            orphans += left != held(store)
            counts = store.counts()
            assert counts.missing_contents == 0
            assert counts.content_bytes == sum((folder / path).stat().st_size for path in held_paths(store))
        assert found in {b"": [{one, two}, {two, three}], b"o": [{one, two}, {two, three}]}.get(
            done, [{two, three}, {three}] if done == b"oa" else [{three}]
        ), (step, done)
        shutil.rmtree(folder)
        if not died:
            break
    assert done == b"oad"
    assert step > 40
    assert orphans > 3


def held_paths(store: SampleStore) -> list[Path]:
    return [Path("pictures", digest[:2], digest[2:4], digest) for digest in held(store)]


def test_killed_while_it_is_made_it_is_made_at_the_next_start(tmp_path: Path) -> None:
    for step in range(1, 40, 3):
        folder = tmp_path / str(step)
        killed_at(folder, step)
        with SampleStore(folder, TWO) as store:
            assert isinstance(store.add(sample(9), picture(spread(9))), Added)
            assert files(folder) == held(store)


def test_a_picture_is_on_the_disk_under_its_name_before_its_record_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    before_each_step(steps.append, monkeypatch.setattr)
    with SampleStore(tmp_path, ROOMY) as store:
        steps.clear()
        add(store, 1)
    after = steps.index("COMMIT")
    told = [step for step in steps[:after] if step in STEPS]
    assert told[-6:] == ["open", "write", "fsync", "replace", "open", "fsync"]
    assert (told.count("mkdir"), told.count("fsync")) == (2, 4)  # each new folder's name is made durable too
    assert not any(step.startswith("INSERT") for step in steps[after:])


def test_on_a_full_disk_a_sample_is_dropped_and_counted_and_nothing_is_left_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at, seen = 0, 0

    def hook(name: str) -> None:
        nonlocal seen
        if name in ("write", "fsync", "replace", "mkdir"):
            seen += 1
            if seen == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")

    before_each_step(hook, monkeypatch.setattr)
    with SampleStore(tmp_path, TWO) as store:
        add(store, 1)
        add(store, 2)
        for fails in itertools.count(1):
            fail_at, seen = fails, 0
            outcome = store.add(sample(3), picture(spread(3)), b"features of 3")
            if isinstance(outcome, Added):
                break
            assert isinstance(outcome, Dropped)
            assert outcome.reason is Reason.STORAGE_FULL
            assert files(tmp_path) == held(store)
            assert {one.record.id for one in store.list().samples} == {sample(1).id, sample(2).id}
        assert fails > 8
        counts = store.counts()
        assert counts.dropped == {"STORAGE_FULL": fails - 1}
        assert counts.evicted == {"records": 1}


def test_a_database_that_cannot_grow_drops_and_counts_and_works_again_with_room(tmp_path: Path) -> None:
    limits = StoreLimits(min_free_bytes=0, near_bits=-1)
    with SampleStore(tmp_path, limits) as store:
        database = store._database
        assert database is not None
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages + 2}")
        outcomes = [store.add(sample(n, why="x" * 200), picture(spread(n))) for n in range(1, 30)]
        dropped = [outcome.reason for outcome in outcomes if isinstance(outcome, Dropped)]
        assert dropped
        assert set(dropped) == {Reason.STORAGE_FULL}
        assert files(tmp_path) == held(store)
        assert store.counts().dropped == {"STORAGE_FULL": len(dropped)}
        database.execute("PRAGMA max_page_count = 100000")
        assert isinstance(store.add(sample(99), picture(spread(99))), Added)
    with SampleStore(tmp_path, limits) as store:
        assert store.counts().dropped == {"STORAGE_FULL": len(dropped)}


def test_a_broken_disk_never_stops_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with SampleStore(tmp_path, ROOMY) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", broken)
            outcome = store.add(sample(1), picture(1))
        assert isinstance(outcome, Dropped)
        assert outcome.reason is Reason.SERVICE_UNAVAILABLE
        assert files(tmp_path) == set()


def test_a_picture_that_was_taken_away_or_damaged_is_told_and_its_label_is_kept(tmp_path: Path) -> None:
    with SampleStore(tmp_path, ROOMY) as store:
        gone, bad, well = (add(store, n) for n in (1, 2, 3))
        store.label(gone.id, "bad", "ana", NOW)
    for record, content in ((gone, None), (bad, b"something else")):
        digest = record.picture or ""
        path = tmp_path / "pictures" / digest[:2] / digest[2:4] / digest
        path.unlink() if content is None else path.write_bytes(content)
    with SampleStore(tmp_path, ROOMY) as store:
        assert store.counts().missing_contents == 2
        assert store.get(gone.id).record.label == "bad"
        for record, reason in ((gone, Reason.ARTIFACT_NOT_FOUND), (bad, Reason.DIGEST_MISMATCH)):
            with pytest.raises(MeshError) as error:
                store.picture(record.id)
            assert error.value.reason is reason
        assert store.picture(well.id) == picture(spread(3))


def test_one_store_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with SampleStore(tmp_path, ROOMY):
        with pytest.raises(MeshError) as error:
            SampleStore(tmp_path, ROOMY).open()
        assert error.value.reason is Reason.SERVICE_UNAVAILABLE
    with SampleStore(tmp_path, ROOMY) as again:
        again.open()  # it is open: nothing happens
        add(again, 1)


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be read as one" * 20, None])
def test_a_file_that_is_no_store_or_of_a_later_program_is_refused_and_left(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "samples.sqlite"
    if content is None:
        with SampleStore(tmp_path, ROOMY):
            pass
        later = sqlite3.connect(path)
        later.execute("PRAGMA user_version = 99")
        later.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    for _ in range(2):  # the first refusal has let go of the folder
        with pytest.raises(MeshError) as error:
            SampleStore(tmp_path, ROOMY).open()
        assert error.value.reason is Reason.SERVICE_UNAVAILABLE
        assert "another process" not in error.value.message
    assert path.read_bytes() == before


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SampleStore(tmp_path, ROOMY)
    for work in (
        lambda: store.add(sample(1)),
        store.list,
        store.counts,
        lambda: store.get("x"),
        lambda: store.label("x", "bad", "ana", NOW),
        lambda: store.delete("x"),
    ):
        with pytest.raises(MeshError) as error:
            work()
        assert error.value.reason is Reason.NOT_READY
    store.close()


def test_threads_add_at_the_same_time_without_losing_anything(tmp_path: Path) -> None:
    with SampleStore(tmp_path, StoreLimits(min_free_bytes=0, near_bits=-1)) as store:

        def work(first: int) -> None:
            for n in range(first, first + 10):
                store.add(sample(n), picture(spread(n % 20)))

        threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = store.counts()
        assert (counts.records, counts.duplicates) == (20, 20)
        assert files(tmp_path) == held(store)
