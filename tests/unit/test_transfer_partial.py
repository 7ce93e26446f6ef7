"""A file that is being downloaded: what was synced survives a power cut, everything else is fetched again, nobody is torn."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import pytest

from splitmesh.client.partial import Partial, left_of
from splitmesh.errors import MeshError, Reason

STEP = 1000
CONTENT = os.urandom(10 * STEP + 123)
SHA = hashlib.sha256(CONTENT).hexdigest()
SIZE = len(CONTENT)


def _open(folder: Path, content: bytes = CONTENT) -> Partial:
    return Partial(folder / "out", hashlib.sha256(content).hexdigest(), len(content), sync_bytes=STEP)


def _fill(partial: Partial, end: int = SIZE, by: int = 100) -> None:
    while partial.offset < end:
        partial.append(CONTENT[partial.offset : min(partial.offset + by, end)])


def _complete(partial: Partial) -> None:
    _fill(partial)
    partial.finish()


def _lost(partial: Partial) -> None:
    """The process is gone, as after SIGKILL: nothing is tidied up, and its lock is free."""
    os.close(partial._file)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / f".out.{SHA[:16]}.part"


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / f".out.{SHA[:16]}.synced"


def test_a_file_is_there_when_it_is_whole_and_nothing_else_is(tmp_path: Path) -> None:
    partial = _open(tmp_path)
    _fill(partial)
    assert "out" not in _names(tmp_path)
    partial.finish()
    partial.close()
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("end", [0, 1, STEP - 1, STEP, STEP + 1, 3 * STEP + 50, 10 * STEP, SIZE])
def test_a_killed_process_costs_no_more_than_a_step(tmp_path: Path, end: int) -> None:
    partial = _open(tmp_path)
    _fill(partial, end)
    _lost(partial)
    again = _open(tmp_path)
    assert end - STEP < again.offset <= end
    _fill(again)
    again.finish()
    again.close()
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("tail", [bytes(STEP - 50), os.urandom(STEP - 50), bytes(5 * STEP), b""])
def test_a_tail_that_was_never_written_costs_only_itself(tmp_path: Path, part: Path, tail: bytes) -> None:
    partial = _open(tmp_path)
    _fill(partial, 3 * STEP)
    _lost(partial)
    with part.open("ab") as file:
        file.write(tail)
    again = _open(tmp_path)
    assert again.offset == 3 * STEP
    assert part.read_bytes() == CONTENT[: 3 * STEP]
    _fill(again)
    again.finish()
    again.close()
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_a_part_shorter_than_its_note_says_counts_as_far_as_it_goes(tmp_path: Path, part: Path) -> None:
    partial = _open(tmp_path)
    _fill(partial, 3 * STEP)
    _lost(partial)
    os.truncate(part, 1234)
    assert _open(tmp_path).offset == 1234


def test_a_part_without_a_note_is_begun_anew(tmp_path: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:5000])
    partial = _open(tmp_path)
    assert (partial.offset, part.stat().st_size) == (0, 0)


@pytest.mark.parametrize("torn", [b"00", bytes(26), b"0000000000009000 00000000\n", b"\xff" * 40, b"x" * 26 * 3])
def test_a_torn_line_is_passed_over_and_written_over(tmp_path: Path, note: Path, torn: bytes) -> None:
    partial = _open(tmp_path)
    _fill(partial, 2 * STEP)
    _lost(partial)
    with note.open("ab") as file:
        file.write(torn)
    again = _open(tmp_path)
    assert again.offset == 2 * STEP
    _fill(again, 4 * STEP)
    _lost(again)
    assert _open(tmp_path).offset == 4 * STEP


def test_what_an_orderly_end_left_is_gone_on_with_to_the_byte(tmp_path: Path) -> None:
    partial = _open(tmp_path)
    _fill(partial, 2 * STEP + 77)
    partial.close()
    assert left_of(tmp_path / "out", SHA, SIZE) == SIZE - 2 * STEP - 77
    assert _open(tmp_path).offset == 2 * STEP + 77


def test_bytes_are_synced_before_the_note_says_so(tmp_path: Path, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real(handle)

    partial = _open(tmp_path)
    monkeypatch.setattr("os.fsync", fsync)
    _fill(partial, 2 * STEP)
    # The folder too, once: it has the names.
    assert synced == [
        part.name,
        part.with_suffix(".synced").name,
        tmp_path.name,
        part.name,
        part.with_suffix(".synced").name,
    ]


def test_a_wrong_digest_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old")
    partial = _open(tmp_path)
    partial.append(bytes(SIZE))
    with pytest.raises(MeshError) as caught:
        partial.finish()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert (tmp_path / "out").read_bytes() == b"old"
    partial.empty()
    assert partial.offset == 0
    _fill(partial)
    partial.finish()
    partial.close()
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_what_was_forgotten_is_not_vouched_for(tmp_path: Path) -> None:
    partial = _open(tmp_path)
    _fill(partial, 5 * STEP)
    partial.empty()
    partial.append(CONTENT[:50])
    _lost(partial)
    assert _open(tmp_path).offset == 0


def test_a_part_longer_than_the_whole_is_begun_anew(tmp_path: Path, part: Path, note: Path) -> None:
    part.write_bytes(bytes(SIZE + 10))
    number = b"%016d" % (SIZE + 10)
    note.write_bytes(b"%s %08x\n" % (number, zlib.crc32(number)))
    assert _open(tmp_path).offset == 0


def test_two_do_not_write_one_part(tmp_path: Path) -> None:
    first = _open(tmp_path)
    _fill(first, 2 * STEP)
    with pytest.raises(MeshError) as caught:
        _open(tmp_path)
    assert caught.value.reason is Reason.QUEUE_FULL
    _fill(first)
    first.finish()
    first.close()
    assert (tmp_path / "out").read_bytes() == CONTENT


def test_who_opens_while_another_finishes_never_truncates_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _open(tmp_path)
    _fill(first)
    real = fcntl.flock
    finished: list[bool] = []

    def flock(handle: int, how: int) -> None:
        # Between opening the part and locking it, its writer finishes: what was opened is the whole file now.
        if not finished:
            finished.append(True)
            first.finish()
            first.close()
        real(handle, how)

    monkeypatch.setattr("fcntl.flock", flock)
    second = _open(tmp_path)
    assert second.offset == 0
    assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_a_link_or_a_folder_is_never_written_over(tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if kind == "folder":
        (tmp_path / "out").mkdir()
    else:
        (tmp_path / "out").symlink_to(elsewhere)
    if kind == "link":
        elsewhere.write_bytes(b"precious")
    with pytest.raises(MeshError) as caught:
        _open(tmp_path)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert not elsewhere.exists() or elsewhere.read_bytes() == b"precious"


def test_a_part_that_is_a_link_is_not_followed(tmp_path: Path, part: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    part.symlink_to(precious)
    with pytest.raises(MeshError):
        _open(tmp_path)
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize("function", ["os.write", "os.fsync", "os.replace"])
def test_a_full_disk_is_named_and_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    partial = _open(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(function, full)
        with pytest.raises(MeshError) as caught:
            _complete(partial)
        assert caught.value.reason is Reason.STORAGE_FULL
        partial.close()
    assert not (tmp_path / "out").exists()
    again = _open(tmp_path)
    _fill(again)
    again.finish()
    again.close()
    assert (tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize("clones", [True, False])
def test_a_copy_takes_nothing_from_its_source_and_shares_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clones: bool
) -> None:
    def clone(target: BinaryIO, command: int, source: int) -> None:
        """As a disk that shares blocks, or one that cannot."""
        if not clones:
            raise OSError(errno.EOPNOTSUPP, "not here")
        os.write(target.fileno(), os.pread(source, SIZE, 0))

    monkeypatch.setattr(fcntl, "ioctl", clone)
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    partial = _open(tmp_path)
    _fill(partial, 3 * STEP)  # of a download that the copy makes needless
    with source.open("rb") as file:
        partial.copy(file)
    assert partial.offset == SIZE
    partial.finish()
    partial.close()
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert not os.path.samefile(source, tmp_path / "out")
    assert _names(tmp_path) == ["out", "source"]


def test_a_source_that_goes_on_growing_is_not_copied_for_ever(tmp_path: Path) -> None:
    partial = _open(tmp_path)
    with open("/dev/zero", "rb") as endless:
        partial.copy(endless)
    with pytest.raises(MeshError) as caught:
        partial.finish()
    partial.close()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
