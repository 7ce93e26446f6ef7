"""Calls to an object store: an fsspec file system with bounded waits, and its errors in our words.

Knows fsspec, and of S3 only how its client is told to give up. What it says of an error names neither key nor secret.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import fsspec

from services.registry.content.disk import Disk, disk_error, to_the_end
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)

CALLS = 16
"""Calls at once, of those that read for a caller, of those that ask what is there, and of the others; one more waits for one
of its kind."""
_S3 = {"s3", "s3a"}
_S3_CLIENT = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"max_attempts": 3, "mode": "standard"},
    "max_pool_connections": 3 * CALLS,
}
_S3_TRIES = 2
"""Of s3fs itself, for errors that its client does not try again."""
_SHOWN_OPTIONS = {"endpoint_url", "region_name"}
_SECRET_CHARS = 4
"""Shorter values of options are found in every other word."""
_CAUSE_CHARS = 300
_RETRY_AFTER_S = 5.0

T = TypeVar("T")


class Remote:
    """One file system and the folder in it that is ours.

    Args:
        url: such as ``s3://bucket/prefix``; not of this machine's own files, which can be half visible.
        options: of the fsspec file system, such as ``endpoint_url``, ``key`` and ``secret``.

    Raises:
        MeshError: FIELD_INVALID, the URL or the options cannot be used; EXTRA_MISSING.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.shown = re.sub(r"//[^/@]*@", "//", url).partition("?")[0]
        """The URL as it may be read by anybody."""
        protocol = url.partition("://")[0] if "://" in url else "file"
        if protocol in ("file", "local"):
            raise field_error("contents_url", f"{self.shown!r} is no object store; leave it empty for a folder")
        settings: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True, **options}
        if protocol in _S3:
            settings["config_kwargs"] = {**_S3_CLIENT, **settings.get("config_kwargs", {})}
        try:
            self.files, root = fsspec.core.url_to_fs(url, **settings)
        except ImportError as error:
            raise MeshError(
                Reason.EXTRA_MISSING, f"{self.shown!r} needs a package that is not installed, such as s3fs for s3://"
            ) from error
        except (ValueError, TypeError) as error:
            raise field_error("contents_url", f"{self.shown!r} cannot be used ({type(error).__name__})") from error
        if protocol in _S3:
            self.files.retries = _S3_TRIES
        self.root = str(root).rstrip("/")
        self._secrets = sorted(_secrets(options), key=len, reverse=True)
        self._readers = Disk(CALLS, name="registry-bucket-reads")
        self._askers = Disk(CALLS, name="registry-bucket-asks")
        self._others = Disk(CALLS, name="registry-bucket")

    async def read(self, work: Callable[[], T]) -> T:
        """As :meth:`call`, for what is quickly done and somebody waits for: it does not queue behind what takes long."""
        return await self._readers.run(lambda: self._guarded(work))

    async def ask(self, work: Callable[[], T]) -> T:
        """As :meth:`write`, for sizes and listings: many of them stand in the way of no reader, and no upload in theirs."""
        return await self._needs_bucket(self._askers, work)

    async def write(self, work: Callable[[], T]) -> T:
        """As :meth:`call`, for work that fails for want of an object only where the bucket is gone: SERVICE_UNAVAILABLE."""
        return await self._needs_bucket(self._others, work)

    async def each(
        self, works: Sequence[Callable[[], T]], at_once: int, run: Callable[[Callable[[], T]], Awaitable[T]]
    ) -> list[T]:
        """All of them by :meth:`ask` or :meth:`write`, so many at once. After an error, or when the caller leaves, none is begun
        any more, and it returns when those in progress are over."""
        done: dict[int, T] = {}
        left = iter(enumerate(works))

        async def some() -> None:
            for number, work in left:
                done[number] = await run(work)

        tasks = [asyncio.create_task(some()) for _ in range(min(at_once, len(works)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await to_the_end(asyncio.gather(*tasks, return_exceptions=True))
        return [done[number] for number in range(len(works))]

    async def call(self, work: Callable[[], T]) -> T:
        """Runs work that calls ``files`` in a thread.

        Raises:
            FileNotFoundError: there is no such object (or bucket).
            MeshError: SERVICE_UNAVAILABLE, the store does not answer or refuses; those of this machine's disk.
        """
        return await self._others.run(lambda: self._guarded(work))

    def not_ready(self, error: BaseException) -> MeshError:
        """The store cannot be used from the start."""
        what = "it does not answer as it should"
        if isinstance(error, FileNotFoundError):
            what = "there is no such bucket"
        elif isinstance(error, PermissionError):
            what = "access is denied"
        return MeshError(Reason.NOT_READY, f"the contents' store {self.shown} cannot be used: {what}")

    def close(self) -> None:
        """Waits for calls in progress, and lets connections go."""
        self._readers.close()
        self._askers.close()
        self._others.close()
        if (session := getattr(self.files, "_s3", None)) is not None:
            self.files.close_session(self.files.loop, session)

    async def _needs_bucket(self, threads: Disk, work: Callable[[], T]) -> T:
        try:
            return await threads.run(lambda: self._guarded(work))
        except FileNotFoundError as error:
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, "the contents' store has lost its bucket", retry_after_s=_RETRY_AFTER_S
            ) from error

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (FileNotFoundError, MeshError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and disk_error(error) is not None:
                raise
            log.warning("a call to %s failed: %s: %s", self.shown, type(error).__name__, self._cause(error))
            kind = "refuses access" if isinstance(error, PermissionError) else "does not answer as it should"
            raise MeshError(
                Reason.SERVICE_UNAVAILABLE, f"the contents' store {kind}", retry_after_s=_RETRY_AFTER_S
            ) from error

    def _cause(self, error: BaseException) -> str:
        """What the store says, on one line, without what it may quote of our options."""
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"(//)[^/@\s]*@|\?\S*", r"\1", text)[:_CAUSE_CHARS]


def _secrets(options: object, name: str = "") -> Iterator[str]:
    """Every text in the options, at any depth, but for what is certainly none."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            yield from _secrets(value, str(key))
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _secrets(value, name)
    elif isinstance(options, str) and len(options) >= _SECRET_CHARS and name not in _SHOWN_OPTIONS:
        yield options
