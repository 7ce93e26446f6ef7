"""`splitmesh samples export` where pictures are damaged, large or late."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from splitmesh.cli import samples_files
from splitmesh.cli.samples_source import Here
from splitmesh.datasets.contents import Contents
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS
from splitmesh.samples.kept import Added, StoreLimits
from splitmesh.samples.store import SampleStore
from tests.integration.command_line import Ended, refused, splitmesh_here
from tests.unit.sample_records import add, encoded, sample


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SampleStore]:
    """Of a head that runs."""
    with SampleStore(tmp_path / "head" / "samples", StoreLimits(min_free_bytes=0, max_pixels=1 << 25)) as store:
        yield store


def here(tmp_path: Path, *arguments: object) -> Ended:
    return splitmesh_here("samples", *arguments, "--data-dir", tmp_path / "head")


def test_a_damaged_picture_is_left_out_of_an_export_and_told_of(store: SampleStore, tmp_path: Path) -> None:
    bad = add(store, 1)
    add(store, 2)
    Contents(tmp_path / "head" / "samples" / "pictures").path_of(bad.picture or "").write_bytes(b"damaged")
    out = here(tmp_path, "export", tmp_path / "set", "--format", "coco").out
    assert "1 pictures" in out
    assert "1 damaged where they are kept" in out


def test_an_export_into_the_folder_one_works_in_is_refused(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, 1)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "where this command runs" in refused(here(tmp_path, "export", ".", "--format", "coco"), "FIELD_INVALID")


def test_a_picture_of_a_camera_with_many_pixels_is_made_small_on_its_host(store: SampleStore, tmp_path: Path) -> None:
    side = 4097
    assert side * side > DEFAULT_MAX_PIXELS
    kept = store.add(sample(1), encoded(Image.new("1", (side, side)), "PNG"))
    assert isinstance(kept, Added)
    assert here(tmp_path, "show", kept.record.id, "--thumbnail", tmp_path / "t.jpg").code == 0
    with Image.open(tmp_path / "t.jpg") as small:
        assert small.size == (160, 160)


def test_a_picture_that_does_not_come_in_time_is_named(
    store: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = add(store, 1)
    monkeypatch.setattr(samples_files, "PICTURE_S", 0.01)
    monkeypatch.setattr(Here, "content", lambda *_: asyncio.Event().wait())
    assert kept.id in refused(here(tmp_path, "export", tmp_path / "set", "--format", "coco"), "DEADLINE_EXPIRED")
    assert not (tmp_path / "set").exists()
