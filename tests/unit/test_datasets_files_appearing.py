"""A folder appears whole or not at all, and nothing that was beside it is touched."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from splitmesh.datasets.files import appearing as module
from splitmesh.datasets.files.appearing import appearing
from splitmesh.errors import MeshError, Reason


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_there_at_the_end_with_the_rights_of_any_new_folder(tmp_path: Path) -> None:
    with appearing(tmp_path / "deep" / "out") as staging:
        (staging / "a").write_text("a")
        assert names(tmp_path / "deep") != ["out"]
    (tmp_path / "plain").mkdir()
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "a"
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with appearing(tmp_path / "out") as staging:
            (staging / "a").write_text("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


def test_folders_of_others_beside_the_target_are_left_alone(tmp_path: Path) -> None:
    before = [".out.new", f"{module.STAGING}of-another"]
    for name in before:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("")
    with appearing(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*before, "out"])
    assert all(names(tmp_path / name) == ["mine"] for name in before)


def test_two_at_once_do_not_mix_and_the_second_is_refused(tmp_path: Path) -> None:
    def both() -> None:
        with appearing(tmp_path / "out") as first:
            (first / "first").write_text("")
            with appearing(tmp_path / "out") as second:
                (second / "second").write_text("")

    with pytest.raises(MeshError) as caught:
        both()
    assert caught.value.reason is Reason.FIELD_INVALID
    assert "not an empty folder" in caught.value.message
    assert names(tmp_path / "out") == ["second"]
    assert names(tmp_path) == ["out"]


def test_all_of_it_is_on_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        seen.append(f"{Path(path).name}{' named' if (tmp_path / 'out').exists() else ''}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with appearing(tmp_path / "out") as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "a").write_text("a")
    assert seen[-4:] == ["a", "inner", "new", f"{tmp_path.name} named"]


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSPC, Reason.STORAGE_FULL), (errno.EACCES, Reason.SERVICE_UNAVAILABLE)]
)
def test_what_the_disk_says_is_told(tmp_path: Path, number: int, reason: Reason) -> None:
    with pytest.raises(MeshError) as caught, appearing(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    assert caught.value.reason is reason
    assert names(tmp_path) == []
