"""Which samples labels of a file are for, and giving them to a store: all of them or none.

A picture is known by the SHA-256 or the sample id in its name, as exports write it and labelling tools keep it (Label Studio
puts its own letters before), or by the SHA-256 of its bytes where it lies beside. A label is the picture's: every sample that
shows it gets it."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from splitmesh.datasets.problems import Problems
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.kept import Sample, not_found
from splitmesh.samples.label_files import Form, NamedLabel, read_labels
from splitmesh.samples.record import SampleRecord, checked_label

MAX_PICTURE_BYTES = 64 << 20
"""A larger file is not read to find out what it is."""

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_ID = re.compile(r"(?<![0-9A-Za-z])[0-7][0-9A-HJKMNP-TV-Z]{25}(?![0-9A-Za-z])")


class Known(Protocol):
    """Where it is known which samples there are."""

    def get(self, sample_id: str) -> Sample:
        """SAMPLE_NOT_FOUND when there is none."""
        ...

    def ids_of(self, picture: str) -> Sequence[str]:
        """Of every sample whose picture has this SHA-256."""
        ...


class Labelled(Known, Protocol):
    """Where labels go: a store, or folders beside their owners."""

    def label_all(self, labels: Mapping[str, str | None], by: str, at: datetime) -> int:
        """All of them or none; how many were not labelled so already."""
        ...


class Index:
    """Records in memory, where no store is at hand."""

    def __init__(self, records: Iterable[SampleRecord]) -> None:
        self._records = {record.id: record for record in records}
        self._by_picture = defaultdict[str, list[str]](list)
        for record in sorted(self._records.values(), key=lambda record: record.id):
            if record.picture is not None:
                self._by_picture[record.picture].append(record.id)

    def get(self, sample_id: str) -> Sample:
        """SAMPLE_NOT_FOUND when there is none."""
        if sample_id not in self._records:
            raise not_found(sample_id)
        record = self._records[sample_id]
        return Sample(record, 0, record.captured_at)

    def ids_of(self, picture: str) -> Sequence[str]:
        """Of every sample whose picture has this SHA-256, oldest first."""
        return self._by_picture.get(picture, [])


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    samples: int
    """That the source has a label for."""
    changed: int
    """Of these, without that label by that person before."""


def import_labels(
    store: Labelled, source: Path, *, form: Form, by: str, at: datetime, classes: Sequence[str] = ()
) -> Imported:
    """Give the labels of ``source`` to the samples of the store.

    Args:
        store: an open one.
        source: see :func:`~splitmesh.samples.label_files.read_labels`.
        form: what ``source`` is; an exported folder is both class folders and a table, and only who changed it knows which.
        by: who says so.
        at: when, with a zone.
        classes: the labels there may be; empty: any.

    Raises MeshError FIELD_INVALID with the first 20 problems (files that are no sample's, labels that are no class, two labels
    for one sample, names out of the folder, links, files too large); then no label was changed. And as the store does.
    """
    labels = labels_of(source, store, form=form, classes=classes)
    return Imported(len(labels), store.label_all(dict(labels), by, at))


def labels_of(source: Path, known: Known, *, form: Form, classes: Sequence[str] = ()) -> dict[str, str]:
    """The labels of ``source`` by sample id. Arguments and errors as of :func:`import_labels`."""
    with Problems("labels", "cannot be imported") as problems:
        return match(read_labels(source, form, problems), known, problems, classes)


def match(named: Sequence[NamedLabel], known: Known, problems: Problems, classes: Sequence[str] = ()) -> dict[str, str]:
    """Labels by sample id; what is no sample's, no class or said twice goes to ``problems``."""
    allowed = frozenset(classes)
    labels: dict[str, str] = {}
    for entry in named:
        problem = _problem(entry.label, allowed)
        if problem:
            problems.add(entry.name, problem)
            continue
        try:
            ids = _samples(entry, known)
        except MeshError as error:
            if error.reason is not Reason.IMAGE_TOO_LARGE:
                raise
            problems.add(entry.name, error.message)
            continue
        if not ids:
            problems.add(entry.name, "is no sample of this store")
        for sample_id in ids:
            if labels.setdefault(sample_id, entry.label) != entry.label:
                problems.add(entry.name, f"has two labels: {labels[sample_id]!r} and {entry.label!r}")
                break
    return labels


def _problem(label: str, allowed: frozenset[str]) -> str:
    if allowed and label not in allowed:
        return f"has the label {label!r}, which is none of the classes"
    try:
        checked_label("label", label)
    except MeshError as error:
        return error.message
    return ""


def _samples(entry: NamedLabel, known: Known) -> Sequence[str]:
    name = entry.name.rpartition("/")[2]
    for pattern, find in _BY_NAME:
        for known_as in pattern.findall(name):
            if ids := find(known, known_as):
                return ids
    return known.ids_of(_digest(entry.file)) if entry.file is not None else ()


def _by_id(known: Known, sample_id: str) -> Sequence[str]:
    try:
        record = known.get(sample_id).record
    except MeshError as error:
        if error.reason is Reason.SAMPLE_NOT_FOUND:
            return ()
        raise
    return (sample_id,) if record.picture is None else known.ids_of(record.picture)


_BY_NAME: tuple[tuple[re.Pattern[str], Callable[[Known, str], Sequence[str]]], ...] = (
    (_DIGEST, lambda known, digest: known.ids_of(digest)),
    (_ID, _by_id),
)


def _digest(file: Path) -> str:
    size = file.stat().st_size
    if size > MAX_PICTURE_BYTES:
        detail = f"has {size} bytes; at most {MAX_PICTURE_BYTES} are read to find out what it is"
        raise MeshError(Reason.IMAGE_TOO_LARGE, detail)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
