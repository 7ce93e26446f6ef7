"""Statements about events, keyrings, sequences, the database's name. Knows no transaction and no thread: the caller has both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Column, Connection, delete, func, insert, select, update

from services.registry.metadata.acts import Act, keyring_put, keyrings_removed
from services.registry.metadata.records import Actor, Event
from services.registry.metadata.refusals import keyring_stale
from services.registry.metadata.tables import events, keyrings, state
from splitmesh.sql.times import from_us, to_us


def next_sequence(connection: Connection, column: Column[int]) -> int:
    """One more than the last, of a column of ``state``; taken back with the transaction."""
    connection.execute(update(state).values({column: column + 1}))
    return int(connection.execute(select(column)).scalar_one())


def identity(connection: Connection) -> str:
    """See the port."""
    return str(connection.execute(select(state.c.identity)).scalar_one())


def log(connection: Connection, act: Act, actor: Actor, time: datetime) -> None:
    """Writes the event of an act beside the act."""
    connection.execute(
        insert(events).values(
            sequence=next_sequence(connection, state.c.last_event),
            time_us=to_us(time),
            kind=act.kind,
            name=act.name,
            subject=act.subject,
            by=actor.by,
            peer=actor.peer,
            key_ids=json.dumps(actor.key_ids),
            detail=act.detail,
        )
    )


def record(
    connection: Connection, kind: str, name: str, subject: str, actor: Actor, detail: str, time: datetime
) -> None:
    """See the port."""
    log(connection, Act(kind, name, subject, detail), actor, time)


def list_events(connection: Connection, name: str, before: int, limit: int) -> Sequence[Event]:
    """See the port."""
    asked = select(events).order_by(events.c.sequence.desc()).limit(limit)
    if name:
        asked = asked.where(events.c.name == name)
    if before:
        asked = asked.where(events.c.sequence < before)
    return [
        Event(
            sequence=row.sequence,
            time=from_us(row.time_us),
            kind=row.kind,
            name=row.name,
            subject=row.subject,
            actor=Actor(row.by, row.peer, tuple(json.loads(row.key_ids))),
            detail=row.detail,
        )
        for row in connection.execute(asked)
    ]


def put_keyring(
    connection: Connection, version: int, envelope: bytes, actor: Actor, time: datetime, *, first: bool
) -> None:
    """See the port."""
    same = connection.execute(select(keyrings.c.envelope).where(keyrings.c.version == version)).scalar()
    if same == envelope:
        return
    newest = connection.execute(select(func.max(keyrings.c.version))).scalar() or 0
    if first and newest:
        removed = list_keyrings(connection, 0)
        connection.execute(delete(keyrings))
        log(connection, keyrings_removed(newest, removed), actor, time)
    elif not first and version != newest + 1:
        raise keyring_stale(version, newest)
    connection.execute(insert(keyrings).values(version=version, envelope=envelope))
    log(connection, keyring_put(version), actor, time)


def list_keyrings(connection: Connection, after: int) -> Sequence[bytes]:
    """See the port."""
    asked = select(keyrings.c.envelope).where(keyrings.c.version > after).order_by(keyrings.c.version)
    return [bytes(envelope) for envelope in connection.execute(asked).scalars()]
