"""Statements about hosts. Knows no rule, no transaction and no thread: the caller has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from services.fleet.nodes.records import NodeRecord, ServingKey, from_row, to_row
from services.fleet.nodes.tables import node_serving, nodes
from services.fleet.values import Host, Target
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.sql.times import to_us

_WHO = (
    nodes.c.node,
    nodes.c.tenant,
    nodes.c.site,
    nodes.c.line,
    nodes.c.camera_groups,
    nodes.c.labels,
    nodes.c.operator_labels,
)
_AT_ONCE = 500
"""Names in one IN."""
_CHANGING = [column.name for column in nodes.c if column.name not in ("node", "create_time_us")]
_UPDATE = (
    update(nodes)
    .where(nodes.c.node == bindparam("of_node"))
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)
_UPDATE_SEEN = (
    update(nodes)
    .where(nodes.c.node == bindparam("of_node"))
    .values(seen_time_us=bindparam("new_seen"), metrics=bindparam("new_metrics"))
)
_DELETE_SERVING = delete(node_serving).where(
    node_serving.c.node == bindparam("of_node"),
    node_serving.c.model == bindparam("of_model"),
    node_serving.c.head == bindparam("of_head"),
)


def hosts(connection: Connection, target: Target) -> list[Host]:
    """Those that a target means, by name."""
    asked = select(*_WHO).order_by(nodes.c.node)
    names = sorted(target.nodes)
    if target.nodes and not target.every:
        rows = [
            row
            for first in range(0, len(names), _AT_ONCE)
            for row in connection.execute(asked.where(nodes.c.node.in_(names[first : first + _AT_ONCE])))
        ]
    else:
        if target.sites and not target.every and len(target.sites) <= _AT_ONCE:
            asked = asked.where(nodes.c.site.in_(sorted(target.sites)))
        rows = list(connection.execute(asked))
    found = [
        Host(
            row.node,
            row.tenant,
            row.site,
            row.line,
            _groups(row.camera_groups),
            _labels(row.labels, row.operator_labels),
        )
        for row in rows
    ]
    return [host for host in found if target.fits(host)]


# Hosts of one site say the same: to read each of them anew is most of what it costs to find them.
@lru_cache(maxsize=4096)
def _groups(text: str) -> frozenset[str]:
    return frozenset(json.loads(text))


@lru_cache(maxsize=4096)
def _labels(own: str, operators: str) -> Mapping[str, str]:
    return MappingProxyType({**json.loads(own), **json.loads(operators)})


def read_all(connection: Connection) -> list[NodeRecord]:
    """Every host with what it serves."""
    found = {row.node: from_row(row) for row in connection.execute(select(nodes))}
    for row in connection.execute(select(node_serving)):
        state = serving_pb2.ServingState.FromString(row.state)
        found[row.node].serving[row.model, row.head] = state
    return list(found.values())


def write(connection: Connection, fresh: Sequence[NodeRecord], known: Sequence[NodeRecord]) -> None:
    """Hosts that were never seen, and those that were; not what they serve."""
    if fresh:
        connection.execute(insert(nodes), [to_row(record) for record in fresh])
    if known:
        rows = [(record.node, to_row(record)) for record in known]
        connection.execute(
            _UPDATE, [{"of_node": node, **{f"new_{name}": row[name] for name in _CHANGING}} for node, row in rows]
        )


def write_seen(connection: Connection, seen: Sequence[NodeRecord]) -> None:
    """Hosts of which nothing but their figures, and when they were heard of, is news."""
    if seen:
        rows = [
            {
                "of_node": one.node,
                "new_seen": to_us(one.seen_time),
                "new_metrics": one.metrics.SerializeToString(),
            }
            for one in seen
        ]
        connection.execute(_UPDATE_SEEN, rows)


def write_serving(
    connection: Connection,
    changed: Mapping[tuple[str, ServingKey], serving_pb2.ServingState],
    gone: Iterable[tuple[str, ServingKey]],
) -> None:
    """What hosts serve, by host, model and head: states that are new, and those that are no more."""
    old = [{"of_node": node, "of_model": model, "of_head": head} for node, (model, head) in {*changed, *gone}]
    if old:
        connection.execute(_DELETE_SERVING, old)
    rows = [
        {"node": node, "model": model, "head": head, "state": state.SerializeToString()}
        for (node, (model, head)), state in changed.items()
    ]
    if rows:
        connection.execute(insert(node_serving), rows)


def forget(connection: Connection, node: str) -> None:
    """As if it had never been."""
    connection.execute(delete(node_serving).where(node_serving.c.node == node))
    connection.execute(delete(nodes).where(nodes.c.node == node))
