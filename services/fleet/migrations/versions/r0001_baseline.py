"""What the fleet kept from the first: hosts, tasks, deployments, records, policies."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, ForeignKeyConstraint, UniqueConstraint

from splitmesh.sql.columns import BYTES, KEYED, NUMBER, NUMBERED, TEXT, key, needed

revision = "fleet_0001"  # unlike that of any other service
down_revision = None


def upgrade() -> None:
    """On a new database."""
    op.create_table("state", key("id", NUMBER), needed("epoch", NUMBER), **NUMBERED)
    op.execute("INSERT INTO state (id, epoch) VALUES (1, 0)")
    _create_hosts()
    _create_tasks()
    _create_deployments()
    _create_records()
    _create_policies()


def _create_hosts() -> None:
    op.create_table(
        "nodes",
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
    op.create_table(
        "node_serving",
        key("node", TEXT),
        key("model", TEXT),
        key("head", TEXT),
        needed("state", BYTES),
        ForeignKeyConstraint(["node"], ["nodes.node"], ondelete="CASCADE"),
        **KEYED,
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
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
        UniqueConstraint("request_id"),
        UniqueConstraint("sequence"),
        **KEYED,
    )
    op.create_index("tasks_by_deployment", "tasks", ["deployment_id", "sequence"])
    op.create_index("tasks_by_node", "tasks", ["node", "sequence"])
    op.create_index("tasks_by_state", "tasks", ["state", "node"])


def _create_deployments() -> None:
    op.create_table(
        "assignments",
        key("node", TEXT),
        key("model", TEXT),
        needed("version", NUMBER),
        needed("generation", NUMBER),
        needed("previous_version", NUMBER),
        needed("assignment", BYTES),
        needed("deployment_id", TEXT),
        needed("task_id", TEXT),
        needed("settled", NUMBER),
        **KEYED,
    )
    op.create_index("assignments_by_task", "assignments", ["task_id"])
    op.create_index("assignments_by_version", "assignments", ["model", "version"])
    op.create_table(
        "deployments",
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
        **NUMBERED,
    )
    op.create_index("deployments_by_model", "deployments", ["model", "number"])
    op.create_index("deployments_by_state", "deployments", ["state"])
    op.create_table("held_versions", key("model", TEXT), key("version", NUMBER), **KEYED)
    op.create_table(
        "deployment_nodes",
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
        **KEYED,
    )
    op.create_index("deployment_nodes_by_node", "deployment_nodes", ["node"])
    op.create_index("deployment_nodes_by_taker", "deployment_nodes", ["taken_by"])
    op.create_table(
        "trial_counts",
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


def _create_records() -> None:
    op.create_table(
        "record_counts",
        key("tenant", TEXT),
        key("edge", TEXT),
        key("kind", TEXT),
        needed("records", NUMBER),
        needed("body_bytes", NUMBER),
        **KEYED,
    )
    op.create_table(
        "record_drops",
        key("tenant", TEXT),
        key("edge", TEXT),
        key("life", TEXT),
        key("reason", TEXT),
        needed("records", NUMBER),
        **KEYED,
    )
    op.create_table(
        "record_totals",
        key("id", NUMBER),
        needed("last_position", NUMBER),
        needed("records", NUMBER),
        needed("body_bytes", NUMBER),
        **NUMBERED,
    )
    op.create_table(
        "records",
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
        **NUMBERED,
    )
    op.create_index("records_by_edge", "records", ["tenant", "edge", "position"])
    op.create_index("records_by_kind", "records", ["tenant", "kind", "position"])
    op.create_index("records_by_tenant", "records", ["tenant", "position"])


def _create_policies() -> None:
    op.create_table("host_policies", key("node", TEXT), needed("generation", NUMBER), needed("policy", BYTES), **KEYED)
    op.create_table(
        "policy_rules",
        key("number", NUMBER),
        needed("id", TEXT),
        needed("target", BYTES),
        needed("policy", BYTES),
        needed("create_time_us", NUMBER),
        UniqueConstraint("target"),
        **NUMBERED,
    )
