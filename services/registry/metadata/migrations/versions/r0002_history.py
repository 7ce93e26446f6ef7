"""Moves of aliases, lineage, signatures, holds, deletion, events, keyrings and datasets."""

from __future__ import annotations

from uuid import uuid4

from alembic import op
from sqlalchemy import Column, ForeignKeyConstraint, UniqueConstraint, text
from sqlalchemy.sql.schema import SchemaItem

from splitmesh.sql.columns import BYTES, KEYED, NUMBER, NUMBERED, TEXT, key, needed

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Keeps everything; each alias of before gets one move, as old as the version it points at."""
    op.add_column("versions", needed("lineage", TEXT, default=""))
    op.add_column("versions", Column("delete_time_us", NUMBER))
    op.create_index("artifacts_by_content", "artifacts", ["sha256"])
    op.create_table("signatures", *_of_version(key("key_id", TEXT), needed("envelope", BYTES)), **KEYED)
    op.create_table("holds", *_of_version(key("holder", TEXT), Column("until_us", NUMBER)), **KEYED)
    op.create_table("lineage_datasets", *_of_version(key("dataset", TEXT), key("dataset_version", NUMBER)), **KEYED)
    op.create_index("lineage_datasets_by_dataset", "lineage_datasets", ["dataset", "dataset_version"])
    _create_needs()
    _create_log()
    _create_datasets()
    _move_aliases()


def _create_needs() -> None:
    needed_version = ForeignKeyConstraint(["needed_model", "needed_version"], ["versions.model", "versions.version"])
    op.create_table(
        "version_needs",
        *_of_version(key("needed_model", TEXT), key("needed_version", NUMBER), needed_version),
        **KEYED,
    )
    op.create_index("version_needs_by_needed", "version_needs", ["needed_model", "needed_version"])


def _of_version(*columns: SchemaItem) -> list[SchemaItem]:
    return [
        key("model", TEXT),
        key("version", NUMBER),
        *columns,
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
    ]


def _of_dataset(*columns: SchemaItem) -> list[SchemaItem]:
    return [
        key("dataset", TEXT),
        key("version", NUMBER),
        *columns,
        ForeignKeyConstraint(["dataset", "version"], ["dataset_versions.dataset", "dataset_versions.version"]),
    ]


def _create_log() -> None:
    op.create_table(
        "state",
        key("id", NUMBER),
        needed("epoch", NUMBER),
        needed("last_move", NUMBER),
        needed("last_event", NUMBER),
        needed("identity", TEXT),
        **NUMBERED,
    )
    op.create_table(
        "events",
        key("sequence", NUMBER),
        needed("time_us", NUMBER),
        needed("kind", TEXT),
        needed("name", TEXT),
        needed("subject", TEXT),
        needed("by", TEXT),
        needed("peer", TEXT),
        needed("key_ids", TEXT),
        needed("detail", TEXT),
        **NUMBERED,
    )
    op.create_index("events_by_name", "events", ["name", "sequence"])
    op.create_table("keyrings", key("version", NUMBER), needed("envelope", BYTES), **NUMBERED)


def _create_datasets() -> None:
    op.create_table(
        "datasets", key("name", TEXT), needed("latest_version", NUMBER), needed("create_time_us", NUMBER), **KEYED
    )
    op.create_table("picture_sets", key("id", NUMBER), **NUMBERED)
    op.create_table(
        "dataset_versions",
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
        **KEYED,
    )
    op.create_index("dataset_versions_by_manifest", "dataset_versions", ["manifest_sha256"])
    op.create_index("dataset_versions_by_set", "dataset_versions", ["picture_set"])
    op.create_table("dataset_signatures", *_of_dataset(key("key_id", TEXT), needed("envelope", BYTES)), **KEYED)
    in_set = ForeignKeyConstraint(["picture_set"], ["picture_sets.id"])
    op.create_table("pictures", key("picture_set", NUMBER), key("sha256", TEXT), in_set, **KEYED)
    op.create_index("pictures_by_content", "pictures", ["sha256"])


def _move_aliases() -> None:
    connection = op.get_bind()
    before = connection.execute(
        text(
            "SELECT aliases.model, alias, aliases.version, create_time_us FROM aliases JOIN versions"
            " ON versions.model = aliases.model AND versions.version = aliases.version ORDER BY aliases.model, alias"
        )
    ).all()
    op.drop_table("aliases")
    moves = op.create_table(
        "alias_moves",
        key("sequence", NUMBER),
        needed("model", TEXT),
        needed("alias", TEXT),
        needed("previous", NUMBER),
        needed("version", NUMBER),
        needed("moved_by", TEXT),
        needed("reason", TEXT),
        needed("move_time_us", NUMBER),
        ForeignKeyConstraint(["model"], ["models.name"]),
        **NUMBERED,
    )
    op.create_index("alias_moves_by_alias", "alias_moves", ["model", "alias", "sequence"])
    op.create_index("alias_moves_by_model", "alias_moves", ["model", "sequence"])
    aliases = op.create_table(
        "aliases",
        key("model", TEXT),
        key("alias", TEXT),
        needed("version", NUMBER),
        needed("sequence", NUMBER),
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.version"]),
        ForeignKeyConstraint(["sequence"], ["alias_moves.sequence"]),
        **KEYED,
    )
    op.create_index("aliases_by_version", "aliases", ["model", "version"])
    kept = [
        {"sequence": index, "model": row.model, "alias": row.alias, "version": row.version, "time": row.create_time_us}
        for index, row in enumerate(before, start=1)
    ]
    reason = "pointed here when moves began to be recorded"
    op.bulk_insert(
        moves,
        [
            {
                **{name: one[name] for name in ("sequence", "model", "alias", "version")},
                "previous": 0,
                "moved_by": "",
                "reason": reason,
                "move_time_us": one["time"],
            }
            for one in kept
        ],
    )
    op.bulk_insert(aliases, [{name: one[name] for name in ("model", "alias", "version", "sequence")} for one in kept])
    connection.execute(
        text("INSERT INTO state (id, epoch, last_move, last_event, identity) VALUES (1, 0, :moves, 0, :identity)"),
        {"moves": len(kept), "identity": uuid4().hex},
    )
