"""The tables of hosts. Times are microseconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import ForeignKeyConstraint, Table

from services.fleet.schema import METADATA
from splitmesh.sql.columns import BYTES, KEYED, NUMBER, TEXT, key, needed

nodes = Table(
    "nodes",
    METADATA,
    key("node", TEXT),
    needed("tenant", TEXT),
    needed("site", TEXT),
    needed("line", TEXT),
    needed("camera_groups", TEXT),
    needed("labels", TEXT),
    needed("operator_labels", TEXT),
    needed("boot_id", TEXT),
    needed("agent_version", TEXT),
    needed("capabilities", BYTES),
    needed("metrics", BYTES),
    needed("create_time_us", NUMBER),
    needed("seen_time_us", NUMBER),
    **KEYED,
)
"""``camera_groups``: a JSON array; ``labels``, ``operator_labels``: JSON objects; ``capabilities``, ``metrics``: messages."""

node_serving = Table(
    "node_serving",
    METADATA,
    key("node", TEXT),
    key("model", TEXT),
    key("head", TEXT),
    needed("state", BYTES),
    ForeignKeyConstraint(["node"], ["nodes.node"], ondelete="CASCADE"),
    **KEYED,
)
"""What each head of a host said last of each model, as a message (serving.proto)."""
