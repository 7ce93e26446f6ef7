"""What every statement about deployments needs: values in portions, and rows that are written over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

AT_ONCE = 500
"""Values in one IN."""


def portions(values: Iterable[str]) -> Iterator[Sequence[str]]:
    """In order, without repetition, as many at once as one statement takes."""
    once = list(dict.fromkeys(values))
    for begin in range(0, len(once), AT_ONCE):
        yield once[begin : begin + AT_ONCE]


def put(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts rows, or writes over those with the same key."""
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    others = {column.name: insert.excluded[column.name] for column in table.columns if column.name not in keys}
    if others:
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=others), rows)
    else:
        connection.execute(insert.on_conflict_do_nothing(), rows)
