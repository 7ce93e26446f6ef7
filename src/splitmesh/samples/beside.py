"""Samples in folders that other processes own: read, and labelled, beside them.

A head that runs in several processes has one folder for each; together they are one collection here. Reading takes part in no
lock. A label is a transaction of SQLite, which keeps several writers of one file apart by itself, so it needs no owner either;
contents are their owner's alone to write and to remove, and may be gone a moment after their record was read.
Blocks on the disk: call it in a thread. Any thread may.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from heapq import merge
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from splitmesh.datasets.contents import Contents
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples import tables
from splitmesh.samples.database import Reserve, unusable
from splitmesh.samples.kept import (
    MAX_PAGE,
    Filter,
    LabelEntry,
    Page,
    Sample,
    StoreCounts,
    label_entries,
    not_found,
    page_of,
)

T = TypeVar("T")

FOLDER = "samples"
"""Of a store, below a head's `data_dir`."""
BUSY_S = 5.0
"""Longest wait for another writer of a folder."""


class Beside:
    """The samples of several folders as one collection.

    Args:
        folders: asked anew for each call, so that a folder that appears is seen; those without samples are passed over.

    Every method raises SERVICE_UNAVAILABLE where a folder cannot be read, or was made by a later program.
    """

    def __init__(self, folders: Callable[[], Iterable[Path]]) -> None:
        self._folders = folders

    def list(self, wanted: Filter | None = None, *, page_token: str = "", page_size: int = 100) -> Page:
        """As :meth:`SampleStore.list`, over all folders."""
        if not 1 <= page_size <= MAX_PAGE:
            raise field_error("page_size", f"is {page_size}, expected 1 to {MAX_PAGE}")
        chosen = wanted or Filter()
        before = chosen.position(page_token)
        found = self._each(lambda db: tables.select(db, chosen, before, page_size + 1))
        newest = merge(*found, key=lambda one: one.record.id, reverse=True)
        return page_of(list(islice(newest, page_size + 1)), chosen, page_size)

    def all(self, wanted: Filter | None = None) -> Iterator[Sample]:
        """Newest first, page by page; what comes or goes meanwhile may be there or not."""
        token = ""
        while True:
            page = self.list(wanted, page_token=token, page_size=MAX_PAGE)
            yield from page.samples
            token = page.next_page_token
            if not token:
                return

    def get(self, sample_id: str) -> Sample:
        """SAMPLE_NOT_FOUND when no folder has it."""
        return self._where(sample_id)[1]

    def with_history(self, sample_id: str) -> tuple[Sample, Sequence[LabelEntry]]:
        """As of one moment; the history of its labels oldest first. SAMPLE_NOT_FOUND."""
        for folder in self._with_samples():
            with _reading(folder) as db:
                if (sample := tables.sample(db, sample_id)) is not None:
                    return sample, tables.history(db, sample_id)
        raise not_found(sample_id)

    def picture(self, sample_id: str) -> bytes:
        """As it was sent. SAMPLE_NOT_FOUND; ARTIFACT_NOT_FOUND without one; DIGEST_MISMATCH when the disk damaged it."""
        folder, sample = self._where(sample_id)
        return _content(folder, sample_id, sample.record.picture)

    def features(self, sample_id: str) -> bytes:
        """Likewise."""
        folder, sample = self._where(sample_id)
        return _content(folder, sample_id, sample.record.features)

    def ids_of(self, picture: str) -> Sequence[str]:
        """Of every sample whose picture has this SHA-256, oldest first."""
        return sorted(chain(*self._each(lambda db: tables.ids_of(db, picture))))

    def counts(self) -> StoreCounts:
        """Sums over the folders, as far as they are on the disk."""
        total = StoreCounts(0, 0, 0, 0, {}, {}, {}, {}, {}, 0)
        for one in self._each(lambda db: tables.counts(db, {}, 0)):
            total = total.plus(one)
        return total

    def label_all(self, labels: Mapping[str, str | None], by: str, at: datetime) -> int:
        """All of them or, with FIELD_INVALID, SAMPLE_NOT_FOUND or STORAGE_FULL, none; how many were not labelled so already.

        Only a disk that fails between two folders' commits can leave the labels of the first one; repeating the call is harmless
        and completes it.
        """
        entries = label_entries(labels, by, at)
        folders = self._with_samples()
        try:
            return _label(folders, entries)
        except MeshError as error:
            if error.reason is not Reason.STORAGE_FULL:
                raise
        reserves = [Reserve(folder / "reserve") for folder in folders]
        for reserve in reserves:
            reserve.give_up()
        try:
            return _label(folders, entries)
        finally:
            for folder, reserve in zip(folders, reserves, strict=True):
                with suppress(MeshError), _opened(folder, "rw") as db:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                reserve.hold()

    def _where(self, sample_id: str) -> tuple[Path, Sample]:
        for folder in self._with_samples():
            with _reading(folder) as db:
                if (sample := tables.sample(db, sample_id)) is not None:
                    return folder, sample
        raise not_found(sample_id)

    def _each(self, work: Callable[[sqlite3.Connection], T]) -> Sequence[T]:
        results = []
        for folder in self._with_samples():
            with _reading(folder) as db:
                results.append(work(db))
        return results

    def _with_samples(self) -> Sequence[Path]:
        return sorted(folder for folder in self._folders() if (folder / tables.FILE).is_file())


def _label(folders: Sequence[Path], entries: Mapping[str, LabelEntry]) -> int:
    left = dict(entries)
    changed = 0
    with ExitStack() as stack:
        # in the order of the folders, so that two who label cannot wait for each other
        databases = [stack.enter_context(_opened(folder, "rw")) for folder in folders]
        for db in databases:
            db.execute("BEGIN IMMEDIATE")
            for sample_id in [key for key in left if tables.sample(db, key) is not None]:
                changed += tables.label(db, sample_id, left.pop(sample_id))
        if left:
            raise not_found(next(iter(left)))
        for db in databases:
            db.execute("COMMIT")
    return changed


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    with _opened(folder, "ro") as db:
        db.execute("BEGIN")
        yield db


@contextmanager
def _opened(folder: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """What is not committed when it ends is not done. A file that its owner has not filled yet holds no samples."""
    uri = f"{(folder / tables.FILE).absolute().as_uri()}?mode={mode}"
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_S)) as db:
            db.execute("PRAGMA synchronous = FULL")
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found == 0:  # its owner was killed, or has not come so far
                with closing(sqlite3.connect(":memory:", isolation_level=None)) as empty:
                    empty.executescript(tables.SCHEMA)
                    yield empty
                return
            if found != tables.SCHEMA_VERSION:
                raise MeshError(
                    Reason.SERVICE_UNAVAILABLE,
                    f"the samples in {folder} have schema {found}; this program knows {tables.SCHEMA_VERSION}",
                )
            yield db
    except (OSError, sqlite3.Error) as error:
        raise unusable(error) from error


def _content(folder: Path, sample_id: str, digest: str | None) -> bytes:
    if digest is None:
        raise MeshError(Reason.ARTIFACT_NOT_FOUND, f"the sample {sample_id} has none")
    try:
        return Contents(folder / "pictures").get(digest)
    except OSError as error:
        raise unusable(error) from error


def folders_of(data_dir: Path) -> list[Path]:
    """Of a head's `data_dir`: its own, and those of the processes that share its port."""
    return [data_dir / FOLDER, *sorted(data_dir.glob(f"replica-*/{FOLDER}"))]


def folders_beside(data_dir: Path) -> list[Path]:
    """Of one process's `data_dir`: with those of its siblings, where it is one of several."""
    replica = data_dir.name.startswith("replica-") and data_dir.name.removeprefix("replica-").isdigit()
    return folders_of(data_dir.parent if replica else data_dir)
