"""Content stores under test: a folder, and a bucket on moto's server, with the clock in the test's hand."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fsspec

from services.registry.content.bucket import BucketStore
from services.registry.content.folder import FolderStore
from services.registry.content.ownership import MARK
from services.registry.content.port import ContentLimits
from services.registry.content.staged import StagedStore
from tests.support.s3 import S3, Bucket, objects

LIMITS = {
    "max_artifact_bytes": 10_000_000,
    "max_store_bytes": 0,
    "min_free_bytes": 0,
    "upload_wait_s": 10.0,
    "stale_upload_s": 100.0,
    "sweep_every_s": 3600.0,
}


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


class Place(ABC):
    """Where a store keeps things; stores come and go over it, as processes do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ahead_s = 0.0
        self.stepped_s = 0.0
        """So far has the wall clock been set, and no other."""
        self._started_at = time.time()

    def now(self) -> float:
        """A clock that stands still until it is moved."""
        return self._started_at + self.ahead_s + self.stepped_s

    def clock(self) -> float:
        """The same, monotonic."""
        return self.ahead_s

    @asynccontextmanager
    async def store(self, **limits: float) -> AsyncIterator[StagedStore]:
        """A started store."""
        store = self.make(ContentLimits(**{**LIMITS, **limits}))  # type: ignore[arg-type]
        await store.start()
        try:
            yield store
        finally:
            await store.stop()

    @abstractmethod
    def make(self, limits: ContentLimits) -> StagedStore:
        """A store, not started."""

    @abstractmethod
    def whole(self) -> dict[str, bytes]:
        """What lies there as whole contents, by name, seen from outside."""

    @abstractmethod
    def damage(self, sha256: str, data: bytes) -> None:
        """Other bytes in place of a whole content."""

    def unfinished(self) -> dict[str, int]:
        """Unfinished uploads with their sizes."""
        return {path.name: path.stat().st_size for path in (self.folder / "uploads").iterdir()}

    def left_over(self) -> list[str]:
        """Files that are neither."""
        known = ("uploads", "blobs", "damaged", MARK)
        files = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        return [str(path) for path in files if path.parts[0] not in known]


class FolderPlace(Place):
    """A folder."""

    def make(self, limits: ContentLimits) -> StagedStore:
        return FolderStore(self.folder, limits, now=self.now, clock=self.clock)

    def whole(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "blobs").rglob("*") if path.is_file()}

    def damage(self, sha256: str, data: bytes) -> None:
        (self.folder / "blobs" / sha256[:2] / sha256).write_bytes(data)


class BucketPlace(Place):
    """A bucket, and a folder for what is staged."""

    def __init__(
        self, folder: Path, bucket: Bucket, prefix: str = "contents", options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(folder)
        self._options = options or {}
        self.bucket = bucket
        self.prefix = prefix

    def make(self, limits: ContentLimits) -> StagedStore:
        return BucketStore(
            f"s3://{self.bucket.name}/{self.prefix}",
            self.folder,
            limits,
            storage_options={**self.bucket.options, **self._options},
            now=self.now,
            clock=self.clock,
        )

    def files(self) -> Any:
        """The bucket as an fsspec file system, beside the store's."""
        return fsspec.filesystem("s3", use_listings_cache=False, **self.bucket.options)

    def whole(self) -> dict[str, bytes]:
        mine = {name: data for name, data in objects(self.bucket.name).items() if name.startswith(f"{self.prefix}/")}
        found = {name.rpartition("/")[2]: data for name, data in mine.items() if "/damaged/" not in name}
        found.pop(MARK, None)
        return found

    def damage(self, sha256: str, data: bytes) -> None:
        self.files().pipe_file(f"{self.bucket.name}/{self.prefix}/{sha256[:2]}/{sha256}", data)


def place_of(kind: str, folder: Path, s3: S3) -> Place:
    """An empty ``folder`` or ``bucket``."""
    return FolderPlace(folder) if kind == "folder" else BucketPlace(folder, s3.bucket())


async def write(store: StagedStore, content: bytes, *, upto: int | None = None, sha256: str = "") -> None:
    """Appends from where the upload stands; finishes it unless ``upto`` stops it earlier."""
    async with store.upload(sha256 or digest(content), len(content)) as upload:
        assert upload is not None
        await upload.append(content[upload.offset : upto])
        if upto is None:
            await upload.finish()
