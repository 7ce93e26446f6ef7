"""Statements about datasets, and about who names a content; pictures come and go in ``sql_pictures``.

Knows no transaction and no thread: the caller has both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, Select, delete, insert, select, update

from services.registry.metadata.acts import dataset_created, dataset_deleted
from services.registry.metadata.records import Actor, Artifact, Dataset, DatasetDraft, DatasetVersion, Signature
from services.registry.metadata.refusals import dataset_not_found, version_in_use, version_not_found
from services.registry.metadata.sql_log import log
from services.registry.metadata.sql_versions import next_version, require_dataset_version
from services.registry.metadata.tables import (
    artifacts,
    dataset_signatures,
    dataset_versions,
    datasets,
    lineage_datasets,
    pictures,
)
from splitmesh.sql.times import from_us, to_us

_AT_ONCE = 1000
"""Digests in one statement; SQLite and PostgreSQL take some ten thousand values."""


def find_dataset_request(connection: Connection, dataset: str, request_id: str) -> DatasetVersion | None:
    """See the port."""
    if not request_id:
        return None
    made = (dataset_versions.c.dataset == dataset) & (dataset_versions.c.request_id == request_id)
    number = connection.execute(select(dataset_versions.c.version).where(made)).scalar()
    return get_dataset_version(connection, dataset, number) if number else None


def made_first(connection: Connection, draft: DatasetDraft) -> DatasetVersion | None:
    """The version of the draft's request; VERSION_NOT_FOUND when that was deleted, or of the draft's parent."""
    if first := find_dataset_request(connection, draft.dataset, draft.request_id):
        return first
    if draft.parent:
        if not connection.execute(select(datasets.c.name).where(datasets.c.name == draft.dataset)).first():
            raise version_not_found("dataset", draft.dataset, draft.parent)
        require_dataset_version(connection, draft.dataset, draft.parent)
    return None


def create_dataset_version(
    connection: Connection, draft: DatasetDraft, picture_set: int, actor: Actor, create_time: datetime
) -> DatasetVersion:
    """See the port; the draft's contents are in the set, which is named by nothing yet, nor afterwards if the request has made
    a version already."""
    if first := made_first(connection, draft):
        return first
    number = next_version(connection, datasets, draft.dataset, create_time)
    connection.execute(
        insert(dataset_versions).values(
            dataset=draft.dataset,
            version=number,
            parent=draft.parent,
            created_by=draft.created_by,
            description=draft.description,
            request_id=draft.request_id or None,
            create_time_us=to_us(create_time),
            manifest_name=draft.manifest.name,
            manifest_sha256=draft.manifest.sha256,
            manifest_bytes=draft.manifest.size_bytes,
            summary=draft.summary,
            picture_set=picture_set,
        )
    )
    of: dict[str, object] = {"dataset": draft.dataset, "version": number}
    if draft.signature:
        signed = {"key_id": draft.signature.key_id, "envelope": draft.signature.envelope}
        connection.execute(insert(dataset_signatures).values(**of, **signed))
    log(connection, dataset_created(draft, number), actor, create_time)
    return get_dataset_version(connection, draft.dataset, number)


def get_dataset_version(connection: Connection, dataset: str, version: int) -> DatasetVersion:
    """See the port."""
    asked = _live(dataset)
    found = _read(connection, asked.where(dataset_versions.c.version == version) if version else asked.limit(1))
    if not found:
        latest = _latest(connection, dataset)
        number = version or latest
        raise version_not_found("dataset", dataset, number, deleted=1 <= number <= latest)
    return found[0]


def list_datasets(connection: Connection, after: str, limit: int) -> list[Dataset]:
    """See the port."""
    asked = select(datasets).where(datasets.c.name > after).order_by(datasets.c.name).limit(limit)
    return [Dataset(row.name, row.latest_version, from_us(row.create_time_us)) for row in connection.execute(asked)]


def list_dataset_versions(connection: Connection, dataset: str, before: int, limit: int) -> list[DatasetVersion]:
    """See the port."""
    asked = _live(dataset).limit(limit)
    found = _read(connection, asked.where(dataset_versions.c.version < before) if before else asked)
    if not found:
        _latest(connection, dataset)
    return found


def delete_dataset_version(
    connection: Connection,
    dataset: str,
    version: int,
    reason: str,
    actor: Actor,
    time: datetime,
    *,
    even_if_used: bool,
) -> int:
    """See the port; the set of its pictures, which nothing names any more."""
    require_dataset_version(connection, dataset, version)
    naming = (lineage_datasets.c.dataset == dataset) & (lineage_datasets.c.dataset_version == version)
    by_name = select(lineage_datasets).where(naming).order_by(lineage_datasets.c.model, lineage_datasets.c.version)
    users = [f"model {row.model}:{row.version}" for row in connection.execute(by_name)]
    if users and not even_if_used:
        raise version_in_use("dataset", dataset, version, users)
    signed = (dataset_signatures.c.dataset == dataset) & (dataset_signatures.c.version == version)
    connection.execute(delete(dataset_signatures).where(signed))
    this = (dataset_versions.c.dataset == dataset) & (dataset_versions.c.version == version)
    picture_set = int(connection.execute(select(dataset_versions.c.picture_set).where(this)).scalar_one())
    connection.execute(update(dataset_versions).where(this).values(delete_time_us=to_us(time), picture_set=None))
    log(connection, dataset_deleted(dataset, version, reason, len(users)), actor, time)
    return picture_set


def unused(connection: Connection, sha256s: Sequence[str]) -> set[str]:
    """See the port."""
    asked = sorted(set(sha256s))
    named: set[str] = set()
    manifest, live = dataset_versions.c.manifest_sha256, dataset_versions.c.delete_time_us.is_(None)
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        for column in (artifacts.c.sha256, pictures.c.sha256):
            named.update(connection.execute(select(column).distinct().where(column.in_(some))).scalars())
        named.update(connection.execute(select(manifest).distinct().where(manifest.in_(some), live)).scalars())
    return set(asked) - named


def _latest(connection: Connection, dataset: str) -> int:
    found = connection.execute(select(datasets.c.latest_version).where(datasets.c.name == dataset)).scalar()
    if found is None:
        raise dataset_not_found(dataset)
    return int(found)


def _live(dataset: str) -> Select[tuple[object, ...]]:
    """Versions of a dataset that were not deleted, newest first."""
    return (
        select(dataset_versions)
        .where(dataset_versions.c.dataset == dataset, dataset_versions.c.delete_time_us.is_(None))
        .order_by(dataset_versions.c.version.desc())
    )


def _read(connection: Connection, asked: Select[tuple[object, ...]]) -> list[DatasetVersion]:
    rows = connection.execute(asked).all()
    if not rows:
        return []
    signed: dict[int, list[Signature]] = defaultdict(list)
    kept = dataset_signatures.c
    span = (kept.dataset == rows[0].dataset, kept.version.between(rows[-1].version, rows[0].version))
    for row in connection.execute(select(dataset_signatures).where(*span).order_by(kept.key_id)):
        signed[row.version].append(Signature(row.key_id, bytes(row.envelope)))
    return [
        DatasetVersion(
            dataset=row.dataset,
            version=row.version,
            manifest=Artifact(row.manifest_name, row.manifest_sha256, row.manifest_bytes),
            parent=row.parent,
            created_by=row.created_by,
            description=row.description,
            summary=row.summary,
            create_time=from_us(row.create_time_us),
            signatures=tuple(signed[row.version]),
        )
        for row in rows
    ]
