"""A picture that comes again: what the first sample of it takes over, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitmesh.datasets.contents import Contents
from splitmesh.samples.kept import Added, Duplicate, Filter, StoreLimits
from splitmesh.samples.store import SampleStore
from tests.unit.sample_records import NOW, ROOMY, add, picture, sample, spread

DISPUTED: dict[str, Any] = {
    **{"kind": "disputed", "why": "UNSURE", "exit_label": "good", "tail_label": "bad", "tail_confidence": 0.75}
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    with SampleStore(tmp_path, ROOMY) as opened:
        yield opened


def test_a_dispute_is_not_hidden_behind_an_earlier_fallback_of_the_same_picture(store: SampleStore) -> None:
    first = add(store, 1, kind="fallback", why="DEADLINE_EXPIRED", exit_label="good")
    store.label(first.id, "bad", "ana", NOW)
    assert store.add(sample(2, **DISPUTED), picture(spread(1))) == Duplicate(first.id, near=False)
    (found,) = store.list(Filter(kinds=("disputed",))).samples
    record = found.record
    assert (record.id, found.duplicates) == (first.id, 1)
    assert (record.why, record.tail_label, record.tail_confidence) == ("UNSURE", "bad", 0.75)
    assert (record.label, record.labelled_by, record.captured_at) == ("bad", "ana", first.captured_at)
    assert store.counts().by_kind == {"audit": 0, "fallback": 0, "hard": 0, "disputed": 1}


def test_what_is_easier_to_replace_changes_nothing_of_the_first(store: SampleStore) -> None:
    first = add(store, 1, **DISPUTED)
    for n, kind in enumerate(("audit", "fallback", "hard", "disputed"), 2):
        store.add(sample(n, kind=kind, tail_label="other"), picture(spread(1)))
    assert store.get(first.id).record == first
    assert store.get(first.id).duplicates == 4


def test_a_newcomer_that_no_tail_answered_leaves_the_answer_that_is_known(store: SampleStore) -> None:
    first = add(store, 1, kind="audit", tail_label="good", tail_confidence=0.5)
    store.add(sample(2, kind="hard", why="UNUSUAL"), picture(spread(1)))
    record = store.get(first.id).record
    assert (record.kind, record.why, record.tail_label, record.tail_confidence) == ("hard", "UNUSUAL", "good", 0.5)


def test_what_became_disputed_is_given_up_as_late_as_one_that_always_was(tmp_path: Path) -> None:
    with SampleStore(tmp_path, StoreLimits(min_free_bytes=0, max_records=2, near_bits=-1)) as store:
        first = add(store, 1, kind="audit")
        store.add(sample(2, **DISPUTED), picture(spread(1)))
        add(store, 3, kind="hard")
        add(store, 4, kind="hard")
        assert [one.record.id for one in store.list().samples] == [sample(4).id, first.id]


def test_a_damaged_file_of_the_same_size_is_written_again(store: SampleStore, tmp_path: Path) -> None:
    first = add(store, 1)
    digest = first.picture or ""
    path = Contents(tmp_path / "pictures").path_of(digest)
    path.write_bytes(bytes(first.picture_bytes))
    again = store.add(sample(2, version=4), picture(spread(1)))
    assert isinstance(again, Added)
    assert store.picture(first.id) == store.picture(again.record.id) == picture(spread(1))


def test_a_file_that_is_whole_is_not_written_again(tmp_path: Path) -> None:
    contents = Contents(tmp_path / "pictures")
    contents.prepare()
    digest = "ab" * 32
    assert contents.put(digest, b"whole")
    assert not contents.put(digest, b"whole")
