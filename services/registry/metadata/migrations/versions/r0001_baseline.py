"""What the release before migrations kept: models, versions, artefacts, aliases, profiles."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, ForeignKeyConstraint, UniqueConstraint

from splitmesh.sql.columns import KEYED, NUMBER, NUMBERED, TEXT, key, needed

revision = "0001"
down_revision = None


def upgrade() -> None:
    """On a new database; an older file is stamped with this revision instead."""
    op.create_table(
        "models", key("name", TEXT), needed("latest_version", NUMBER), needed("create_time_us", NUMBER), **KEYED
    )
    op.create_table(
        "versions",
        key("model", TEXT),
        key("version", NUMBER),
        needed("parent", NUMBER),
        needed("created_by", TEXT),
        needed("description", TEXT),
        Column("request_id", TEXT),
        needed("create_time_us", NUMBER),
        ForeignKeyConstraint(["model"], ["models.name"]),
        UniqueConstraint("model", "request_id"),
        **KEYED,
    )
    op.create_table(
        "artifacts",
        key("model", TEXT),
        key("version", NUMBER),
        key("position", NUMBER),
        needed("name", TEXT),
        needed("sha256", TEXT),
        needed("size_bytes", NUMBER),
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
        UniqueConstraint("model", "version", "name"),
        **KEYED,
    )
    op.create_table(
        "aliases",
        key("model", TEXT),
        key("alias", TEXT),
        needed("version", NUMBER),
        needed("revision", NUMBER),
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
        **KEYED,
    )
    create_profiles()


def create_profiles() -> None:
    """The table that the first of these releases did not have."""
    op.create_table(
        "profiles",
        key("sha256", TEXT),
        key("key", TEXT),
        needed("node", TEXT),
        needed("content", TEXT),
        needed("update_time_us", NUMBER),
        **NUMBERED,
    )
