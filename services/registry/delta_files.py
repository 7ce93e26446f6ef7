"""Patches between files, as a child process makes and applies them. Blocking; knows paths, no registry."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.registry.content.disk import disk_error
from splitmesh.blobs.delta import apply_delta, make_delta


def make_file(base: str, target: str, delta: str, max_bytes: int) -> tuple[str, int] | None:
    """Writes the patch from one file to another; its SHA-256 and size, or None, nothing written, above ``max_bytes``."""
    data = make_delta(Path(base).read_bytes(), Path(target).read_bytes())
    return _written(delta, data) if len(data) <= max_bytes else None


def apply_file(base: str, delta: str, target: str, size_bytes: int) -> tuple[str, int]:
    """Writes what a patch makes; its SHA-256 and size. PAYLOAD_CORRUPT as :func:`apply_delta`."""
    return _written(target, apply_delta(Path(base).read_bytes(), Path(delta).read_bytes(), size_bytes))


def _written(path: str, data: bytes) -> tuple[str, int]:
    with _told():
        Path(path).write_bytes(data)
    return hashlib.sha256(data).hexdigest(), len(data)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if (told := disk_error(error)) is None:
            raise
        raise told from None
