"""Statements about models and their versions. Knows no transaction and no thread: the caller has both.

``now`` is what the holders of a version depend on. Deleted versions are seen by nobody but :func:`missing`.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Row, Select, Table, insert, or_, select, update

from services.registry.metadata.acts import version_created
from services.registry.metadata.records import Actor, Artifact, Draft, Model, Signature, Version
from services.registry.metadata.refusals import alias_not_found, dataset_not_found, model_not_found, version_not_found
from services.registry.metadata.sql_log import log
from services.registry.metadata.tables import (
    aliases,
    artifacts,
    dataset_versions,
    datasets,
    holds,
    lineage_datasets,
    models,
    signatures,
    version_needs,
    versions,
)
from splitmesh.errors import MeshError
from splitmesh.model.lineage import Lineage
from splitmesh.sql.times import from_us, to_us


def find_request(connection: Connection, model: str, request_id: str, now: datetime) -> Version | None:
    """See the port."""
    if not request_id:
        return None
    made = (versions.c.model == model) & (versions.c.request_id == request_id)
    number = connection.execute(select(versions.c.version).where(made)).scalar()
    return get_version(connection, model, number, now) if number else None


def create_version(connection: Connection, draft: Draft, actor: Actor, create_time: datetime, now: datetime) -> Version:
    """See the port."""
    if first := find_request(connection, draft.model, draft.request_id, now):
        return first
    check_origin(connection, draft)
    number = next_version(connection, models, draft.model, create_time)
    connection.execute(
        insert(versions).values(
            model=draft.model,
            version=number,
            parent=draft.parent,
            created_by=draft.created_by,
            description=draft.description,
            request_id=draft.request_id or None,
            create_time_us=to_us(create_time),
            lineage=draft.lineage.to_json(),
        )
    )
    _insert_parts(connection, draft, {"model": draft.model, "version": number})
    log(connection, version_created(draft, number), actor, create_time)
    return get_version(connection, draft.model, number, now)


def newest(connection: Connection, model: str, now: datetime) -> Version:
    """See the port."""
    found = _read(connection, _live(model).limit(1), now)
    if not found:
        raise version_not_found("model", model, latest_version(connection, model), deleted=True)
    return found[0]


def get_version(connection: Connection, model: str, version: int, now: datetime) -> Version:
    """See the port."""
    found = _read(connection, _live(model).where(versions.c.version == version), now)
    if not found:
        raise missing(connection, model, version)
    return found[0]


def version_at(connection: Connection, model: str, alias: str, now: datetime) -> Version:
    """See the port."""
    at = (aliases.c.model == model) & (aliases.c.alias == alias)
    number = connection.execute(select(aliases.c.version).where(at)).scalar()
    if number is None:
        latest_version(connection, model)
        raise alias_not_found(model, alias)
    return get_version(connection, model, number, now)


def list_models(connection: Connection, after: str, limit: int) -> list[Model]:
    """See the port."""
    rows = connection.execute(select(models).where(models.c.name > after).order_by(models.c.name).limit(limit)).all()
    pointing: dict[str, dict[str, int]] = defaultdict(dict)
    if rows:
        span = (aliases.c.model >= rows[0].name) & (aliases.c.model <= rows[-1].name)
        for row in connection.execute(select(aliases).where(span).order_by(aliases.c.alias)):
            pointing[row.model][row.alias] = row.version
    return [Model(row.name, row.latest_version, pointing[row.name], from_us(row.create_time_us)) for row in rows]


def list_versions(connection: Connection, model: str, before: int, limit: int, now: datetime) -> list[Version]:
    """See the port."""
    asked = _live(model).limit(limit)
    found = _read(connection, asked.where(versions.c.version < before) if before else asked, now)
    if not found:
        latest_version(connection, model)
    return found


def require_version(connection: Connection, model: str, version: int) -> None:
    """MODEL_NOT_FOUND, VERSION_NOT_FOUND; reads no more than it must."""
    if connection.execute(
        _live(model).with_only_columns(versions.c.version).where(versions.c.version == version)
    ).first():
        return
    raise missing(connection, model, version)


def missing(connection: Connection, model: str, version: int) -> MeshError:
    """Why a version that was not found is not there; MODEL_NOT_FOUND."""
    deleted = 1 <= version <= latest_version(connection, model)
    return version_not_found("model", model, version, deleted=deleted)


def latest_version(connection: Connection, model: str) -> int:
    """The highest number ever; MODEL_NOT_FOUND."""
    found = connection.execute(select(models.c.latest_version).where(models.c.name == model)).scalar()
    if found is None:
        raise model_not_found(model)
    return int(found)


def next_version(connection: Connection, table: Table, name: str, create_time: datetime) -> int:
    """Counts on in ``models`` or ``datasets``, where the name may be new; the caller holds the lock of all writes."""
    latest = connection.execute(select(table.c.latest_version).where(table.c.name == name)).scalar()
    number = int(latest or 0) + 1
    if latest is None:
        created = to_us(create_time)
        connection.execute(insert(table).values(name=name, latest_version=number, create_time_us=created))
    else:
        connection.execute(update(table).where(table.c.name == name).values(latest_version=number))
    return number


def check_origin(connection: Connection, draft: Draft) -> None:
    """What a version says to be made from, and to need, exists: see ``create_version`` of the port."""
    if draft.parent:
        made = connection.execute(select(models.c.name).where(models.c.name == draft.model)).scalar()
        if made is None:
            raise version_not_found("model", draft.model, draft.parent)
        require_version(connection, draft.model, draft.parent)
    for parent in draft.lineage.parents:
        require_version(connection, parent.model, parent.version)
    for use in draft.lineage.datasets:
        require_dataset_version(connection, use.dataset, use.version)
    for need in draft.needs:
        require_version(connection, need.model, need.version)


def require_dataset_version(connection: Connection, dataset: str, version: int) -> None:
    """DATASET_NOT_FOUND, VERSION_NOT_FOUND."""
    at = (dataset_versions.c.dataset == dataset) & (dataset_versions.c.version == version)
    asked = select(dataset_versions.c.version).where(at, dataset_versions.c.delete_time_us.is_(None))
    if connection.execute(asked).first():
        return
    latest = connection.execute(select(datasets.c.latest_version).where(datasets.c.name == dataset)).scalar()
    if latest is None:
        raise dataset_not_found(dataset)
    raise version_not_found("dataset", dataset, version, deleted=1 <= version <= latest)


def _insert_parts(connection: Connection, draft: Draft, of: dict[str, object]) -> None:
    if draft.artifacts:
        rows = [
            {**of, "position": position, "name": one.name, "sha256": one.sha256, "size_bytes": one.size_bytes}
            for position, one in enumerate(draft.artifacts)
        ]
        connection.execute(insert(artifacts), rows)
    if draft.signature:
        signed = {"key_id": draft.signature.key_id, "envelope": draft.signature.envelope}
        connection.execute(insert(signatures).values(**of, **signed))
    uses = {(use.dataset, use.version) for use in draft.lineage.datasets}
    if uses:
        rows = [{**of, "dataset": dataset, "dataset_version": version} for dataset, version in sorted(uses)]
        connection.execute(insert(lineage_datasets), rows)
    needs = {(need.model, need.version) for need in draft.needs}
    if needs:
        rows = [{**of, "needed_model": model, "needed_version": version} for model, version in sorted(needs)]
        connection.execute(insert(version_needs), rows)


def _live(model: str) -> Select[tuple[object, ...]]:
    """Versions of a model that were not deleted, newest first."""
    return (
        select(versions)
        .where(versions.c.model == model, versions.c.delete_time_us.is_(None))
        .order_by(versions.c.version.desc())
    )


def _read(connection: Connection, asked: Select[tuple[object, ...]], now: datetime) -> list[Version]:
    """Five statements for any number of versions of one model."""
    rows = connection.execute(asked).all()
    if not rows:
        return []
    model, lowest, highest = rows[0].model, rows[-1].version, rows[0].version

    def of(table: Table, order: str, *conditions: ColumnElement[bool]) -> dict[int, list[Row[tuple[object, ...]]]]:
        found: dict[int, list[Row[tuple[object, ...]]]] = defaultdict(list)
        where = (table.c.model == model, table.c.version.between(lowest, highest), *conditions)
        for row in connection.execute(select(table).where(*where).order_by(table.c[order])):
            found[row.version].append(row)
        return found

    parts, signed, pointing = of(artifacts, "position"), of(signatures, "key_id"), of(aliases, "alias")
    holding = of(holds, "holder", or_(holds.c.until_us.is_(None), holds.c.until_us > to_us(now)))
    return [
        Version(
            model=row.model,
            version=row.version,
            parent=row.parent,
            artifacts=tuple(Artifact(one.name, one.sha256, one.size_bytes) for one in parts[row.version]),
            created_by=row.created_by,
            description=row.description,
            create_time=from_us(row.create_time_us),
            aliases=tuple(one.alias for one in pointing[row.version]),
            lineage=Lineage.from_json(row.lineage) if row.lineage else Lineage(),
            signatures=tuple(Signature(one.key_id, bytes(one.envelope)) for one in signed[row.version]),
            holders=tuple(one.holder for one in holding[row.version]),
        )
        for row in rows
    ]
