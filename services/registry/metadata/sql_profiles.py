"""Statements about profiles. Knows no transaction and no thread: the caller has both."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select, update

from services.registry.metadata.records import ProfileRecord
from services.registry.metadata.refusals import MAX_PROFILES, too_many_profiles, up_to
from services.registry.metadata.tables import profiles
from splitmesh.sql.times import from_us, to_us


def put_profile(connection: Connection, record: ProfileRecord) -> None:
    """See the port."""
    values = {"node": record.node, "content": record.content, "update_time_us": to_us(record.update_time)}
    same = (profiles.c.sha256 == record.sha256) & (profiles.c.key == record.key)
    if connection.execute(update(profiles).where(same).values(values)).rowcount:
        return
    kept = select(func.count()).select_from(profiles).where(profiles.c.sha256 == record.sha256)
    if connection.execute(kept).scalar_one() >= MAX_PROFILES:
        raise too_many_profiles()
    connection.execute(insert(profiles).values(sha256=record.sha256, key=record.key, **values))


def list_profiles(connection: Connection, sha256: str, node: str, max_bytes: int | None) -> list[ProfileRecord]:
    """See the port; no more than fit in ``max_bytes`` are read."""
    asked = select(profiles).where(profiles.c.sha256 == sha256)
    if node:
        asked = asked.where(profiles.c.node == node)
    asked = asked.order_by(profiles.c.update_time_us.desc(), profiles.c.key.desc())
    with connection.execute(asked.execution_options(yield_per=4)) as rows:
        return up_to(
            (ProfileRecord(row.sha256, row.key, row.node, row.content, from_us(row.update_time_us)) for row in rows),
            max_bytes,
        )
