"""Files on their way into a layout: nothing is made where no layout may be, and no process takes another's files away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.export.files import write_file
from splitmesh.export.oci import add_version
from splitmesh.export.oci_staging import LEFT_S, STAGING, staging
from tests.unit.test_oci import refused, version


def enter(layout: Path, name: str) -> None:
    with staging(layout, name):
        pass


def test_a_folder_with_other_files_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("x")
    assert "holds other files" in refused(Reason.FIELD_INVALID, enter, tmp_path, "solder-1").message
    assert "is no folder" in refused(Reason.FIELD_INVALID, enter, tmp_path / "letter.txt", "solder-1").message
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_damaged_layout_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "oci-layout").write_text("[")
    refused(Reason.MODEL_CORRUPT, enter, tmp_path, "solder-1")
    assert not (tmp_path / STAGING).exists()


def test_two_exports_at_once_keep_their_own_files_and_both_end_in_the_layout(tmp_path: Path) -> None:
    layout = tmp_path / "oci"
    with staging(layout, "solder-2") as slow:
        (slow / "part").write_text("half")
        with staging(layout, "solder-1") as quick:
            record, paths = version(quick)
            add_version(layout, record, paths, ["solder-1"])
        assert (slow / "part").read_text() == "half"
        record, paths = version(slow, 2)
        add_version(layout, record, paths, ["solder-2"])
    assert not (layout / STAGING).exists()


def test_the_same_version_is_exported_by_one_process_at_a_time(tmp_path: Path) -> None:
    with staging(tmp_path / "oci", "solder-1") as folder:
        (folder / "part").write_text("half")
        refused(Reason.QUEUE_FULL, enter, tmp_path / "oci", "solder-1")
        assert (folder / "part").exists()
    enter(tmp_path / "oci", "solder-1")


def test_an_export_that_was_cut_off_goes_on_with_what_it_left(tmp_path: Path) -> None:
    def cut_off() -> None:
        with staging(tmp_path / "oci", "solder-1") as folder:
            (folder / "part").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    with staging(tmp_path / "oci", "solder-1") as folder:
        assert (folder / "part").read_text() == "half"


def test_what_was_cut_off_is_taken_away_by_another_export_when_it_is_old_and_nobody_is_at_it(tmp_path: Path) -> None:
    layout, staged = tmp_path / "oci", tmp_path / "oci" / STAGING
    for name in ("solder-1", "solder-2"):
        (staged / name).mkdir(parents=True)
        (staged / name / "part").write_text("half")
    (staged / "notes.txt").write_text("x")
    (tmp_path / "letters").mkdir()
    (staged / "link").symlink_to(tmp_path / "letters")
    touched = (staged / "solder-1" / "part").stat().st_mtime
    for name in ("solder-1", "solder-2"):
        os.utime(staged / name, (1, 1))
    with staging(layout, "solder-3", now=lambda: touched + LEFT_S - 1):
        pass
    assert (staged / "solder-1" / "part").exists(), "it may be gone on with for a day"
    with staging(layout, "solder-2"):
        with staging(layout, "solder-3", now=lambda: touched + 2 * LEFT_S):
            pass
        assert sorted(one.name for one in staged.iterdir()) == ["link", "notes.txt", "solder-2"]
        assert (staged / "solder-2" / "part").exists()
    assert (tmp_path / "letters").exists()


def test_a_place_that_cannot_be_written_is_not_called_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    acts: list[Callable[[], None]] = [
        lambda: write_file(tmp_path / "file" / "x", b""),
        lambda: enter(tmp_path / "file" / "oci", "solder-1"),
    ]
    for act in acts:
        with pytest.raises(MeshError) as caught:
            act()
        assert caught.value.reason is Reason.SERVICE_UNAVAILABLE, caught.value
        assert "cannot be written" in caught.value.message
