"""Brings a database to a program's schema, with everything that is in it, in the caller's transaction. Knows no table.

Revisions are Alembic's, one folder a program; the program's tables include ``state`` (``id``, ``epoch``) with one row, id 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

Adopt = Callable[[Connection, int], str | None]
"""Told ``user_version`` of an SQLite file (0 elsewhere) of which no revision is known: brings what a release before migrations
left to a revision, and says which; None: it is not one's."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Whose database it is and how its tables are made."""

    owner: str
    """The service, in one word for people, such as ``registry``; one of it at a time has the database."""
    migrations: Path
    """Alembic's folder: ``env.py`` and ``versions``. No two services should have a revision with the same name."""
    lock_key: int
    """Names the owner's lock in a PostgreSQL database; the number after it is taken too."""
    sqlite_version: int = 1
    """``user_version`` of SQLite files, for those who look at nothing else; grows only when older programs must be kept away."""
    adopt: Adopt = lambda _connection, _version: None
    """For files of releases before migrations."""


def migrate(connection: Connection, schema: Schema) -> None:
    """Makes or changes the tables.

    Raises:
        MeshError: NOT_READY, it is a newer program's or somebody else's; nothing was changed.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(schema.migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    before = _revision(connection)
    if before is None:
        before = _adopt(connection, schema, config)
    elif before not in {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}:
        raise _not_ready(
            f"the {schema.owner}'s database has schema {before}, of a newer program than this one or of another service"
        )
    command.upgrade(config, "head")
    if (now := _revision(connection)) != before:
        log.info("%s: the database's schema is %s; it was %s", schema.owner, now, before or "not there")
    if _is_sqlite(connection):
        connection.exec_driver_sql(f"PRAGMA user_version = {schema.sqlite_version}")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _adopt(connection: Connection, schema: Schema, config: Config) -> str | None:
    """Without a revision: a new database, a file from before migrations, or something else."""
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one()) if _is_sqlite(connection) else 0
    if found > schema.sqlite_version:
        raise _not_ready(f"the {schema.owner}'s database file has schema {found}, of a newer program than this one")
    revision = schema.adopt(connection, found)
    if revision is not None:
        command.stamp(config, revision)
    elif found or inspect(connection).get_table_names():
        raise _not_ready(f"the database holds something else than a {schema.owner}'s data")
    return revision


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _not_ready(message: str) -> MeshError:
    return MeshError(Reason.NOT_READY, message)
