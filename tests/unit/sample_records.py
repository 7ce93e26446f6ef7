"""Records and pictures for the tests of ``splitmesh.samples``."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from splitmesh.samples.kept import Added, StoreLimits
from splitmesh.samples.record import SampleRecord, new_id
from splitmesh.samples.store import SampleStore

NOW = datetime(2025, 3, 4, 10, 0, tzinfo=UTC)
ROOMY = StoreLimits(min_free_bytes=0)


def sample(n: int = 0, *, after_s: float | None = None, **fields: Any) -> SampleRecord:
    """A record ``n`` minutes, or ``after_s``, after NOW."""
    at = NOW + (timedelta(minutes=n) if after_s is None else timedelta(seconds=after_s))
    values: dict[str, Any] = {
        "id": new_id(at, n.to_bytes(10, "big")),
        "site": "lyon",
        "node": "mec-1",
        "camera": "line-1",
        "captured_at": at,
        "model": "joints",
        "version": 3,
        "kind": "hard",
        "why": "EASE_LOW",
    }
    return SampleRecord(**{**values, **fields})


def picture(dhash: int, *, ending: str = "PNG", shade: int = 0) -> bytes:
    """A picture with exactly this difference hash (9 x 8 pixels); ``shade``, up to 40, makes others of the same hash."""
    grey = np.full((8, 9), 120 + shade)
    for bit in range(64):
        row, column = divmod(bit, 8)
        step = -9 if dhash >> (63 - bit) & 1 else 9
        grey[row, column + 1] = grey[row, column] + step
    return encoded(Image.fromarray(grey.astype(np.uint8)), ending)


def encoded(image: Image.Image, ending: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, ending, **options)
    return stream.getvalue()


def spread(n: int) -> int:
    """Difference hashes that are far from each other for different small ``n``."""
    return n * 0x9E3779B97F4A7C15 % (1 << 64)


def add(store: SampleStore, n: int, **fields: Any) -> SampleRecord:
    """Adds sample ``n`` with a picture of its own; it has to be kept."""
    outcome = store.add(sample(n, **fields), picture(spread(n)))
    assert isinstance(outcome, Added), outcome
    return outcome.record


def files(folder: Path) -> set[str]:
    """Names of the contents, whole or not, below a store's folder."""
    return {path.name for path in (folder / "pictures").rglob("*") if path.is_file()}


def held(store: SampleStore) -> set[str]:
    """Contents that the store's records name."""
    records = [one.record for one in store.list(page_size=500).samples]
    return {digest for record in records for digest in (record.picture, record.features) if digest is not None}
