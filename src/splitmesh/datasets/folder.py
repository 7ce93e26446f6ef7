"""The pictures and manifests of a site: a folder of bytes by their SHA-256, which several processes may work in.

``pictures`` and ``manifests`` are :class:`Contents`; ``lock`` is held while something is written or removed and holds how much
there is; ``taking`` is held by those who bring pictures before the manifest that names them. A picture is durable when
:meth:`PictureFolder.add` returns, and checked whenever it is read. :meth:`PictureFolder.remove_unused` is the only thing that
takes pictures away. Knows no network and no clock; what a site may let go, ``client.dataset_push`` knows.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from splitmesh.datasets.contents import Contents
from splitmesh.datasets.disk import named_errors
from splitmesh.datasets.likeness import look
from splitmesh.datasets.locked import Locked
from splitmesh.datasets.manifest import MAX_MANIFEST_BYTES, Dataset
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.preprocess import DEFAULT_MAX_PIXELS

UNREADABLE = frozenset({Reason.DIGEST_MISMATCH, Reason.FIELD_INVALID})
"""Why a manifest that is here cannot be read: the disk changed it, or a program of another release wrote it."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHAT = "the folder of pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLimits:
    """Bounds on what is kept."""

    max_picture_bytes: int = 64 << 20
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_pictures: int = 5_000_000
    max_bytes: int = 0
    """Of all pictures and manifests; 0: what the disk has."""
    min_free_bytes: int = 256 << 20
    """Of the disk, never taken."""
    lock_wait_s: float = 30.0
    """For another process to finish writing."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is in the folder."""

    pictures: int
    size_bytes: int
    """Of pictures and manifests."""


class PictureFolder:
    """One folder; nothing is made before something is kept. Methods are synchronous and safe in several threads."""

    def __init__(
        self,
        folder: Path,
        limits: FolderLimits | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = folder
        self._limits = limits or FolderLimits()
        self._pictures = Contents(folder / "pictures")
        self._manifests = Contents(folder / "manifests")
        wait_s = self._limits.lock_wait_s
        self._lock = Locked(folder / "lock", wait_s=wait_s, monotonic=monotonic, sleep=sleep)
        self._taking = Locked(folder / "taking", wait_s=wait_s, monotonic=monotonic, sleep=sleep)

    @contextmanager
    def taking_in(self) -> Iterator[None]:
        """Nothing is removed in the block: pictures may come before the manifest that names them, however long it takes.

        Waits for a removal in progress; SERVICE_UNAVAILABLE after ``lock_wait_s``.
        """
        with ExitStack() as held:
            with self._named_errors():
                held.enter_context(self._taking.held(shared=True))
            yield

    def add(self, data: bytes) -> str:
        """Keep a picture; its digest. One that is there becomes the newest again.

        Raises MeshError FRAME_TOO_LARGE, IMAGE_UNDECODABLE (also cut short, or of a format that heads refuse), IMAGE_TOO_LARGE,
        STORAGE_FULL; SERVICE_UNAVAILABLE when another process writes for longer than ``lock_wait_s``, or the disk fails.
        """
        if len(data) > self._limits.max_picture_bytes:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"the picture has {len(data)} bytes; at most {self._limits.max_picture_bytes} are kept",
                metadata={"limit_bytes": str(self._limits.max_picture_bytes)},
            )
        digest = hashlib.sha256(data).hexdigest()
        if not self._pictures.holds(digest, data):
            look(data, max_pixels=self._limits.max_pixels)
        with self._writing() as usage:
            self._put(self._pictures, digest, data, usage, pictures=1)
        return digest

    def read(self, digest: str) -> bytes:
        """A picture. MeshError ARTIFACT_NOT_FOUND; DIGEST_MISMATCH when the disk changed it; FIELD_INVALID for no digest;
        SERVICE_UNAVAILABLE when the folder may not be read."""
        _check(digest)
        with self._named_errors():
            try:
                size_bytes = self._pictures.path_of(digest).stat().st_size
            except FileNotFoundError as error:
                raise _gone(digest) from error
            if size_bytes > self._limits.max_picture_bytes:
                raise MeshError(Reason.DIGEST_MISMATCH, f"the picture {digest} was damaged: it has {size_bytes} bytes")
            return self._pictures.get(digest)

    def renew(self, digest: str) -> bool:
        """Whether a picture is here and whole; it is the newest then, as if it had been added again."""
        _check(digest)
        with self._writing():
            try:
                self.read(digest)
            except MeshError as error:
                if error.reason in (Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH):
                    return False
                raise
            os.utime(self._pictures.path_of(digest))
        return True

    def has(self, digest: str) -> bool:
        """Whether a picture is here; not whether the disk kept it well."""
        _check(digest)
        with self._named_errors():
            return self._pictures.path_of(digest).is_file()

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here, in the order asked, each once."""
        return [digest for digest in dict.fromkeys(digests) if not self.has(digest)]

    def keep_manifest(self, manifest: Dataset | bytes) -> str:
        """Keep a manifest, whether its pictures are here or not, and mend it where it was damaged; its digest. FIELD_INVALID for
        what is none, STORAGE_FULL."""
        if isinstance(manifest, bytes):
            Dataset.from_json(manifest)
        data = manifest if isinstance(manifest, bytes) else manifest.to_json()
        digest = hashlib.sha256(data).hexdigest()
        with self._writing() as usage:
            self._put(self._manifests, digest, data, usage, pictures=0)
        return digest

    def manifest(self, digest: str) -> Dataset:
        """A manifest that was kept. ARTIFACT_NOT_FOUND, and what is in ``UNREADABLE``."""
        _check(digest)
        with self._named_errors():
            path = self._manifests.path_of(digest)
            if path.is_file() and path.stat().st_size > MAX_MANIFEST_BYTES:
                raise MeshError(Reason.DIGEST_MISMATCH, f"the manifest {digest} was damaged")
            return Dataset.from_json(self._manifests.get(digest), sha256=digest)

    def manifests(self) -> list[str]:
        """Digests of those that are here, sorted."""
        with self._named_errors():
            return sorted(digest for digest, _ in self._manifests.sizes())

    def kept_at(self, digest: str) -> int:
        """When a manifest was kept last, nanoseconds since 1970; 0: it is not here."""
        _check(digest)
        path = self._manifests.path_of(digest)
        with self._named_errors(), suppress(FileNotFoundError):
            return path.stat().st_mtime_ns
        return 0

    def drop_manifest(self, digest: str, *, kept_at: int | None = None) -> bool:
        """Take a manifest away; its pictures go with :meth:`remove_unused`. Whether it was taken away.

        Args:
            digest: of the manifest, which is not read.
            kept_at: only if it was not kept again since :meth:`kept_at` said this; None: in any case.
        """
        with self._writing() as usage:
            now = self.kept_at(digest)
            if not now or kept_at not in (None, now):
                return False
            usage.size_bytes -= self._manifests.path_of(digest).stat().st_size
            self._manifests.remove(digest)
        return True

    def remove_unused(self, before: float) -> Usage:
        """Take away pictures that no manifest here names.

        Args:
            before: seconds since 1970; pictures added, or added again, since then stay: their manifest may be on its way.

        Returns what was removed. Nothing is removed when a manifest cannot be read (DIGEST_MISMATCH, FIELD_INVALID), when the
        folders of manifests cannot or are gone, or while somebody is :meth:`taking_in` for longer than ``lock_wait_s``
        (SERVICE_UNAVAILABLE).
        """
        wanted: set[str] = set()
        removed = left = left_bytes = removed_bytes = 0
        with self._named_errors(), self._taking.held(), self._writing() as usage:
            self._clear_unfinished()
            for digest in self.manifests():
                wanted.update(entry.picture for entry in self.manifest(digest).entries)
            for digest, size_bytes in list(self._pictures.sizes()):
                path = self._pictures.path_of(digest)
                if digest in wanted or path.stat().st_mtime >= before:
                    left, left_bytes = left + 1, left_bytes + size_bytes
                    continue
                self._pictures.remove(digest)
                removed, removed_bytes = removed + 1, removed_bytes + size_bytes
            usage.pictures = left
            usage.size_bytes = left_bytes + sum(size for _, size in self._manifests.sizes())
        return Usage(removed, removed_bytes)

    def usage(self) -> Usage:
        """What is here."""
        if not self._folder.exists():
            return Usage(0, 0)
        with self._writing() as usage:
            return Usage(usage.pictures, usage.size_bytes)

    def _put(self, contents: Contents, digest: str, data: bytes, usage: _Counted, *, pictures: int) -> None:
        path = contents.path_of(digest)
        if path.is_file():
            usage.size_bytes -= path.stat().st_size - len(data)
            contents.put(digest, data)  # looks at it, and mends what was damaged
            os.utime(path)
            return
        limits = self._limits
        if usage.pictures + pictures > limits.max_pictures:
            raise _full(f"it has {usage.pictures} pictures; at most {limits.max_pictures} are kept")
        if limits.max_bytes and usage.size_bytes + len(data) > limits.max_bytes:
            raise _full(f"{len(data)} more bytes do not fit: at most {limits.max_bytes} are kept")
        if len(data) > shutil.disk_usage(self._folder).free - limits.min_free_bytes:
            raise _full(f"{len(data)} bytes do not fit on the disk")
        # Counted before it is there: what is killed in between counts too much until it is counted anew, never too little.
        usage.pictures += pictures
        usage.size_bytes += len(data)
        self._save(usage)
        contents.put(digest, data)

    @contextmanager
    def _writing(self) -> Iterator[_Counted]:
        """Alone among all processes; what was counted is saved at the end."""
        with self._named_errors(), self._lock.held():
            usage = self._counted()
            yield usage
            self._save(usage)

    def _named_errors(self) -> AbstractContextManager[None]:
        return named_errors(_WHAT, self._folder)

    def _counted(self) -> _Counted:
        try:
            values = json.loads(self._lock.read())
            return _Counted(int(values["pictures"]), int(values["size_bytes"]))
        except (ValueError, KeyError, TypeError):
            self._clear_unfinished()  # new, or torn by a power cut
            sizes = [size for _, size in self._pictures.sizes()]
            return _Counted(len(sizes), sum(sizes) + sum(size for _, size in self._manifests.sizes()))

    def _clear_unfinished(self) -> None:
        if not self._manifests.prepared() and any(self._pictures.sizes()):
            problem = "it has pictures, and the folder manifests that says which are wanted is gone"
            ways = "put it back, or make manifests/incoming where none is to be kept"
            raise MeshError(Reason.SERVICE_UNAVAILABLE, f"{_WHAT}: {problem}: {ways}")
        self._pictures.prepare()
        self._manifests.prepare()

    def _save(self, usage: _Counted) -> None:
        self._lock.write(json.dumps({"pictures": usage.pictures, "size_bytes": usage.size_bytes}).encode())


@dataclass(slots=True)
class _Counted:
    pictures: int
    size_bytes: int


def _check(digest: str) -> None:
    # Also what keeps a caller inside the folder.
    if not _SHA256.fullmatch(digest):
        raise field_error("picture", f"{digest[:80]!r} is no SHA-256")


def _gone(digest: str) -> MeshError:
    return MeshError(
        Reason.ARTIFACT_NOT_FOUND, f"the picture {digest} is not in this folder", metadata={"sha256": digest}
    )


def _full(problem: str) -> MeshError:
    return MeshError(Reason.STORAGE_FULL, f"{_WHAT}: {problem}")
