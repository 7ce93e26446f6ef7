"""Statements that change what hangs on a version: signatures, holds, its end. Knows no transaction and no thread."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Table, delete, func, insert, select, update

from services.registry.metadata import acts
from services.registry.metadata.records import Actor, Signature
from services.registry.metadata.refusals import (
    MAX_HOLDERS,
    MAX_SIGNATURES,
    too_many_holders,
    too_many_signatures,
    version_in_use,
)
from services.registry.metadata.sql_log import log
from services.registry.metadata.sql_versions import require_version
from services.registry.metadata.tables import (
    aliases,
    artifacts,
    holds,
    lineage_datasets,
    signatures,
    version_needs,
    versions,
)
from splitmesh.sql.times import to_us


def add_signature(
    connection: Connection, model: str, version: int, signature: Signature, actor: Actor, time: datetime
) -> None:
    """See the port."""
    require_version(connection, model, version)
    of_version = (signatures.c.model == model) & (signatures.c.version == version)
    of_key = of_version & (signatures.c.key_id == signature.key_id)
    kept = connection.execute(select(signatures.c.envelope).where(of_key)).scalar()
    if kept == signature.envelope:
        return
    if kept is None and _count(connection, signatures, model, version) >= MAX_SIGNATURES:
        raise too_many_signatures()
    connection.execute(delete(signatures).where(of_key))
    connection.execute(
        insert(signatures).values(model=model, version=version, key_id=signature.key_id, envelope=signature.envelope)
    )
    log(connection, acts.version_signed(model, version, signature.key_id), actor, time)


def hold_version(
    connection: Connection,
    model: str,
    version: int,
    holder: str,
    until: datetime | None,
    actor: Actor,
    time: datetime,
) -> None:
    """See the port."""
    require_version(connection, model, version)
    _forget_ended(connection, model, version, time)
    was_held = _release(connection, model, version, holder)
    if _count(connection, holds, model, version) >= MAX_HOLDERS:
        raise too_many_holders()
    until_us = to_us(until) if until else None
    connection.execute(insert(holds).values(model=model, version=version, holder=holder, until_us=until_us))
    if not was_held:
        log(connection, acts.version_held(model, version, holder, until), actor, time)


def release_version(
    connection: Connection, model: str, version: int, holder: str, actor: Actor, time: datetime
) -> None:
    """See the port."""
    require_version(connection, model, version)
    _forget_ended(connection, model, version, time)
    if _release(connection, model, version, holder):
        log(connection, acts.version_released(model, version, holder), actor, time)


def delete_version(connection: Connection, model: str, version: int, reason: str, actor: Actor, time: datetime) -> None:
    """See the port."""
    require_version(connection, model, version)
    _forget_ended(connection, model, version, time)
    users = _names(connection, aliases, "alias", model, version) + _names(connection, holds, "holder", model, version)
    users += _needing(connection, model, version)
    if users:
        raise version_in_use("model", model, version, users)
    for table in (artifacts, signatures, lineage_datasets, version_needs):
        connection.execute(delete(table).where(table.c.model == model, table.c.version == version))
    this = (versions.c.model == model) & (versions.c.version == version)
    connection.execute(update(versions).where(this).values(delete_time_us=to_us(time)))
    log(connection, acts.version_deleted(model, version, reason), actor, time)


def _forget_ended(connection: Connection, model: str, version: int, time: datetime) -> None:
    ended = holds.c.until_us <= to_us(time)
    connection.execute(delete(holds).where(holds.c.model == model, holds.c.version == version, ended))


def _release(connection: Connection, model: str, version: int, holder: str) -> bool:
    of_holder = (holds.c.model == model) & (holds.c.version == version) & (holds.c.holder == holder)
    return connection.execute(delete(holds).where(of_holder)).rowcount > 0


def _count(connection: Connection, table: Table, model: str, version: int) -> int:
    of_version = (table.c.model == model) & (table.c.version == version)
    return int(connection.execute(select(func.count()).select_from(table).where(of_version)).scalar_one())


def _needing(connection: Connection, model: str, version: int) -> list[str]:
    """``model solder:3`` and the like, of versions that need this one."""
    needed = version_needs.c
    asked = select(needed.model, needed.version).where(needed.needed_model == model, needed.needed_version == version)
    found = connection.execute(asked.order_by(needed.model, needed.version))
    return [f"model {row.model}:{row.version}" for row in found]


def _names(connection: Connection, table: Table, column: str, model: str, version: int) -> list[str]:
    """``alias production`` and the like, by name."""
    of_version = (table.c.model == model) & (table.c.version == version)
    asked = select(table.c[column]).where(of_version).order_by(table.c[column])
    return [f"{column} {name}" for name in connection.execute(asked).scalars()]
