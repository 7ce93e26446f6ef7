"""Statements about aliases and their moves. Knows no transaction and no thread: the caller has both."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, Row, Select, delete, insert, select

from services.registry.metadata import acts
from services.registry.metadata.records import Actor, AliasChange, AliasMove
from services.registry.metadata.refusals import alias_moved, alias_not_found
from services.registry.metadata.sql_log import log, next_sequence
from services.registry.metadata.sql_versions import latest_version, require_version
from services.registry.metadata.tables import alias_moves, aliases, state
from splitmesh.sql.times import from_us, to_us


def set_alias(connection: Connection, change: AliasChange, actor: Actor, time: datetime) -> AliasMove:
    """See the port."""
    latest_version(connection, change.model)
    if change.version:
        require_version(connection, change.model, change.version)
    last = _last_move(connection, change.model, change.alias)
    previous = last.version if last else 0
    if change.expected is not None and change.expected != previous:
        raise alias_moved(change.model, change.alias, change.expected, previous)
    if last is None and not change.version:
        raise alias_not_found(change.model, change.alias)
    if last is not None and previous == change.version:
        return last
    sequence = next_sequence(connection, state.c.last_move)
    move = AliasMove(sequence, change.model, change.alias, previous, change.version, actor.by, change.reason, time)
    _keep(connection, move)
    log(connection, acts.alias_moved(change, previous), actor, time)
    return move


def alias_moves_after(connection: Connection, model: str, alias: str, after: int, limit: int) -> Sequence[AliasMove]:
    """See the port."""
    asked = _moves(model, alias).where(alias_moves.c.sequence > after).order_by(alias_moves.c.sequence).limit(limit)
    return [_move(row) for row in connection.execute(asked)]


def alias_moves_before(connection: Connection, model: str, alias: str, before: int, limit: int) -> Sequence[AliasMove]:
    """See the port."""
    asked = _moves(model, alias).order_by(alias_moves.c.sequence.desc()).limit(limit)
    if before:
        asked = asked.where(alias_moves.c.sequence < before)
    found = [_move(row) for row in connection.execute(asked)]
    if not found:
        latest_version(connection, model)
    return found


def alias_states(connection: Connection, model: str, alias: str) -> tuple[Sequence[AliasMove], int]:
    """See the port."""
    asked = _moves(model, alias).join(aliases, aliases.c.sequence == alias_moves.c.sequence)
    rows = connection.execute(asked.order_by(alias_moves.c.sequence)).all()
    return [_move(row) for row in rows], int(connection.execute(select(state.c.last_move)).scalar_one())


def _last_move(connection: Connection, model: str, alias: str) -> AliasMove | None:
    """The move that made an alias point where it points; None when it does not exist."""
    asked = _moves(model, alias).join(aliases, aliases.c.sequence == alias_moves.c.sequence)
    row = connection.execute(asked).first()
    return _move(row) if row else None


def _keep(connection: Connection, move: AliasMove) -> None:
    connection.execute(
        insert(alias_moves).values(
            sequence=move.sequence,
            model=move.model,
            alias=move.alias,
            previous=move.previous,
            version=move.version,
            moved_by=move.moved_by,
            reason=move.reason,
            move_time_us=to_us(move.move_time),
        )
    )
    connection.execute(delete(aliases).where(aliases.c.model == move.model, aliases.c.alias == move.alias))
    if move.version:
        values = {"model": move.model, "alias": move.alias, "version": move.version, "sequence": move.sequence}
        connection.execute(insert(aliases).values(values))


def _moves(model: str, alias: str) -> Select[tuple[object, ...]]:
    asked = select(alias_moves).where(alias_moves.c.model == model)
    return asked.where(alias_moves.c.alias == alias) if alias else asked


def _move(row: Row[tuple[object, ...]]) -> AliasMove:
    return AliasMove(
        sequence=row.sequence,
        model=row.model,
        alias=row.alias,
        previous=row.previous,
        version=row.version,
        moved_by=row.moved_by,
        reason=row.reason,
        move_time=from_us(row.move_time_us),
    )
