"""The samples of one site on its disk: one SQLite file (write-ahead log, synchronous=FULL) and the pictures beside it.

A picture is on the disk before its record is, and a record is gone before its picture is; so whatever is killed when, no record
lacks its picture, and a picture without a record is removed at the next start. Everything that changes is one transaction.
Blocks on the disk: call it in a thread. Any thread may; one process at a time.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from splitmesh.datasets.contents import Contents, FolderLock
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples import tables
from splitmesh.samples.database import Reserve, open_database, unusable
from splitmesh.samples.intake import complete, count_if_known, make_room
from splitmesh.samples.kept import (
    MAX_PAGE,
    Added,
    Dropped,
    Duplicate,
    Filter,
    LabelEntry,
    Page,
    Sample,
    StoreCounts,
    StoreLimits,
    label_entries,
    page_of,
)
from splitmesh.samples.record import SampleRecord

T = TypeVar("T")
log = logging.getLogger(__name__)

Freed = list[str]
"""Contents that go once the transaction is committed; its work adds them."""
Work = Callable[[sqlite3.Connection, Freed], T]


class SampleStore:
    """A folder of samples. Before :meth:`open` and after :meth:`close` every method raises NOT_READY; reading and labelling raise
    STORAGE_FULL and SERVICE_UNAVAILABLE as the disk has it, adding never does."""

    def __init__(self, folder: Path, limits: StoreLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or StoreLimits()
        self._lock = threading.RLock()
        self._held = FolderLock(folder)
        self._contents = Contents(folder / "pictures")
        self._reserve = Reserve(folder / "reserve")
        self._database: sqlite3.Connection | None = None
        self._untold: Counter[str] = Counter()
        """Drops by reason that could not be written yet."""
        self._missing = 0

    def open(self) -> None:
        """Makes or opens, removes what a crash left, keeps to the limits. SERVICE_UNAVAILABLE: another holds it, or no store."""
        with self._lock:
            if self._database is not None:
                return
            try:
                self._held.take()
                self._database = open_database(self._folder / tables.FILE)
                self._contents.prepare()
                self._reserve.hold()
                self._sweep()
                self._change(lambda db, freed: freed.extend(make_room(db, self._limits)))
            except (OSError, sqlite3.Error) as error:
                self.close()
                raise unusable(error) from error
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Lets go; safe to call twice."""
        with self._lock:
            if self._database is not None:
                if self._untold:
                    with suppress(MeshError):
                        self._do(lambda db, freed: None)
                self._database.close()
                self._database = None
            self._held.release()

    def __enter__(self) -> SampleStore:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self, record: SampleRecord, picture: bytes | None = None, features: bytes | None = None
    ) -> Added | Duplicate | Dropped:
        """Keep a sample with its bytes; digests, sizes and media type in the record are filled in, or must be theirs.

        What fails is Dropped and counted; only a closed store raises (NOT_READY). The same id again changes nothing.
        """
        self._ready()
        try:
            full, dhash = complete(record, picture, features, self._limits)
        except MeshError as error:
            return self._dropped(error)
        with self._lock:
            try:
                self._leave_free(full.picture_bytes + full.features_bytes)
                return self._change(lambda db, freed: self._add(db, freed, full, dhash, picture, features))
            except MeshError as error:
                return self._dropped(error)
            except (OSError, sqlite3.Error) as error:
                self._let_go(full)
                return self._dropped(unusable(error))

    def count_dropped(self, dropped: Mapping[str, int]) -> None:
        """Count, by reason, samples that never came here; when the disk fails, with the next change."""
        with self._lock:
            self._ready()
            self._untold.update(dropped)
            with suppress(MeshError, OSError, sqlite3.Error):
                self._change(lambda db, freed: None)

    def get(self, sample_id: str) -> Sample:
        """SAMPLE_NOT_FOUND when there is none."""
        return self._read(lambda db: tables.found(db, sample_id))

    def list(self, wanted: Filter | None = None, *, page_token: str = "", page_size: int = 100) -> Page:
        """Newest capture first, 1 to 1,000 a page. FIELD_INVALID for another size and for a token of another filter."""
        if not 1 <= page_size <= MAX_PAGE:
            raise field_error("page_size", f"is {page_size}, expected 1 to {MAX_PAGE}")
        chosen = wanted or Filter()
        before = chosen.position(page_token)
        found = self._read(lambda db: tables.select(db, chosen, before, page_size + 1))
        return page_of(found, chosen, page_size)

    def picture(self, sample_id: str) -> bytes:
        """As it was sent. SAMPLE_NOT_FOUND; ARTIFACT_NOT_FOUND without a picture, DIGEST_MISMATCH when the disk damaged it."""
        return self._content(sample_id, self.get(sample_id).record.picture)

    def features(self, sample_id: str) -> bytes:
        """Likewise."""
        return self._content(sample_id, self.get(sample_id).record.features)

    def ids_of(self, picture: str) -> Sequence[str]:
        """Of every sample whose picture has this SHA-256, oldest first."""
        return self._read(lambda db: tables.ids_of(db, picture))

    def label(self, sample_id: str, label: str | None, by: str, at: datetime) -> Sample:
        """State what it shows; None takes the label back. The history keeps what was said before."""
        self.label_all({sample_id: label}, by, at)
        return self.get(sample_id)

    def label_all(self, labels: Mapping[str, str | None], by: str, at: datetime) -> int:
        """All of them or, with FIELD_INVALID or SAMPLE_NOT_FOUND, none; how many were not labelled so already."""
        entries = label_entries(labels, by, at)
        return self._do(lambda db, freed: sum(tables.label(db, key, entry) for key, entry in entries.items()))

    def history(self, sample_id: str) -> Sequence[LabelEntry]:
        """What was said of it, oldest first; the last 100."""
        self.get(sample_id)
        return self._read(lambda db: tables.history(db, sample_id))

    def delete(self, sample_id: str) -> None:
        """With its picture, unless another sample has the same. SAMPLE_NOT_FOUND."""

        def work(db: sqlite3.Connection, freed: Freed) -> None:
            tables.found(db, sample_id)
            freed += tables.remove(db, sample_id)

        self._do(work)

    def counts(self) -> StoreCounts:
        """How full it is, and of what."""
        return self._read(lambda db: tables.counts(db, self._untold, self._missing))

    def _add(
        self,
        db: sqlite3.Connection,
        freed: Freed,
        record: SampleRecord,
        dhash: int | None,
        picture: bytes | None,
        features: bytes | None,
    ) -> Added | Duplicate:
        known = count_if_known(db, record, dhash, self._limits)
        if known is not None:
            return known
        tables.insert(db, record, dhash)
        freed += make_room(db, self._limits, record)
        for digest, data in ((record.picture, picture), (record.features, features)):
            if digest is not None and data is not None:
                self._contents.put(digest, data)
        return Added(record)

    def _dropped(self, error: MeshError) -> Dropped:
        with self._lock:
            self._untold[error.reason.value] += 1
            with suppress(MeshError, OSError, sqlite3.Error):
                self._change(lambda db, freed: None)
        return Dropped(error.reason, error.message)

    def _leave_free(self, size: int) -> None:
        if shutil.disk_usage(self._folder).free - size < self._limits.min_free_bytes:
            raise MeshError(Reason.STORAGE_FULL, f"{size} bytes do not fit beside what the disk is to leave free")

    def _let_go(self, record: SampleRecord) -> None:
        """Of the contents of a record that could not be added; what stays all the same goes at the next start."""
        for digest in (record.picture, record.features):
            with suppress(MeshError, OSError, sqlite3.Error):
                if digest is not None and not tables.has_content(self._ready(), digest):
                    self._contents.remove(digest)

    def _sweep(self) -> None:
        """Remove contents without a record; see which were taken from their records."""
        wanted = tables.contents(self._ready())
        there, orphans = 0, 0
        for digest, size in self._contents.sizes():
            if digest not in wanted:
                self._contents.remove(digest)
                orphans += 1
            elif wanted[digest] == size:
                there += 1
        self._missing = len(wanted) - there
        if orphans or self._missing:
            log.warning("samples: removed %d contents without a record; %d are missing", orphans, self._missing)

    def _content(self, sample_id: str, digest: str | None) -> bytes:
        if digest is None:
            raise MeshError(Reason.ARTIFACT_NOT_FOUND, f"the sample {sample_id} has none")
        with self._lock:
            self._ready()
            try:
                return self._contents.get(digest)
            except OSError as error:
                raise unusable(error) from error

    def _ready(self) -> sqlite3.Connection:
        if self._database is None:
            raise MeshError(Reason.NOT_READY, "the store of samples is closed")
        return self._database

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return work(self._ready())
            except sqlite3.Error as error:
                raise unusable(error) from error

    def _do(self, work: Work[T]) -> T:
        """A change that has to be possible on a full disk too."""
        with self._lock:
            try:
                try:
                    return self._change(work)
                except sqlite3.Error as error:
                    if unusable(error).reason is not Reason.STORAGE_FULL:
                        raise
                    self._reserve.give_up()
                    result = self._change(work)
                    self._ready().execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    self._reserve.hold()
                    return result
            except (OSError, sqlite3.Error) as error:
                raise unusable(error) from error

    def _change(self, work: Work[T]) -> T:
        freed: Freed = []
        with self._lock:
            untold = self._untold.copy()
            with self._ready() as db:
                db.execute("BEGIN IMMEDIATE")
                for reason, n in untold.items():
                    tables.tally(db, "dropped", reason, n)
                result = work(db, freed)
            self._untold -= untold
            for digest in freed:
                with suppress(OSError):
                    self._contents.remove(digest)
        return result
