"""Small datasets in the forms of other tools, and what reading them finds."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splitmesh.datasets.files import Form, Options, Read, read
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.manifest import Dataset
from splitmesh.datasets.problems import Problems
from splitmesh.errors import MeshError, Reason


def png(n: int, width: int = 20, height: int = 10) -> bytes:
    """A picture that is another one for each ``n``."""
    pixels = np.random.default_rng(n).integers(0, 256, (height, width), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def lay(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files by their path below ``folder``, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def found_in(source: Path, form: Form, **options: Any) -> Read:
    """What is read; MeshError with all problems."""
    with Problems("source", "cannot be imported") as problems:
        return read(source, form, problems, Options(**options))


def labels_in(source: Path, form: Form, **options: Any) -> dict[str, str]:
    """Label by name."""
    return {one.item.name: one.item.label for one in found_in(source, form, **options).pictures}


def boxes_in(source: Path, form: Form, **options: Any) -> dict[str, list[tuple[object, ...]]]:
    """Boxes by name."""
    return {
        one.item.name: [(box.label, box.x, box.y, box.width, box.height) for box in one.item.boxes or ()]
        for one in found_in(source, form, **options).pictures
    }


def told(source: Path, form: Form, **options: Any) -> dict[str, str]:
    """What a source is refused with."""
    with pytest.raises(MeshError) as error:
        found_in(source, form, **options)
    assert error.value.reason is Reason.FIELD_INVALID
    return dict(error.value.fields)


def frozen(source: Path, form: Form, **options: Any) -> Dataset:
    """The manifest of everything that is read."""
    found = found_in(source, form, **options)
    items = [one.item for one in found.pictures]
    shares = {"train": 1.0, "val": 0.0, "test": 0.0}
    return freeze_items(items, task=found.task, seed=0, shares=shares, classes=found.classes)  # type: ignore[arg-type]
