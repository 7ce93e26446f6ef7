"""Which database a URL names. Opens none."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from services.registry.metadata.database import Database
from services.registry.metadata.postgres_database import PostgresDatabase
from services.registry.metadata.sqlite_database import SqliteDatabase
from splitmesh.errors import field_error


def database_at(url: str | URL) -> Database:
    """Not open; FIELD_INVALID, it names none that there is a store for."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        # The cause would show the URL, and with it a password.
        raise field_error("database_url", "is no URL such as postgresql://user:password@host/database") from None
    if found.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return PostgresDatabase(found.set(drivername="postgresql+psycopg"))
    if found.drivername == "sqlite" and found.database and found.database != ":memory:":
        return SqliteDatabase(Path(found.database))
    raise field_error("database_url", f"{found.drivername} is neither postgresql nor sqlite with a file")
