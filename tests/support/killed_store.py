"""A process whose children write to a content store and kill themselves, each one step later than the one before.

Run as ``python -m tests.support.killed_store KIND FOLDER BUCKET``: child number n works in ``FOLDER/n`` and dies by SIGKILL
before its n-th call that changes a disk or a bucket, or in the middle of a write; the first one that lives ends it. What a child
was told to be done it notes in ``FOLDER/n/acknowledged``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import s3fs

from services.registry.content import bucket_shelf
from services.registry.content.port import ContentLimits
from tests.support.contents import LIMITS, BucketPlace, FolderPlace, Place, digest
from tests.support.s3 import Bucket

SECOND = b"second" * 2000
BATCH = [b"a" * 100, b"b" * 200, b"c" * 300]
FIRST = b"first" * 2000
PART_BYTES = 4000
"""The first content goes up in three parts; moto takes such small ones where it is told to."""
ACKNOWLEDGED = "acknowledged"
OWNER = "database"
MAX_STEPS = 200
AT_ONCE = 2
"""Children that live at the same time."""


def place(kind: str, folder: Path, bucket: Bucket, options: Mapping[str, Any] | None = None) -> Place:
    """Where child number ``folder.name`` works; ``options`` of fsspec beside the bucket's."""
    if kind == "folder":
        return FolderPlace(folder)
    return BucketPlace(folder, bucket, prefix=folder.name, options=options or {})


async def work(at: Place, note: Callable[[str], None]) -> None:
    """A claim, an upload in two parts, another one in one, and a batch."""
    store = at.make(ContentLimits(**LIMITS))  # type: ignore[arg-type]
    await store.start()
    await store.claim(OWNER, adopt=False)
    async with store.upload(digest(FIRST), len(FIRST)) as upload:
        assert upload is not None
        await upload.append(FIRST[:3000])
    note("part")
    for content, name in ((FIRST, "first"), (SECOND, "second")):
        async with store.upload(digest(content), len(content)) as upload:
            assert upload is not None
            await upload.append(content[upload.offset :])
            await upload.finish()
        note(name)
    await store.put([(digest(data), data) for data in BATCH])
    note("batch")
    await store.remove(digest(SECOND))
    note("removed")


class Death:
    """Comes at the n-th step, or in the middle of it."""

    def __init__(self, step: int) -> None:
        self._left = step

    def before(self, call: Callable[..., Any], middle: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """The call as it is, but for the last one."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._step()
            if middle is not None and self._left == 1:
                middle(*args)
                self._step()
            elif middle is not None:
                self._left -= 1
            return call(*args, **kwargs)

        return counted

    def before_request(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same for a method that sends requests to S3; those that only read are no steps."""

        async def counted(files: Any, request: str, *args: Any, **kwargs: Any) -> Any:
            if not request.startswith(("get_", "head_", "list_")):
                self._step()
            return await call(files, request, *args, **kwargs)

        return counted

    def _step(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def live(kind: str, folder: Path, bucket: Bucket, step: int) -> None:
    """One child's life."""
    folder.mkdir()
    notes = os.open(folder / ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT)
    plain_write, death = os.write, Death(step)

    def half(descriptor: int, data: memoryview) -> None:
        plain_write(descriptor, data[: len(data) // 2])

    def note(name: str) -> None:
        plain_write(notes, f"{name}\n".encode())

    if kind == "folder":
        os.write = death.before(plain_write, half)
    # What is staged for a bucket is written as for a folder: there the steps are requests, and what follows them.
    for name in ("fsync", "replace", "unlink", "mkdir") if kind == "folder" else ("unlink",):
        setattr(os, name, death.before(getattr(os, name)))
    s3fs.S3FileSystem._call_s3 = death.before_request(s3fs.S3FileSystem._call_s3)
    bucket_shelf.PART_BYTES = PART_BYTES
    asyncio.run(work(place(kind, folder, bucket), note))


def main() -> None:
    """Prints how many children died."""
    kind, folder, bucket = sys.argv[1], Path(sys.argv[2]), Bucket(**json.loads(sys.argv[3]))
    if kind == "bucket":  # read once what every child's client needs
        botocore.session.get_session().create_client("s3", region_name="us-east-1")
    for first in range(1, MAX_STEPS, AT_ONCE):
        steps = range(first, first + AT_ONCE)
        children = [born(kind, folder / str(step), bucket, step) for step in steps]
        for step, status in zip(steps, [os.waitpid(child, 0)[1] for child in children], strict=True):
            if status == 0:
                print(step - 1)
                return
            if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
                sys.exit(f"child {step} failed")
    sys.exit("the work has no end")


def born(kind: str, folder: Path, bucket: Bucket, step: int) -> int:
    """Process id of a child."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            live(kind, folder, bucket, step)
            status = 0
        finally:
            os._exit(status)
    return child


if __name__ == "__main__":
    main()
