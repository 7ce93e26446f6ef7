"""The registry's schema: its migrations, and what became of files of the releases before migrations.

Those are SQLite files with ``user_version`` 1 (without profiles) and 2.
"""

from __future__ import annotations

from pathlib import Path

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, inspect

from services.registry.metadata.migrations.versions.r0001_baseline import create_profiles
from splitmesh.sql.schema import Schema

_BASELINE = "0001"
_FIRST_RELEASE, _LAST_RELEASE = 1, 2
"""``user_version`` of files from before migrations."""


def _adopt(connection: Connection, version: int) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if version not in (_FIRST_RELEASE, _LAST_RELEASE) or not {"models", "versions", "artifacts", "aliases"} <= tables:
        return None
    if version == _FIRST_RELEASE:
        with Operations.context(MigrationContext.configure(connection)):
            create_profiles()
    return _BASELINE


SCHEMA = Schema(
    owner="registry",
    migrations=Path(__file__).parent / "migrations",
    lock_key=0x73706C69746D6573,  # "splitmes"
    # Programs from before migrations refuse such a file.
    sqlite_version=3,
    adopt=_adopt,
)
