"""The table of tasks. Times are microseconds since 1970, UTC."""

from __future__ import annotations

from sqlalchemy import Column, Index, Table, UniqueConstraint

from services.fleet.schema import METADATA
from splitmesh.sql.columns import BYTES, KEYED, NUMBER, TEXT, key, needed

tasks = Table(
    "tasks",
    METADATA,
    key("id", TEXT),
    needed("sequence", NUMBER),
    needed("kind", NUMBER),
    needed("state", NUMBER),
    needed("node", TEXT),
    needed("attempt", NUMBER),
    needed("deployment_id", TEXT),
    needed("model", TEXT),
    Column("request_id", TEXT),
    needed("rest_until_us", NUMBER),
    needed("update_time_us", NUMBER),
    needed("task", BYTES),
    UniqueConstraint("sequence"),
    UniqueConstraint("request_id"),
    Index("tasks_by_state", "state", "node"),
    Index("tasks_by_node", "node", "sequence"),
    Index("tasks_by_deployment", "deployment_id", "sequence"),
    **KEYED,
)
"""``task`` is the whole task as a message (fleet.proto); the columns before it repeat what is searched for. ``sequence`` counts
the tasks; ``node``: the host that has it or that alone may have it, empty: none yet; ``model``: of one that deploys."""
