"""The fleet's database for tests: SQLite in a folder and PostgreSQL, with every table, opened and closed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.fleet.schema import SCHEMA
from splitmesh.sql.database import Threads
from splitmesh.sql.database_url import database_at

NEVER_S = 3600.0


@asynccontextmanager
async def opened_database(url: str) -> AsyncIterator[Threads]:
    """Open; ``url`` as ``tests.support.stores.durable_url`` makes it."""
    threads = Threads(database_at(url, SCHEMA), open_wait_s=5.0, check_every_s=NEVER_S, on_lost=lambda _error: None)
    await threads.start()
    try:
        yield threads
    finally:
        await threads.stop()
