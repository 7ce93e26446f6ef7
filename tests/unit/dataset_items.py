"""Items, pictures and datasets for the tests of ``splitmesh.datasets``."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from PIL import Image

from splitmesh.datasets.item import Item
from splitmesh.datasets.manifest import Box

NOW = datetime(2025, 3, 4, 10, 0, tzinfo=UTC)


def digest_of(n: int | bytes) -> str:
    """Of picture ``n``, or of these bytes."""
    return hashlib.sha256(n if isinstance(n, bytes) else str(n).encode()).hexdigest()


def item(n: int, **fields: Any) -> Item:
    """Picture ``n`` of a line's camera, ten minutes after the one before it."""
    values: dict[str, Any] = {
        "picture": digest_of(n),
        "picture_bytes": 1000 + n,
        "media_type": "image/jpeg",
        "width": 640,
        "height": 480,
        "label": ("good", "bad")[n % 3 == 0],
        "site": "lyon",
        "camera": f"line-{n % 4}",
        "captured_at": NOW + timedelta(minutes=10 * n),
        "labelled_by": "ana",
        "name": f"file-{n}",
    }
    return Item(**{**values, **fields})


def box(label: str = "bolt", x: float = 10, y: float = 20, width: float = 30, height: float = 40) -> Box:
    """Where a thing is."""
    return Box(label=label, x=x, y=y, width=width, height=height)


def boxed(n: int, *boxes: Box, **fields: Any) -> Item:
    """Picture ``n`` of a detection."""
    return item(n, **{"label": "", "boxes": boxes, **fields})


def scene(seed: int, *, width: int = 96, height: int = 80, mode: str = "L") -> Image.Image:
    """A picture of large soft shapes, other ones for another seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """As a file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()
