"""Which pictures a store takes, and what it says they are."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from splitmesh.datasets import likeness
from splitmesh.errors import Reason
from splitmesh.samples.kept import Added, Dropped
from splitmesh.samples.store import SampleStore
from splitmesh.samples.thumbnail import thumbnail
from tests.unit.sample_records import ROOMY, encoded, picture, sample, spread


def test_a_jpeg_with_an_index_of_further_pictures_is_kept_as_a_jpeg(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (32, 24), "red"), Image.new("RGB", (32, 24), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    with SampleStore(tmp_path, ROOMY) as store:
        outcome = store.add(sample(1), data)
        assert isinstance(outcome, Added)
        record = outcome.record
        assert (record.media_type, record.width, record.height) == ("image/jpeg", 32, 24)
        assert store.picture(record.id) == data
    assert Image.open(io.BytesIO(thumbnail(data))).size == (32, 24)


def test_a_format_without_a_media_type_is_no_picture_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "MEDIA_TYPES", {"JPEG": "image/jpeg"})
    with SampleStore(tmp_path, ROOMY) as store:
        outcome = store.add(sample(1), picture(spread(1)))
        assert isinstance(outcome, Dropped)
        assert (outcome.reason, store.counts().dropped) == (Reason.IMAGE_UNDECODABLE, {"IMAGE_UNDECODABLE": 1})
