"""What a disk refuses, as errors with a reason. Knows errno; nothing of what is kept there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitmesh.errors import MeshError, Reason

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def named_errors(what: str, folder: Path) -> Iterator[None]:
    """An OSError of the block, about ``what`` in ``folder``, as STORAGE_FULL when space is what is missing, else as
    SERVICE_UNAVAILABLE."""
    try:
        yield
    except OSError as error:
        problem = error.strerror or type(error).__name__
        if error.errno in _FULL:
            raise MeshError(Reason.STORAGE_FULL, f"{what}: it cannot be written: {problem}") from error
        inside = os.path.relpath(error.filename, folder) if isinstance(error.filename, str) else "."
        where = "" if inside == "." else f": {inside}"
        raise MeshError(Reason.SERVICE_UNAVAILABLE, f"{what} cannot be used: {problem}{where}") from error
