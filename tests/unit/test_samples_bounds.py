"""The store of samples when it is full: who goes first, and that it never holds more than it may."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splitmesh.errors import MeshError, Reason
from splitmesh.samples.kept import Added, Dropped, StoreLimits
from splitmesh.samples.record import KINDS
from splitmesh.samples.store import SampleStore
from tests.integration.registry_world import small_disk
from tests.unit.sample_records import NOW, add, encoded, files, held, picture, sample, spread


@contextmanager
def bounded(folder: Path, records: int = 1000, size: int = 1 << 30, free: int = 0) -> Iterator[SampleStore]:
    limits = StoreLimits(max_records=records, max_bytes=size, min_free_bytes=free, near_bits=-1)
    with SampleStore(folder, limits) as store:
        yield store


def numbers(store: SampleStore) -> list[int]:
    """Which samples are there, by their minute."""
    page = store.list(page_size=500).samples
    return sorted(round((one.record.captured_at - NOW).total_seconds() / 60) for one in page)


def test_the_oldest_of_the_kind_that_is_easiest_to_replace_goes_first(tmp_path: Path) -> None:
    with bounded(tmp_path, 5) as store:
        for n, kind in enumerate(("disputed", "hard", "fallback", "audit", "audit"), 1):
            add(store, n, kind=kind)
        left = []
        for n in range(6, 11):
            add(store, n, kind="disputed")
            left.append(numbers(store)[:-1])
        assert left == [[1, 2, 3, 5], [1, 2, 3, 6], [1, 2, 6, 7], [1, 6, 7, 8], [6, 7, 8, 9]]
        assert store.counts().evicted == {"records": 5}
        assert files(tmp_path) == held(store)


def test_a_label_protects_until_nothing_is_without(tmp_path: Path) -> None:
    with bounded(tmp_path, 2) as store:
        store.label(add(store, 1, kind="audit").id, "bad", "ana", NOW)
        add(store, 2, kind="disputed")
        add(store, 3, kind="disputed")
        assert numbers(store) == [1, 3]
        store.label(sample(3).id, "bad", "ana", NOW)
        outcome = store.add(sample(4, kind="disputed"), picture(spread(4)))
        assert isinstance(outcome, Dropped)
        assert outcome.reason is Reason.BUDGET_EXCEEDED
        labelled = sample(5, kind="audit", label="good", labelled_by="bo", labelled_at=NOW)
        assert isinstance(store.add(labelled, picture(spread(5))), Added)
        assert numbers(store) == [3, 5]


def test_a_newcomer_never_takes_the_place_of_what_is_harder_to_replace(tmp_path: Path) -> None:
    with bounded(tmp_path, 2) as store:
        add(store, 5, kind="disputed")
        add(store, 6, kind="fallback")
        for n, kind in ((7, "audit"), (4, "fallback")):
            outcome = store.add(sample(n, kind=kind), picture(spread(n)))
            assert isinstance(outcome, Dropped)
        assert numbers(store) == [5, 6]
        counts = store.counts()
        assert counts.dropped == {"BUDGET_EXCEEDED": 2}
        assert counts.evicted == {}
        assert files(tmp_path) == held(store)


def test_bytes_are_bounded_and_shared_pictures_count_once(tmp_path: Path) -> None:
    one = len(picture(spread(1)))
    with bounded(tmp_path, size=3 * one + 50) as store:
        add(store, 1)
        assert isinstance(store.add(sample(2, version=4), picture(spread(1))), Added)
        add(store, 3)
        add(store, 4)
        assert numbers(store) == [1, 2, 3, 4]
        add(store, 5)
        assert numbers(store) == [3, 4, 5]  # both of the shared picture had to go before its bytes were free
        assert store.counts().evicted == {"bytes": 2}
        assert files(tmp_path) == held(store)


def test_a_sample_larger_than_the_whole_store_takes_nobody_away(tmp_path: Path) -> None:
    with bounded(tmp_path, size=1000) as store:
        add(store, 1, kind="audit")
        outcome = store.add(sample(2, kind="disputed"), picture(spread(2)), b"x" * 1000)
        assert isinstance(outcome, Dropped)
        assert outcome.reason is Reason.BUDGET_EXCEEDED
        assert numbers(store) == [1]


def test_lower_limits_are_kept_to_from_the_next_start(tmp_path: Path) -> None:
    with bounded(tmp_path) as store:
        for n in range(1, 6):
            add(store, n)
    with bounded(tmp_path, 2) as store:
        assert numbers(store) == [4, 5]
        assert files(tmp_path) == held(store)
        assert store.counts().evicted == {"records": 3}


def test_a_disk_that_is_to_stay_free_is_left_free(tmp_path: Path) -> None:
    with bounded(tmp_path, free=1 << 62) as store:
        outcome = store.add(sample(1), picture(1))
        assert isinstance(outcome, Dropped)
        assert outcome.reason is Reason.STORAGE_FULL
        assert store.counts().dropped == {"STORAGE_FULL": 1}


def test_on_a_disk_that_is_really_full_samples_can_be_labelled_and_deleted_until_new_ones_fit(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    pictures = [encoded(Image.fromarray(noise.integers(0, 256, (90, 90), dtype=np.uint8)), "PNG") for _ in range(150)]
    with small_disk(tmp_path / "disk", 1_500_000) as disk:
        with bounded(disk) as store:
            outcomes = [store.add(sample(n), data) for n, data in enumerate(pictures)]
            dropped = [outcome.reason for outcome in outcomes if isinstance(outcome, Dropped)]
            assert set(dropped) == {Reason.STORAGE_FULL}
            kept = numbers(store)
            assert len(kept) == len(outcomes) - len(dropped) > 10
            (disk / "others").write_bytes(b"x" * shutil.disk_usage(disk).free)
        with bounded(disk) as store:
            assert store.counts().dropped == {"STORAGE_FULL": len(dropped)}
            (disk / "more of others").write_bytes(b"x" * shutil.disk_usage(disk).free)
            store.label_all({sample(n).id: "bad" for n in kept}, "ana", NOW)
            for n in kept[:-3]:
                store.delete(sample(n).id)
            assert isinstance(store.add(sample(999), pictures[-1]), Added)
            assert files(disk) == held(store)
        with bounded(disk) as store:
            assert numbers(store) == [*kept[-3:], 999]
            assert store.counts().labelled == 3


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(KINDS), st.booleans(), st.integers(0, 30)),
        min_size=1,
        max_size=10,
    ),
    st.integers(1, 5),
    st.integers(1, 600),
)
def test_whatever_comes_the_limits_hold_and_what_stays_was_worth_most(
    offered: list[tuple[int, str, bool, int]], records: int, size: int
) -> None:
    seen: dict[str, tuple[bool, int, str]] = {}
    with tempfile.TemporaryDirectory() as folder, bounded(Path(folder), records, size) as store:
        for n, kind, labelled, length in offered:
            label: dict[str, Any] = {"label": "bad", "labelled_by": "ana", "labelled_at": NOW} if labelled else {}
            record = sample(n, kind=kind, **label)
            outcome = store.add(record, None, bytes([n]) * length)
            counts = store.counts()
            assert counts.records <= records
            assert counts.content_bytes <= size
            assert files(Path(folder)) == held(store)
            worth = (labelled, KINDS.index(record.kind), record.id)
            if isinstance(outcome, Added):
                seen[record.id] = worth
            kept = {one.record.id for one in store.list(page_size=500).samples}
            given_up = [value for key, value in seen.items() if key not in kept]
            seen = {key: value for key, value in seen.items() if key in kept}
            assert not given_up or not seen or max(given_up) < min(seen.values())


@pytest.mark.parametrize("kind", KINDS)
def test_of_one_kind_the_oldest_goes(tmp_path: Path, kind: str) -> None:
    with bounded(tmp_path, 2) as store:
        for n in (2, 1, 3):
            add(store, n, kind=kind)
        assert numbers(store) == [2, 3]


@pytest.mark.parametrize(
    "bad",
    [{"max_bytes": 0}, {"max_records": 0}, {"near_bits": 65}, {"near_bits": -2}, {"near_window": timedelta(-1)}],
)
def test_limits_that_are_none_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as error:
        StoreLimits(**bad)
    assert error.value.reason is Reason.FIELD_INVALID
