"""The store of samples: what it keeps, counts, lists, labels and forgets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.samples.kept import MAX_HISTORY, Added, Dropped, Duplicate, Filter, LabelEntry, StoreLimits
from splitmesh.samples.record import SampleRecord
from splitmesh.samples.store import SampleStore
from tests.unit.sample_records import NOW, ROOMY, add, files, held, picture, sample, spread


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    with SampleStore(tmp_path, ROOMY) as opened:
        yield opened


def reason_of(work: Any, *arguments: Any, **named: Any) -> Reason:
    with pytest.raises(MeshError) as error:
        work(*arguments, **named)
    return error.value.reason


def ids(store: SampleStore, wanted: Filter | None = None) -> list[str]:
    return [one.record.id for one in store.list(wanted, page_size=500).samples]


def test_a_sample_is_kept_with_its_bytes_and_what_they_say(store: SampleStore, tmp_path: Path) -> None:
    data = picture(spread(1), ending="JPEG")
    outcome = store.add(sample(1), data, b"features")
    digest = hashlib.sha256(data).hexdigest()
    expected = replace(
        sample(1),
        picture=digest,
        picture_bytes=len(data),
        media_type="image/jpeg",
        width=9,
        height=8,
        features=hashlib.sha256(b"features").hexdigest(),
        features_bytes=8,
    )
    assert outcome == Added(expected)
    assert store.get(expected.id).record == expected
    assert store.picture(expected.id) == data
    assert store.features(expected.id) == b"features"
    assert (tmp_path / "pictures" / digest[:2] / digest[2:4] / digest).read_bytes() == data
    assert store.ids_of(digest) == [expected.id]


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    with SampleStore(tmp_path, ROOMY) as first:
        kept = add(first, 1)
        first.label(kept.id, "bad", "ana", NOW)
        first.add(sample(2), picture(spread(1)))
        first.add(sample(3), b"nonsense")
        before = first.get(kept.id), first.history(kept.id), first.counts()
    with SampleStore(tmp_path, ROOMY) as second:
        assert (second.get(kept.id), second.history(kept.id), second.counts()) == before


def test_a_sample_without_a_picture_is_kept_and_has_none(store: SampleStore) -> None:
    assert store.add(sample(1)) == Added(sample(1))
    assert store.add(sample(2)) == Added(sample(2))
    assert reason_of(store.picture, sample(1).id) is Reason.ARTIFACT_NOT_FOUND
    assert reason_of(store.features, sample(1).id) is Reason.ARTIFACT_NOT_FOUND


def test_an_equal_picture_is_a_count_on_the_first_of_the_same_version(store: SampleStore, tmp_path: Path) -> None:
    first = add(store, 1)
    data = picture(spread(1))
    again = sample(60, camera="line-9", kind="audit")
    assert store.add(again, data) == Duplicate(first.id, near=False)
    assert isinstance(store.add(sample(3, version=4), data), Added)
    assert isinstance(store.add(sample(4, model="cells"), data), Added)
    seen = store.get(first.id)
    assert (seen.duplicates, seen.last_seen_at) == (1, again.captured_at)
    assert len(files(tmp_path)) == 1
    assert store.counts().content_bytes == len(data)
    assert store.counts().duplicates == 1


def test_equal_features_count_where_there_is_no_picture(store: SampleStore) -> None:
    assert isinstance(store.add(sample(1), None, b"same"), Added)
    assert store.add(sample(2), None, b"same") == Duplicate(sample(1).id, near=False)
    assert isinstance(store.add(sample(3), picture(1), b"same"), Added)
    assert store.add(sample(4), None, b"same") == Duplicate(sample(1).id, near=False)


def test_the_same_id_again_changes_nothing(store: SampleStore) -> None:
    first = add(store, 1)
    assert store.add(sample(1), picture(spread(1))) == Duplicate(first.id, near=False)
    assert store.add(sample(1), picture(spread(2))) == Duplicate(first.id, near=False)
    assert store.get(first.id).duplicates == 0
    assert len(ids(store)) == 1


@pytest.mark.parametrize(("bits", "near"), [(0b1111, True), (0b11111, False)])
def test_pictures_that_differ_in_up_to_four_bits_show_the_same(store: SampleStore, bits: int, near: bool) -> None:
    base = spread(7)
    store.add(sample(0, after_s=0), picture(base))
    outcome = store.add(sample(1, after_s=3), picture(base ^ bits << 30))
    assert isinstance(outcome, Duplicate if near else Added)


@pytest.mark.parametrize(("after_s", "near"), [(10, True), (10.001, False), (-10, True), (-10.001, False)])
def test_only_within_ten_seconds_of_the_first(store: SampleStore, after_s: float, near: bool) -> None:
    store.add(sample(0, after_s=100), picture(5))
    outcome = store.add(sample(1, after_s=100 + after_s), picture(5, shade=1))
    assert outcome == Duplicate(sample(0, after_s=100).id, near=True) if near else isinstance(outcome, Added)


@pytest.mark.parametrize(
    "other",
    [
        {"camera": "line-2"},
        {"version": 4},
        {"model": "cells"},
        {"kind": "disputed"},
        {"exit_label": "bad"},
        {"exit_label": "good", "tail_label": "bad"},
    ],
)
def test_what_looks_alike_but_is_another_case_is_kept(store: SampleStore, other: dict[str, Any]) -> None:
    store.add(sample(0, after_s=0, exit_label="good"), picture(5))
    changed = {"exit_label": "good", **other}
    assert isinstance(store.add(sample(1, after_s=1, **changed), picture(5, shade=1)), Added)
    assert isinstance(store.add(sample(2, after_s=2, exit_label="good"), picture(5, shade=2)), Duplicate)


def test_cameras_without_a_name_are_not_taken_for_one(store: SampleStore) -> None:
    assert isinstance(store.add(sample(0, after_s=0, camera=""), picture(5)), Added)
    assert isinstance(store.add(sample(1, after_s=1, camera=""), picture(5, shade=1)), Added)


def test_likeness_can_be_switched_off(tmp_path: Path) -> None:
    with SampleStore(tmp_path, StoreLimits(min_free_bytes=0, near_bits=-1)) as store:
        store.add(sample(0, after_s=0), picture(5))
        assert isinstance(store.add(sample(1, after_s=1), picture(5, shade=1)), Added)


@pytest.mark.parametrize(
    ("record", "data", "features", "reason"),
    [
        (sample(1), b"nonsense", None, Reason.IMAGE_UNDECODABLE),
        (sample(1), b"", None, Reason.IMAGE_UNDECODABLE),
        (sample(1), picture(1)[:-30], None, Reason.IMAGE_UNDECODABLE),
        (sample(1), b"x" * 501, None, Reason.IMAGE_TOO_LARGE),
        (sample(1), picture(1), b"x" * 51, Reason.FRAME_TOO_LARGE),
        (sample(1, features="a" * 64, features_bytes=1), None, None, Reason.DIGEST_MISMATCH),
        (sample(1, features="a" * 64, features_bytes=1), None, b"x", Reason.DIGEST_MISMATCH),
    ],
)
def test_what_cannot_be_kept_is_dropped_and_counted(
    tmp_path: Path, record: SampleRecord, data: bytes | None, features: bytes | None, reason: Reason
) -> None:
    limits = StoreLimits(min_free_bytes=0, max_picture_bytes=500, max_features_bytes=50)
    with SampleStore(tmp_path, limits) as store:
        outcome = store.add(record, data, features)
        assert isinstance(outcome, Dropped)
        assert outcome.reason is reason
        assert store.counts().dropped == {reason.value: 1}
        assert store.counts().records == 0
    assert files(tmp_path) == set()


def test_a_picture_of_too_many_pixels_is_dropped(tmp_path: Path) -> None:
    with SampleStore(tmp_path, StoreLimits(min_free_bytes=0, max_pixels=71)) as store:
        outcome = store.add(sample(1), picture(1))
    assert isinstance(outcome, Dropped)
    assert outcome.reason is Reason.IMAGE_TOO_LARGE


def test_the_list_is_newest_first_in_pages_that_new_samples_do_not_disturb(store: SampleStore) -> None:
    kept = [add(store, n).id for n in range(1, 8)]
    first = store.list(page_size=3)
    add(store, 8)
    second = store.list(page_token=first.next_page_token, page_size=3)
    third = store.list(page_token=second.next_page_token, page_size=3)
    pages = [[one.record.id for one in page.samples] for page in (first, second, third)]
    assert pages == [kept[6:3:-1], kept[3:0:-1], kept[:1]]
    assert third.next_page_token == ""
    assert store.list(page_size=8).next_page_token == ""


def test_a_filter_chooses_by_every_field(store: SampleStore) -> None:
    one = add(store, 1, camera="a", kind="audit")
    two = add(store, 2, model="cells", kind="disputed")
    three = add(store, 3, version=9)
    store.label(three.id, "bad", "ana", NOW)
    at = two.captured_at
    for wanted, found in (
        (Filter(), [three, two, one]),
        (Filter(camera="a"), [one]),
        (Filter(kinds=("disputed",)), [two]),
        (Filter(kinds=("audit",)), [one]),
        (Filter(kinds=("disputed", "audit")), [two, one]),
        (Filter(labelled=True), [three]),
        (Filter(labelled=False), [two, one]),
        (Filter(label="bad"), [three]),
        (Filter(label="good"), []),
        (Filter(model="cells"), [two]),
        (Filter(version=9), [three]),
        (Filter(since=at), [three, two]),
        (Filter(until=at), [one]),
        (Filter(since=at, until=at + timedelta(microseconds=1), model="cells"), [two]),
    ):
        assert ids(store, wanted) == [record.id for record in found], wanted


def test_bad_pages_and_filters_are_refused(store: SampleStore) -> None:
    for n in (1, 2):
        add(store, n)
    token = store.list(Filter(model="joints"), page_size=1).next_page_token
    assert token
    assert store.list(Filter(model="joints"), page_token=token).samples[0].record.id == sample(1).id
    for bad in ({"page_size": 0}, {"page_size": 1001}, {"page_token": "x"}, {"page_token": token}):
        assert reason_of(store.list, **bad) is Reason.FIELD_INVALID
    assert reason_of(Filter, kinds=("audit", "easy")) is Reason.FIELD_INVALID
    assert reason_of(Filter, since=NOW.replace(tzinfo=None)) is Reason.FIELD_INVALID


def test_a_label_can_be_given_changed_and_taken_back_and_its_history_stays(store: SampleStore) -> None:
    kept = add(store, 1)
    later = NOW + timedelta(days=1)
    labelled = store.label(kept.id, "bad", "ana", NOW).record
    assert (labelled.label, labelled.labelled_by, labelled.labelled_at) == ("bad", "ana", NOW)
    store.label(kept.id, "bad", "ana", later)
    store.label(kept.id, "good", "bo", later)
    assert store.label(kept.id, None, "ana", later).record == kept
    assert list(store.history(kept.id)) == [
        LabelEntry("bad", "ana", NOW),
        LabelEntry("good", "bo", later),
        LabelEntry(None, "ana", later),
    ]
    assert store.counts().labelled == 0


def test_a_long_history_forgets_its_beginning(store: SampleStore) -> None:
    kept = add(store, 1)
    for n in range(MAX_HISTORY + 5):
        store.label(kept.id, f"label {n}", "ana", NOW)
    assert [entry.label for entry in store.history(kept.id)] == [f"label {n}" for n in range(5, MAX_HISTORY + 5)]


def test_many_labels_are_given_together_or_not_at_all(store: SampleStore) -> None:
    one, two = add(store, 1), add(store, 2)
    unknown = sample(3).id
    assert reason_of(store.label_all, {one.id: "bad", unknown: "bad"}, "ana", NOW) is Reason.SAMPLE_NOT_FOUND
    for labels, by in (({one.id: "bad", two.id: ""}, "ana"), ({one.id: "bad"}, ""), ({one.id: "a\nb"}, "ana")):
        assert reason_of(store.label_all, labels, by, NOW) is Reason.FIELD_INVALID
    assert reason_of(store.label, one.id, "bad", "ana", NOW.replace(tzinfo=None)) is Reason.FIELD_INVALID
    assert store.counts().labelled == 0
    assert store.label_all({one.id: "bad", two.id: "good"}, "ana", NOW) == 2
    assert store.label_all({one.id: "bad", two.id: "bad"}, "ana", NOW) == 1
    assert store.counts().by_label == {"bad": 2}


def test_a_deleted_sample_takes_its_picture_along_unless_another_shows_it(store: SampleStore, tmp_path: Path) -> None:
    first = add(store, 1)
    second = store.add(sample(2, version=4), picture(spread(1)), b"features")
    assert isinstance(second, Added)
    store.label(first.id, "bad", "ana", NOW)
    store.delete(first.id)
    assert reason_of(store.get, first.id) is Reason.SAMPLE_NOT_FOUND
    assert reason_of(store.delete, first.id) is Reason.SAMPLE_NOT_FOUND
    assert reason_of(store.history, first.id) is Reason.SAMPLE_NOT_FOUND
    assert files(tmp_path) == held(store) == {second.record.picture, second.record.features}
    store.delete(second.record.id)
    assert files(tmp_path) == set()
    assert store.counts().content_bytes == 0


def test_counts_say_what_is_there(store: SampleStore) -> None:
    add(store, 1, kind="audit", camera="a")
    add(store, 2, kind="disputed")
    store.label(add(store, 3).id, "bad", "ana", NOW)
    counts = store.counts()
    assert counts.records == 3
    assert counts.content_bytes == sum(len(picture(spread(n))) for n in (1, 2, 3))
    assert counts.by_kind == {"audit": 1, "fallback": 0, "hard": 1, "disputed": 1}
    assert counts.by_camera == {"line-1": 2, "a": 1}
    assert counts.by_label == {"bad": 1}
    assert (counts.labelled, counts.duplicates, counts.missing_contents) == (1, 0, 0)
    assert counts.dropped == counts.evicted == {}
