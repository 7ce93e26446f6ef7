"""The fleet's database: its tables are where each part defines them on :data:`METADATA`, its history is in ``migrations``.

Times are microseconds since 1970, UTC. SQLite's tables are STRICT. Knows none of the parts' tables but ``state``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, MetaData, Table

from services.fleet.config import FleetSettings
from splitmesh.sql.columns import NUMBER, NUMBERED, key, needed
from splitmesh.sql.database import DatabaseLostError, Threads
from splitmesh.sql.database_url import database_at
from splitmesh.sql.schema import Schema

METADATA = MetaData()
"""Of all tables: ``nodes``, ``tasks``, ``rollout``, ``records`` and ``policies`` each have a module ``tables`` with their own."""

state = Table("state", METADATA, key("id", NUMBER), needed("epoch", NUMBER), **NUMBERED)
"""One row. Every write on PostgreSQL locks it; ``epoch`` grows with every process that opens the database there."""

SCHEMA = Schema(
    owner="fleet",
    migrations=Path(__file__).parent / "migrations",
    lock_key=0x666C656574,  # "fleet"
)

FILE = "fleet.db"
_CHECK_S = 2.0


def open_database(settings: FleetSettings, on_lost: Callable[[DatabaseLostError], None]) -> Threads:
    """The database that the settings ask for, not open; ``on_lost`` is told when another process has begun on it.

    With SQLite the folder belongs to one process: start a :class:`~splitmesh.sql.folder_lock.FolderLock` on it before.
    """
    url = settings.database_url.get_secret_value() or URL.create("sqlite", database=str(settings.data_dir / FILE))
    return Threads(
        database_at(url, SCHEMA), open_wait_s=settings.database_wait_s, check_every_s=_CHECK_S, on_lost=on_lost
    )
