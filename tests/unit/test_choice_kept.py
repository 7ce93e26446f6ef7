"""A choice on disk: read back while everything it depends on is the same, made again otherwise."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from splitmesh.runtime import choices
from splitmesh.runtime.candidates import Candidate, Measured, Wish
from splitmesh.runtime.choices import Choice, ChoiceKey, ChoiceStore, digest_of

WISH = Wish(cores=2, workers=2, latency_ms=250.0)
KEY = ChoiceKey("a" * 64, "host", WISH)
FOUND = (
    Measured(Candidate("onnxruntime-cpu", "fp32", 1), 5.0, 9.0, 350.0, 0.0, 1 << 20, 200),
    Measured(Candidate("openvino-cpu", "bf16", 2), 3.0, 4.0, 600.0, 0.01, 2 << 20, 300),
    Measured(Candidate("openvino-cpu", "fp16", 1), refused="not here"),
)
CHOICE = Choice(FOUND[1], FOUND)


@pytest.fixture
def store(tmp_path: Path) -> ChoiceStore:
    return ChoiceStore(tmp_path / "choices")


def file_of(folder: Path) -> Path:
    return next((folder / "choices").glob("*.json"))


def test_a_choice_comes_back_with_all_that_was_looked_at(store: ChoiceStore) -> None:
    assert store.read(KEY) is None
    store.write(KEY, CHOICE)
    found = store.read(KEY)
    assert found == CHOICE
    assert found is not None
    assert found.remembered
    assert not CHOICE.remembered


@pytest.mark.parametrize(
    "changed",
    [
        replace(KEY, segment="b" * 64),
        replace(KEY, host="another"),
        replace(KEY, wish=replace(WISH, cores=4)),
        replace(KEY, wish=replace(WISH, precisions=("fp32",))),
    ],
    ids=["another segment", "a changed host", "other cores", "other precisions"],
)
def test_what_it_depends_on_has_changed(store: ChoiceStore, changed: ChoiceKey) -> None:
    store.write(KEY, CHOICE)
    assert store.read(changed) is None


def test_other_rules_choose_anew(store: ChoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(KEY, CHOICE)
    monkeypatch.setattr(choices, "RULES", choices.RULES + 1)
    assert store.read(KEY) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b"{}"],
    ids=["empty", "cut off", "a list", "no text", "null", "deep", "nothing in it"],
)
def test_a_damaged_file_is_as_if_it_were_not_there(store: ChoiceStore, tmp_path: Path, content: bytes) -> None:
    store.write(KEY, CHOICE)
    file_of(tmp_path).write_bytes(content)
    assert store.read(KEY) is None
    store.write(KEY, CHOICE)
    assert store.read(KEY) == CHOICE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("chosen",), 9),
        (("chosen",), -1),
        (("chosen",), True),
        (("chosen",), 2),
        (("candidates", 0, "p50_ms"), "quick"),
        (("candidates", 0, "p99_ms"), -1.0),
        (("candidates", 0, "candidate", "threads"), 0),
        (("candidates", 1, "candidate", "backend"), 7),
        (("candidates", 1, "more"), 1),
        (("candidates",), []),
    ],
)  # fmt: skip
def test_a_file_that_says_what_cannot_be_is_not_believed(
    store: ChoiceStore, tmp_path: Path, path: tuple[object, ...], value: object
) -> None:
    store.write(KEY, CHOICE)
    told = json.loads(file_of(tmp_path).read_text())
    place = told
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file_of(tmp_path).write_text(json.dumps(told))
    assert store.read(KEY) is None


def test_a_disk_that_does_not_take_it_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "choices").write_text("a file where the folder should be")
    store = ChoiceStore(tmp_path / "choices")
    store.write(KEY, CHOICE)
    assert store.read(KEY) is None


def test_only_the_newest_are_kept(store: ChoiceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "MAX_FILES", 2)
    for number in range(3):
        store.write(replace(KEY, segment=str(number) * 64), CHOICE)
        newest = tmp_path / "choices" / f"{str(number) * 64}.json"
        os.utime(newest, (number, number))
    assert sorted(path.name[0] for path in (tmp_path / "choices").glob("*.json")) == ["1", "2"]


def test_a_segment_in_pieces_has_a_digest_that_knows_their_order() -> None:
    assert len({digest_of([b"a", b"b"]), digest_of([b"b", b"a"]), digest_of([b"ab"]), digest_of([b"a"])}) == 4
