"""Kinds of columns that tables and migrations are made of. Migrations that have run depend on them: add, never change.

Text is ordered by code point: SQLite does so by itself, PostgreSQL in the collation "C". Whole numbers have 64 bits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, Text
from sqlalchemy.dialects import postgresql

TEXT = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
NUMBER = BigInteger().with_variant(Integer(), "sqlite")
BYTES = LargeBinary()

KEYED: dict[str, Any] = {"sqlite_strict": True, "sqlite_with_rowid": False}
"""A table whose rows lie in the order of its key."""
NUMBERED: dict[str, Any] = {"sqlite_strict": True}
"""A table whose key is one number."""


def key(name: str, kind: Any) -> Column[Any]:
    """A part of the primary key."""
    return Column(name, kind, primary_key=True, autoincrement=False)


def needed(name: str, kind: Any, *, default: str | None = None) -> Column[Any]:
    """A column that is never NULL; ``default`` for rows that were there before it."""
    return Column(name, kind, nullable=False, server_default=default)
