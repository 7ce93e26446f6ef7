"""The tables of deployments. Times are microseconds since 1970, UTC; 0: not set."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKeyConstraint, Index, Table, UniqueConstraint

from services.fleet.schema import METADATA
from splitmesh.sql.columns import BYTES, KEYED, NUMBER, NUMBERED, TEXT, key, needed

deployments = Table(
    "deployments",
    METADATA,
    key("number", NUMBER),
    needed("id", TEXT),
    Column("request_id", TEXT),
    needed("model", TEXT),
    needed("version", NUMBER),
    needed("target", BYTES),
    needed("strategy", BYTES),
    needed("created_by", TEXT),
    needed("description", TEXT),
    needed("create_time_us", NUMBER),
    needed("waves", NUMBER),
    needed("state", NUMBER),
    needed("resumes", NUMBER),
    needed("message", TEXT),
    needed("wave", NUMBER),
    needed("wave_end_us", NUMBER),
    needed("trial_since_us", NUMBER),
    needed("pairs_limit", NUMBER),
    needed("canary_from", NUMBER),
    needed("alias_moved", NUMBER),
    needed("alias_from", NUMBER),
    needed("superseded_by", TEXT),
    needed("update_time_us", NUMBER),
    UniqueConstraint("id"),
    UniqueConstraint("request_id"),
    Index("deployments_by_model", "model", "number"),
    Index("deployments_by_state", "state"),
    **NUMBERED,
)
"""``number`` counts the deployments; a later one goes before. ``target`` and ``strategy`` are messages (fleet.proto)."""

deployment_nodes = Table(
    "deployment_nodes",
    METADATA,
    key("deployment_id", TEXT),
    key("node", TEXT),
    needed("wave", NUMBER),
    needed("stage", NUMBER),
    needed("from_version", NUMBER),
    needed("from_previous", NUMBER),
    needed("from_deployment", TEXT),
    needed("base_version", NUMBER),
    needed("to_version", NUMBER),
    needed("generation", NUMBER),
    needed("since_us", NUMBER),
    needed("task_id", TEXT),
    needed("reason", TEXT),
    needed("message", TEXT),
    needed("taken_by", TEXT),
    ForeignKeyConstraint(["deployment_id"], ["deployments.id"]),
    Index("deployment_nodes_by_node", "node"),
    Index("deployment_nodes_by_taker", "taken_by"),
    **KEYED,
)
"""Where each host stands. ``from_*``: the assignment it had before; ``base_version``: what answered before, by an assignment or
an alias; ``to_version``: what it was told last; ``taken_by``: the later deployment that has the host now."""

assignments = Table(
    "assignments",
    METADATA,
    key("node", TEXT),
    key("model", TEXT),
    needed("version", NUMBER),
    needed("generation", NUMBER),
    needed("previous_version", NUMBER),
    needed("assignment", BYTES),
    needed("deployment_id", TEXT),
    needed("task_id", TEXT),
    needed("settled", NUMBER),
    Index("assignments_by_task", "task_id"),
    Index("assignments_by_version", "model", "version"),
    **KEYED,
)
"""What each host shall serve; ``assignment`` is the whole of it as a message (serving.proto), ``version`` 0: it was withdrawn.
``generation`` only grows. ``settled`` 1: no task for it is under way, so a host that comes back with less is told again."""

trial_counts = Table(
    "trial_counts",
    METADATA,
    key("deployment_id", TEXT),
    key("trial_id", TEXT),
    key("node", TEXT),
    key("source", TEXT),
    needed("both_right", NUMBER),
    needed("only_serving_right", NUMBER),
    needed("only_candidate_right", NUMBER),
    needed("both_wrong", NUMBER),
    needed("candidate_failed", NUMBER),
    needed("serving_failed", NUMBER),
    needed("not_made", NUMBER),
    needed("answered_by_serving", NUMBER),
    needed("answered_by_candidate", NUMBER),
    ForeignKeyConstraint(["deployment_id"], ["deployments.id"]),
    **KEYED,
)
"""The last sums that each life of each head told; their sum is what a trial has counted."""

held_versions = Table("held_versions", METADATA, key("model", TEXT), key("version", NUMBER), **KEYED)
"""Versions that the registry keeps for the fleet; written before it is asked to, and taken away after it let go."""
