"""Which database a URL names. Opens none."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from splitmesh.errors import field_error
from splitmesh.sql.database import Database
from splitmesh.sql.postgres_database import PostgresDatabase
from splitmesh.sql.schema import Schema
from splitmesh.sql.sqlite_database import SqliteDatabase


def database_at(url: str | URL, schema: Schema) -> Database:
    """Not open; FIELD_INVALID, it names none that this package knows."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        # The cause would show the URL, and with it a password.
        raise field_error("database_url", "is no URL such as postgresql://user:password@host/database") from None
    if found.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return PostgresDatabase(found.set(drivername="postgresql+psycopg"), schema)
    if found.drivername == "sqlite" and found.database and found.database != ":memory:":
        return SqliteDatabase(Path(found.database), schema)
    raise field_error("database_url", f"{found.drivername} is neither postgresql nor sqlite with a file")
