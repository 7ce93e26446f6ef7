"""The tables as they are now, for SQLite and PostgreSQL. The migrations make them; a test compares both.

Times are microseconds since 1970, UTC. SQLite's tables are STRICT.
"""

from __future__ import annotations

from sqlalchemy import Column, ForeignKeyConstraint, Index, MetaData, Table, UniqueConstraint

from splitmesh.sql.columns import BYTES, KEYED, NUMBER, NUMBERED, TEXT, key, needed

metadata = MetaData()


def _of_version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"])


def _of_dataset_version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["dataset", "version"], ["dataset_versions.dataset", "dataset_versions.version"])


state = Table(
    "state",
    metadata,
    key("id", NUMBER),
    needed("epoch", NUMBER),
    needed("last_move", NUMBER),
    needed("last_event", NUMBER),
    needed("identity", TEXT),
    **NUMBERED,
)
"""One row. Every write locks it first, so writes come one after the other and sequences become visible in order. ``epoch``
grows with every registry that opens a PostgreSQL database: the one before finds another number there and stops writing.
``identity`` is the database's name, made once."""

models = Table(
    "models", metadata, key("name", TEXT), needed("latest_version", NUMBER), needed("create_time_us", NUMBER), **KEYED
)

versions = Table(
    "versions",
    metadata,
    key("model", TEXT),
    key("version", NUMBER),
    needed("parent", NUMBER),
    needed("created_by", TEXT),
    needed("description", TEXT),
    Column("request_id", TEXT),
    needed("create_time_us", NUMBER),
    needed("lineage", TEXT, default=""),
    Column("delete_time_us", NUMBER),
    ForeignKeyConstraint(["model"], ["models.name"]),
    UniqueConstraint("model", "request_id"),
    **KEYED,
)
"""A deleted version keeps its row, so that its number and its request_id are not used again; what hangs on it goes."""

artifacts = Table(
    "artifacts",
    metadata,
    key("model", TEXT),
    key("version", NUMBER),
    key("position", NUMBER),
    needed("name", TEXT),
    needed("sha256", TEXT),
    needed("size_bytes", NUMBER),
    _of_version(),
    UniqueConstraint("model", "version", "name"),
    Index("artifacts_by_content", "sha256"),
    **KEYED,
)

signatures = Table(
    "signatures",
    metadata,
    key("model", TEXT),
    key("version", NUMBER),
    key("key_id", TEXT),
    needed("envelope", BYTES),
    _of_version(),
    **KEYED,
)

holds = Table(
    "holds",
    metadata,
    key("model", TEXT),
    key("version", NUMBER),
    key("holder", TEXT),
    Column("until_us", NUMBER),
    _of_version(),
    **KEYED,
)

lineage_datasets = Table(
    "lineage_datasets",
    metadata,
    key("model", TEXT),
    key("version", NUMBER),
    key("dataset", TEXT),
    key("dataset_version", NUMBER),
    _of_version(),
    Index("lineage_datasets_by_dataset", "dataset", "dataset_version"),
    **KEYED,
)
"""Who needs a version of a dataset; the lineage itself is JSON in ``versions``."""

version_needs = Table(
    "version_needs",
    metadata,
    key("model", TEXT),
    key("version", NUMBER),
    key("needed_model", TEXT),
    key("needed_version", NUMBER),
    _of_version(),
    ForeignKeyConstraint(["needed_model", "needed_version"], ["versions.model", "versions.version"]),
    Index("version_needs_by_needed", "needed_model", "needed_version"),
    **KEYED,
)
"""What a version that exists runs with."""

alias_moves = Table(
    "alias_moves",
    metadata,
    key("sequence", NUMBER),
    needed("model", TEXT),
    needed("alias", TEXT),
    needed("previous", NUMBER),
    needed("version", NUMBER),
    needed("moved_by", TEXT),
    needed("reason", TEXT),
    needed("move_time_us", NUMBER),
    ForeignKeyConstraint(["model"], ["models.name"]),
    Index("alias_moves_by_alias", "model", "alias", "sequence"),
    Index("alias_moves_by_model", "model", "sequence"),
    **NUMBERED,
)

aliases = Table(
    "aliases",
    metadata,
    key("model", TEXT),
    key("alias", TEXT),
    needed("version", NUMBER),
    needed("sequence", NUMBER),
    _of_version(),
    ForeignKeyConstraint(["sequence"], ["alias_moves.sequence"]),
    Index("aliases_by_version", "model", "version"),
    **KEYED,
)
"""Where each alias points, and the move that made it so."""

events = Table(
    "events",
    metadata,
    key("sequence", NUMBER),
    needed("time_us", NUMBER),
    needed("kind", TEXT),
    needed("name", TEXT),
    needed("subject", TEXT),
    needed("by", TEXT),
    needed("peer", TEXT),
    needed("key_ids", TEXT),
    needed("detail", TEXT),
    Index("events_by_name", "name", "sequence"),
    **NUMBERED,
)
"""``key_ids`` is a JSON list."""

keyrings = Table("keyrings", metadata, key("version", NUMBER), needed("envelope", BYTES), **NUMBERED)

datasets = Table(
    "datasets", metadata, key("name", TEXT), needed("latest_version", NUMBER), needed("create_time_us", NUMBER), **KEYED
)

picture_sets = Table("picture_sets", metadata, key("id", NUMBER), **NUMBERED)
"""Pictures are written some at a time, before the version that names their set and after its end. A set that no version names is
being written, or is what a killed process left behind."""

dataset_versions = Table(
    "dataset_versions",
    metadata,
    key("dataset", TEXT),
    key("version", NUMBER),
    needed("parent", NUMBER),
    needed("created_by", TEXT),
    needed("description", TEXT),
    Column("request_id", TEXT),
    needed("create_time_us", NUMBER),
    Column("delete_time_us", NUMBER),
    needed("manifest_name", TEXT),
    needed("manifest_sha256", TEXT),
    needed("manifest_bytes", NUMBER),
    needed("summary", TEXT),
    Column("picture_set", NUMBER),
    ForeignKeyConstraint(["dataset"], ["datasets.name"]),
    ForeignKeyConstraint(["picture_set"], ["picture_sets.id"]),
    UniqueConstraint("dataset", "request_id"),
    Index("dataset_versions_by_manifest", "manifest_sha256"),
    Index("dataset_versions_by_set", "picture_set"),
    **KEYED,
)
"""As ``versions``: what was deleted keeps its row, without its pictures."""

dataset_signatures = Table(
    "dataset_signatures",
    metadata,
    key("dataset", TEXT),
    key("version", NUMBER),
    key("key_id", TEXT),
    needed("envelope", BYTES),
    _of_dataset_version(),
    **KEYED,
)

pictures = Table(
    "pictures",
    metadata,
    key("picture_set", NUMBER),
    key("sha256", TEXT),
    ForeignKeyConstraint(["picture_set"], ["picture_sets.id"]),
    Index("pictures_by_content", "sha256"),
    **KEYED,
)

profiles = Table(
    "profiles",
    metadata,
    key("sha256", TEXT),
    key("key", TEXT),
    needed("node", TEXT),
    needed("content", TEXT),
    needed("update_time_us", NUMBER),
    **NUMBERED,
)
