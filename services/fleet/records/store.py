"""Statements about records. Knows no transaction and no thread: the caller has both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Table, and_, func, insert, select, update

from services.fleet.records.tables import record_counts, record_drops, record_totals, records
from services.fleet.records.values import Batch, Bounds, KeptRecord, Record, Totals, Wanted
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.times import from_us, to_us

FULL_RETRY_S = 60.0


def commit(connection: Connection, batch: Batch, bounds: Bounds, now: datetime) -> int:
    """Keeps each record once; how many were not here before.

    Raises:
        MeshError: PROTOCOL_VIOLATION, a record is named like one with other content; STORAGE_FULL. Nothing is kept then.
    """
    new = _new(connection, batch)
    if new:
        _count(connection, batch, new, bounds)
        last = connection.execute(select(record_totals.c.last_position)).scalar_one()
        first = last - len(new) + 1
        commit_time_us = to_us(now)
        connection.execute(
            insert(records),
            [
                {
                    "position": first + index,
                    "tenant": batch.tenant,
                    "edge": batch.edge,
                    "boot_id": one.boot_id,
                    "sequence": one.sequence,
                    "kind": one.kind,
                    "body": one.body,
                    "sha256": one.sha256,
                    "time_us": to_us(one.time),
                    "commit_time_us": commit_time_us,
                }
                for index, one in enumerate(new)
            ],
        )
    _note_dropped(connection, batch)
    return len(new)


def list_records(
    connection: Connection, wanted: Wanted, after: int, limit: int, max_bytes: int
) -> tuple[Sequence[KeptRecord], bool]:
    """Up to ``limit`` after a position, in the order they came; whether there are more.

    The bodies of a page have at most ``max_bytes`` together, unless the first one alone has more.
    """
    fits = and_(records.c.position > after, *_fits(records, wanted))
    sizes = select(records.c.position, func.length(records.c.body)).where(fits).order_by(records.c.position)
    last, found, total = after, 0, 0
    rows = connection.execute(sizes.limit(limit + 1)).all()
    for position, size_bytes in rows[:limit]:
        total += size_bytes
        if found and total > max_bytes:
            break
        last, found = position, found + 1
    asked = select(records).where(fits, records.c.position <= last).order_by(records.c.position)
    page = [
        KeptRecord(
            row.position,
            row.edge,
            Record(row.boot_id, row.sequence, row.kind, bytes(row.body), bytes(row.sha256), from_us(row.time_us)),
            from_us(row.commit_time_us),
        )
        for row in connection.execute(asked)
    ]
    return page, found < len(rows)


def totals(connection: Connection, wanted: Wanted) -> Totals:
    """Over all pages."""
    counted = select(func.coalesce(func.sum(record_counts.c.records), 0)).where(*_fits(record_counts, wanted))
    drops = (
        select(record_drops.c.reason, func.sum(record_drops.c.records))
        .where(*_fits(record_drops, wanted))
        .group_by(record_drops.c.reason)
        .order_by(record_drops.c.reason)
    )
    dropped = {reason: int(number) for reason, number in connection.execute(drops)}
    return Totals(int(connection.execute(counted).scalar_one()), dropped)


def _fits(table: Table, wanted: Wanted) -> list[ColumnElement[bool]]:
    conditions = [table.c.tenant == wanted.tenant]
    if wanted.edge:
        conditions.append(table.c.edge == wanted.edge)
    if wanted.kind and "kind" in table.c:
        # One head has few records beside all of a kind, and SQLite would look through the latter: an expression hides the index.
        kind = table.c.kind.concat("") if wanted.edge else table.c.kind
        conditions.append(kind == wanted.kind)
    return conditions


def _new(connection: Connection, batch: Batch) -> list[Record]:
    """Those that are not here yet, each once."""
    by_life: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in batch.records:
        _check_same(by_life[record.boot_id].setdefault(record.sequence, record), record)
    new: list[Record] = []
    for boot_id, of_life in by_life.items():
        asked = select(records.c.sequence, records.c.kind, records.c.sha256, records.c.time_us).where(
            records.c.tenant == batch.tenant,
            records.c.edge == batch.edge,
            records.c.boot_id == boot_id,
            records.c.sequence.in_(of_life),
        )
        for row in connection.execute(asked):
            told = of_life.pop(row.sequence)
            kept = Record(boot_id, row.sequence, row.kind, told.body, bytes(row.sha256), from_us(row.time_us))
            _check_same(kept, told)
        new += of_life.values()
    return new


def _check_same(one: Record, other: Record) -> None:
    """The body is compared by its digest, which was checked when the record came."""
    if (one.kind, one.sha256, to_us(one.time)) != (other.kind, other.sha256, to_us(other.time)):
        raise MeshError(
            Reason.PROTOCOL_VIOLATION,
            f"record {other.sequence} of {other.boot_id} came before with other content; nothing of this call was kept",
            metadata={"boot_id": other.boot_id, "sequence": str(other.sequence)},
        )


def _count(connection: Connection, batch: Batch, new: Sequence[Record], bounds: Bounds) -> None:
    """Adds what is new to all counts; STORAGE_FULL where it is more than may be kept."""
    size_bytes = sum(len(one.body) for one in new)
    row = connection.execute(select(record_totals)).one_or_none()
    if row is None:
        connection.execute(insert(record_totals).values(id=1, last_position=0, records=0, body_bytes=0))
    had_records, had_bytes = (row.records, row.body_bytes) if row else (0, 0)
    if had_records + len(new) > bounds.max_records or had_bytes + size_bytes > bounds.max_bytes:
        raise MeshError(
            Reason.STORAGE_FULL,
            f"{had_records} records with {had_bytes} bytes are kept; {len(new)} more with {size_bytes} bytes are too many",
            retry_after_s=FULL_RETRY_S,
        )
    connection.execute(
        update(record_totals).values(
            last_position=record_totals.c.last_position + len(new),
            records=record_totals.c.records + len(new),
            body_bytes=record_totals.c.body_bytes + size_bytes,
        )
    )
    by_kind: dict[str, list[int]] = defaultdict(list)
    for one in new:
        by_kind[one.kind].append(len(one.body))
    for kind, sizes in by_kind.items():
        name = {"tenant": batch.tenant, "edge": batch.edge, "kind": kind}
        counted = update(record_counts).where(*(record_counts.c[column] == value for column, value in name.items()))
        more = {
            "records": record_counts.c.records + len(sizes),
            "body_bytes": record_counts.c.body_bytes + sum(sizes),
        }
        if not connection.execute(counted.values(more)).rowcount:
            connection.execute(insert(record_counts).values(**name, records=len(sizes), body_bytes=sum(sizes)))


def _note_dropped(connection: Connection, batch: Batch) -> None:
    if not batch.dropped:
        return
    name = {"tenant": batch.tenant, "edge": batch.edge, "life": batch.dropped_life}
    of_life = and_(*(record_drops.c[column] == value for column, value in name.items()))
    asked = select(record_drops.c.reason, record_drops.c.records).where(of_life)
    kept = {row.reason: row.records for row in connection.execute(asked)}
    for reason, number in batch.dropped.items():
        if reason not in kept:
            connection.execute(insert(record_drops).values(**name, reason=reason, records=number))
        elif number > kept[reason]:
            connection.execute(
                update(record_drops).where(of_life, record_drops.c.reason == reason).values(records=number)
            )
