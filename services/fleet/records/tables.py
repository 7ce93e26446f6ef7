"""The tables of records. Times are microseconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import Index, Table, UniqueConstraint

from services.fleet.schema import METADATA
from splitmesh.sql.columns import BYTES, KEYED, NUMBER, NUMBERED, TEXT, key, needed

records = Table(
    "records",
    METADATA,
    key("position", NUMBER),
    needed("tenant", TEXT),
    needed("edge", TEXT),
    needed("boot_id", TEXT),
    needed("sequence", NUMBER),
    needed("kind", TEXT),
    needed("body", BYTES),
    needed("sha256", BYTES),
    needed("time_us", NUMBER),
    needed("commit_time_us", NUMBER),
    UniqueConstraint("tenant", "edge", "boot_id", "sequence"),
    Index("records_by_tenant", "tenant", "position"),
    Index("records_by_edge", "tenant", "edge", "position"),
    Index("records_by_kind", "tenant", "kind", "position"),
    **NUMBERED,
)
"""``position`` counts them in the order they came."""

record_counts = Table(
    "record_counts",
    METADATA,
    key("tenant", TEXT),
    key("edge", TEXT),
    key("kind", TEXT),
    needed("records", NUMBER),
    needed("body_bytes", NUMBER),
    **KEYED,
)
"""How many there are, so that nobody has to count them."""

record_totals = Table(
    "record_totals",
    METADATA,
    key("id", NUMBER),
    needed("last_position", NUMBER),
    needed("records", NUMBER),
    needed("body_bytes", NUMBER),
    **NUMBERED,
)
"""One row, once there is a record: what the bounds are compared with."""

record_drops = Table(
    "record_drops",
    METADATA,
    key("tenant", TEXT),
    key("edge", TEXT),
    key("life", TEXT),
    key("reason", TEXT),
    needed("records", NUMBER),
    **KEYED,
)
"""Records that a head had to drop in one life of its counts; never goes down. Those of its lives add up."""
