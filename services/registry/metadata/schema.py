"""Brings a database to this program's schema, with everything that is in it, in the caller's transaction.

Knows the releases before migrations: SQLite files with ``user_version`` 1 (without profiles) and 2.
"""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from services.registry.metadata.migrations.versions.r0001_baseline import create_profiles
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

SQLITE_VERSION = 3
"""``user_version`` of files with migrations: programs from before them refuse such a file."""
_BASELINE = "0001"
_FIRST_RELEASE, _LAST_RELEASE = 1, 2
"""``user_version`` of files from before migrations."""


def migrate(connection: Connection) -> None:
    """Makes or changes the tables.

    Raises:
        MeshError: NOT_READY, it is a newer program's or no registry's; nothing was changed.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = _config()
    config.attributes["connection"] = connection
    before = _revision(connection)
    if before is None:
        before = _adopt(connection, config)
    elif not _is_known(before, config):
        raise _not_ready(f"the registry's database has schema {before}, of a newer program than this one")
    command.upgrade(config, "head")
    if (now := _revision(connection)) != before:
        log.info("metadata: the schema is %s; it was %s", now, before or "not there")
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {SQLITE_VERSION}")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _is_known(revision: str, config: Config) -> bool:
    return revision in {one.revision for one in ScriptDirectory.from_config(config).walk_revisions()}


def _adopt(connection: Connection, config: Config) -> str | None:
    """Without a revision: a new database, a file from before migrations, or something else."""
    tables = set(inspect(connection).get_table_names())
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one()) if _is_sqlite(connection) else 0
    if found > SQLITE_VERSION:
        raise _not_ready(f"the metadata file has schema {found}, of a newer program than this one")
    if found in (_FIRST_RELEASE, _LAST_RELEASE) and {"models", "versions", "artifacts", "aliases"} <= tables:
        if found == _FIRST_RELEASE:
            with Operations.context(MigrationContext.configure(connection)):
                create_profiles()
        command.stamp(config, _BASELINE)
        return _BASELINE
    if tables or found:
        raise _not_ready("the database holds something else than a registry's metadata")
    return None


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _not_ready(message: str) -> MeshError:
    return MeshError(Reason.NOT_READY, message)
