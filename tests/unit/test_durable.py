"""Small files that survive a power cut: the order in which the disk is told, and what is left when it refuses."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from splitmesh.durable import LEFT_S, write_file


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, in its order."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        seen.append("file" if path.is_file() else path.name)
        fsync(handle)

    def renamed(source: str, target: Path) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


def test_new_folders_the_file_and_its_name_are_synced_each_before_the_next(tmp_path: Path, told: list[str]) -> None:
    path = tmp_path / "a" / "b" / "note"
    write_file(path, b"first")
    assert told == [tmp_path.name, "a", "file", "rename", "b"]
    told.clear()
    write_file(path, b"second", mode=0o644)
    assert told == ["file", "rename", "b"]
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"second", 0o644)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_refuses_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "note"
    write_file(path, b"first")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"second")
    assert [one.name for one in tmp_path.iterdir()] == ["note"]
    assert path.read_bytes() == b"first"


def test_what_a_killed_writer_left_is_taken_away_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    for name, age_s in ((".tmp-left", LEFT_S + 60), (".tmp-busy", LEFT_S - 60), ("old", 2 * LEFT_S)):
        one = tmp_path / name
        one.write_bytes(b"half")
        at = one.stat().st_mtime - age_s
        os.utime(one, (at, at))
    write_file(tmp_path / "note", b"first")
    assert sorted(one.name for one in tmp_path.iterdir()) == [".tmp-busy", "note", "old"]
