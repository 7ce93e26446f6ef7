"""The content store of a registry whose contents are objects: S3, or what else fsspec reaches.

Made of :mod:`staged` and :mod:`bucket_shelf`; knows no more than where things lie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.registry.content.bucket_shelf import BucketShelf
from services.registry.content.port import ContentLimits
from services.registry.content.remote import Remote
from services.registry.content.staged import StagedStore


class BucketStore(StagedStore):
    """Contents in a bucket; one process at a time writes to it.

    Args:
        url: such as ``s3://bucket/prefix``.
        staging: folder of this machine for unfinished uploads and for contents read as files; it is there.
        limits: bounds; what is staged counts too.
        storage_options: of the fsspec file system, such as ``endpoint_url``, ``key`` and ``secret``.

    Raises:
        MeshError: FIELD_INVALID, the URL or the options cannot be used.
    """

    def __init__(
        self,
        url: str,
        staging: Path,
        limits: ContentLimits,
        *,
        storage_options: Mapping[str, Any],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        shelf = BucketShelf(Remote(url, storage_options), staging / "downloads")
        super().__init__(shelf, staging / "uploads", limits, now=now, clock=clock)
