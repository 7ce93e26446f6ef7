"""Folders that others own, as one collection: read and labelled while their owners work in them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.samples import beside as beside_module
from splitmesh.samples.beside import Beside, folders_beside, folders_of
from splitmesh.samples.kept import Filter
from splitmesh.samples.record import new_id
from splitmesh.samples.store import SampleStore
from splitmesh.samples.tables import FILE
from tests.unit.sample_records import NOW, ROOMY, add, picture, sample, spread


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[list[SampleStore]]:
    """Two processes' stores, open."""
    with SampleStore(folder(tmp_path, 1), ROOMY) as one, SampleStore(folder(tmp_path, 2), ROOMY) as two:
        yield [one, two]


def folder(data_dir: Path, number: int) -> Path:
    return data_dir / f"replica-{number}" / "samples"


@pytest.fixture
def both(tmp_path: Path) -> Beside:
    return Beside(lambda: folders_of(tmp_path))


def reason_of(call: Any, *arguments: Any, **named: Any) -> Reason:
    with pytest.raises(MeshError) as error:
        call(*arguments, **named)
    return error.value.reason


def test_the_samples_of_all_folders_are_one_list_newest_first(owners: list[SampleStore], both: Beside) -> None:
    kept = [add(owners[n % 2], n).id for n in range(7)]
    first = both.list(page_size=3)
    second = both.list(page_size=3, page_token=first.next_page_token)
    third = both.list(page_size=3, page_token=second.next_page_token)
    pages = [[one.record.id for one in page.samples] for page in (first, second, third)]
    assert pages == [kept[6:3:-1], kept[3:0:-1], kept[:1]]
    assert third.next_page_token == ""
    assert [one.record.id for one in both.all()] == kept[::-1]
    assert both.list(page_size=7).next_page_token == ""


def test_a_filter_holds_for_every_folder(owners: list[SampleStore], both: Beside) -> None:
    for n in range(4):
        add(owners[n % 2], n, kind=("audit", "hard", "disputed", "fallback")[n])
    found = [one.record.kind for one in both.all(Filter(kinds=("audit", "fallback")))]
    assert found == ["fallback", "audit"]
    token = both.list(Filter(kinds=("audit", "fallback")), page_size=1).next_page_token
    assert reason_of(both.list, Filter(kinds=("audit",)), page_token=token) is Reason.FIELD_INVALID
    assert reason_of(both.list, page_size=0) is Reason.FIELD_INVALID
    assert reason_of(both.list, page_size=1001) is Reason.FIELD_INVALID


def test_a_sample_is_found_wherever_it_is_with_its_picture_and_history(owners: list[SampleStore], both: Beside) -> None:
    here, there = add(owners[0], 1), add(owners[1], 2)
    owners[1].label(there.id, "bad", "ana", NOW)
    found, history = both.with_history(there.id)
    assert (found.record.label, [entry.label for entry in history]) == ("bad", ["bad"])
    assert both.get(here.id).record == here
    assert both.picture(there.id) == picture(spread(2))
    assert both.ids_of(there.picture or "") == [there.id]
    unknown = new_id(NOW, bytes(10))
    for call in (both.get, both.with_history, both.picture, both.features):
        assert reason_of(call, unknown) is Reason.SAMPLE_NOT_FOUND
    assert reason_of(both.features, here.id) is Reason.ARTIFACT_NOT_FOUND


def test_a_picture_that_its_owner_let_go_of_is_gone(owners: list[SampleStore], both: Beside, tmp_path: Path) -> None:
    kept = add(owners[0], 1)
    digest = kept.picture or ""
    (folder(tmp_path, 1) / "pictures" / digest[:2] / digest[2:4] / digest).unlink()
    assert reason_of(both.picture, kept.id) is Reason.ARTIFACT_NOT_FOUND


def test_labels_given_beside_an_owner_are_its_own_at_once(owners: list[SampleStore], both: Beside) -> None:
    here, there = add(owners[0], 1), add(owners[1], 2)
    assert both.label_all({here.id: "good", there.id: "bad"}, "ana", NOW) == 2
    assert both.label_all({here.id: "good", there.id: "good"}, "ana", NOW) == 1
    assert owners[0].get(here.id).record.label == "good"
    assert [entry.label for entry in owners[1].history(there.id)] == ["bad", "good"]
    assert both.label_all({here.id: None}, "bo", NOW) == 1
    assert owners[0].get(here.id).record.label is None
    add(owners[0], 3)  # the owner goes on


def test_all_labels_are_given_or_none(owners: list[SampleStore], both: Beside) -> None:
    here, there = add(owners[0], 1), add(owners[1], 2)
    unknown = new_id(NOW, bytes(10))
    assert reason_of(both.label_all, {here.id: "a", there.id: "a", unknown: "a"}, "ana", NOW) is Reason.SAMPLE_NOT_FOUND
    for bad, by in (({here.id: "a", there.id: " "}, "ana"), ({here.id: "a"}, "")):
        assert reason_of(both.label_all, bad, by, NOW) is Reason.FIELD_INVALID
    assert [one.record.label for one in both.all()] == [None, None]


def test_a_label_waits_for_the_owner_and_not_for_ever(
    owners: list[SampleStore], both: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(owners[0], 1)
    monkeypatch.setattr(beside_module, "BUSY_S", 0.01)
    other = sqlite3.connect(folder(tmp_path, 1) / FILE, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert reason_of(both.label_all, {kept.id: "bad"}, "ana", NOW) is Reason.SERVICE_UNAVAILABLE
    assert both.get(kept.id).record == kept  # reading waits for nobody
    monkeypatch.setattr(beside_module, "BUSY_S", 20.0)
    begun = threading.Event()
    done: list[int] = []

    def label() -> None:
        begun.set()
        done.append(both.label_all({kept.id: "bad"}, "ana", NOW))

    thread = threading.Thread(target=label)
    thread.start()
    begun.wait()
    other.execute("ROLLBACK")
    other.close()
    thread.join()
    assert done == [1]


def test_two_who_label_and_two_who_add_lose_nothing(owners: list[SampleStore], both: Beside) -> None:
    kept = [add(owners[n % 2], n).id for n in range(10)]

    def label(ids: list[str]) -> None:
        for sample_id in ids:
            both.label_all({sample_id: "x", kept[0]: "y", kept[1]: "y"}, "ana", NOW)

    threads = [threading.Thread(target=label, args=(ids,)) for ids in (kept[2:6], kept[6:])]
    threads += [
        threading.Thread(target=lambda s=s, k=k: [add(s, k + n) for n in range(5)])
        for s, k in zip(owners, (50, 90), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(both.all())) == 20
    assert len(list(both.all(Filter(label="x")))) == 8
    assert both.counts().labelled == 10


def test_a_full_disk_can_be_labelled_from_the_reserve(
    owners: list[SampleStore], both: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(owners[0], 1)
    reserve = folder(tmp_path, 1) / "reserve"
    label = beside_module._label

    def full(*arguments: Any) -> int:
        if reserve.exists():
            raise MeshError(Reason.STORAGE_FULL, "full")
        return label(*arguments)

    monkeypatch.setattr(beside_module, "_label", full)
    assert both.label_all({kept.id: "bad"}, "ana", NOW) == 1
    assert reserve.exists()
    assert owners[0].get(kept.id).record.label == "bad"


def test_counts_are_sums(owners: list[SampleStore], both: Beside) -> None:
    add(owners[0], 1, camera="a")
    add(owners[1], 2, camera="a", kind="audit")
    owners[1].add(sample(3), b"nonsense")
    owners[0].count_dropped({"QUEUE_FULL": 2})
    counts = both.counts()
    assert (counts.records, counts.by_camera) == (2, {"a": 2})
    assert counts.by_kind == {"hard": 1, "audit": 1, "fallback": 0, "disputed": 0}
    assert counts.dropped == {"IMAGE_UNDECODABLE": 1, "QUEUE_FULL": 2}
    assert owners[0].counts().dropped == {"QUEUE_FULL": 2}


def test_what_an_owner_left_can_be_read_and_what_is_no_store_is_told(tmp_path: Path, both: Beside) -> None:
    assert list(both.all()) == []
    assert both.counts().records == 0
    with SampleStore(folder(tmp_path, 1), ROOMY) as store:
        kept = add(store, 1)
    assert both.get(kept.id).record == kept
    assert both.label_all({kept.id: "bad"}, "ana", NOW) == 1
    with SampleStore(folder(tmp_path, 1), ROOMY) as store:
        assert store.get(kept.id).record.label == "bad"
    folder(tmp_path, 2).mkdir(parents=True)
    (folder(tmp_path, 2) / FILE).write_bytes(b"no database" * 1000)
    assert reason_of(both.list) is Reason.SERVICE_UNAVAILABLE
    later = sqlite3.connect(folder(tmp_path, 1) / FILE)
    later.execute("PRAGMA user_version = 99")
    later.close()
    (folder(tmp_path, 2) / FILE).unlink()
    assert reason_of(both.list) is Reason.SERVICE_UNAVAILABLE


@pytest.mark.parametrize("statement", ["PRAGMA user_version", "PRAGMA journal_mode = WAL"])
def test_a_folder_whose_owner_was_killed_before_it_had_tables_holds_no_samples(
    tmp_path: Path, both: Beside, statement: str
) -> None:
    with SampleStore(folder(tmp_path, 2), ROOMY) as store:
        kept = add(store, 1)
    folder(tmp_path, 1).mkdir(parents=True)
    unfilled = sqlite3.connect(folder(tmp_path, 1) / FILE)
    unfilled.execute(statement)
    unfilled.close()
    assert [one.record for one in both.all()] == [kept]
    assert both.with_history(kept.id)[0].record == kept
    assert both.picture(kept.id) == picture(spread(1))
    assert both.counts().records == 1
    assert both.label_all({kept.id: "bad"}, "ana", NOW) == 1
    assert reason_of(both.get, new_id(NOW, bytes(10))) is Reason.SAMPLE_NOT_FOUND
    with SampleStore(folder(tmp_path, 1), ROOMY) as store:  # its owner comes again
        add(store, 2)
    assert both.counts().records == 2


def test_one_process_sees_its_siblings_and_nobody_else(tmp_path: Path) -> None:
    for number in (1, 2):
        folder(tmp_path, number).mkdir(parents=True)
    own = tmp_path / "samples"
    assert folders_of(tmp_path) == [own, folder(tmp_path, 1), folder(tmp_path, 2)]
    assert folders_beside(tmp_path / "replica-2") == folders_of(tmp_path)
    assert folders_beside(tmp_path / "replica-x") == [tmp_path / "replica-x" / "samples"]
