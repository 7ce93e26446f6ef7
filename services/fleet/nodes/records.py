"""A host as it is known: what it said of itself, what an operator said, what it serves. Knows no database and no stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.fleet.values import Host
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.sql.times import from_us, to_us

DEFAULT_TENANT = "default"

_SAID = ("tenant", "site", "line", "camera_groups", "labels", "boot_id", "agent_version", "capabilities")

ServingKey = tuple[str, str]
"""Model, and the head that serves it."""


@dataclass(slots=True)
class NodeRecord:
    """One host."""

    node: str
    tenant: str
    site: str
    line: str
    camera_groups: tuple[str, ...]
    labels: Mapping[str, str]
    """Its own."""
    operator_labels: Mapping[str, str]
    boot_id: str
    agent_version: str
    capabilities: fleet_pb2.Capabilities
    metrics: fleet_pb2.Heartbeat
    create_time: datetime
    seen_time: datetime
    serving: dict[ServingKey, serving_pb2.ServingState] = field(default_factory=dict)

    @property
    def all_labels(self) -> dict[str, str]:
        """Its own, and an operator's in their place."""
        return {**self.labels, **self.operator_labels}

    def host(self) -> Host:
        """What a target looks at."""
        return Host(self.node, self.tenant, self.site, self.line, frozenset(self.camera_groups), self.all_labels)

    def says_the_same(self, before: NodeRecord) -> bool:
        """As it said before, but for when, and for what it serves."""
        return all(getattr(self, name) == getattr(before, name) for name in _SAID)

    def to_message(
        self, *, online: bool, warning: str = "", policy: serving_pb2.HostPolicy | None = None
    ) -> fleet_pb2.Node:
        """As callers see it."""
        state = fleet_pb2.NODE_STATE_ONLINE if online else fleet_pb2.NODE_STATE_OFFLINE
        message = fleet_pb2.Node(
            node=self.node,
            tenant=self.tenant,
            site=self.site,
            line=self.line,
            camera_groups=self.camera_groups,
            labels=self.all_labels,
            state=state,
            boot_id=self.boot_id,
            agent_version=self.agent_version,
            capabilities=self.capabilities,
            metrics=self.metrics,
            serving=[self.serving[key] for key in sorted(self.serving)],
            warning=warning,
            policy=policy,
        )
        message.create_time.FromDatetime(self.create_time)
        message.seen_time.FromDatetime(self.seen_time)
        return message


def record_of(hello: fleet_pb2.Hello, now: datetime, before: NodeRecord | None) -> NodeRecord:
    """A host that says this now; what an operator said and when it was first seen is as before."""
    return NodeRecord(
        node=hello.node,
        tenant=hello.tenant or DEFAULT_TENANT,
        site=hello.site,
        line=hello.line,
        camera_groups=tuple(sorted(set(hello.camera_groups))),
        labels=dict(hello.labels),
        operator_labels=before.operator_labels if before else {},
        boot_id=hello.boot_id,
        agent_version=hello.agent_version,
        capabilities=hello.capabilities,
        metrics=before.metrics if before else fleet_pb2.Heartbeat(),
        create_time=before.create_time if before else now,
        seen_time=now,
        serving={(state.model, state.node): state for state in hello.serving if not says_nothing(state)},
    )


def says_nothing(state: serving_pb2.ServingState) -> bool:
    """Nothing but its names: the head is gone, or does not serve the model any more."""
    return state == serving_pb2.ServingState(model=state.model, node=state.node)


def to_row(record: NodeRecord) -> dict[str, Any]:
    """A host as a row, without what it serves."""
    return {
        "node": record.node,
        "tenant": record.tenant,
        "site": record.site,
        "line": record.line,
        "camera_groups": json.dumps(record.camera_groups),
        "labels": json.dumps(dict(record.labels)),
        "operator_labels": json.dumps(dict(record.operator_labels)),
        "boot_id": record.boot_id,
        "agent_version": record.agent_version,
        "capabilities": record.capabilities.SerializeToString(),
        "metrics": record.metrics.SerializeToString(),
        "create_time_us": to_us(record.create_time),
        "seen_time_us": to_us(record.seen_time),
    }


def from_row(row: Any) -> NodeRecord:
    """The inverse."""
    return NodeRecord(
        node=row.node,
        tenant=row.tenant,
        site=row.site,
        line=row.line,
        camera_groups=tuple(json.loads(row.camera_groups)),
        labels=json.loads(row.labels),
        operator_labels=json.loads(row.operator_labels),
        boot_id=row.boot_id,
        agent_version=row.agent_version,
        capabilities=fleet_pb2.Capabilities.FromString(row.capabilities),
        metrics=fleet_pb2.Heartbeat.FromString(row.metrics),
        create_time=from_us(row.create_time_us),
        seen_time=from_us(row.seen_time_us),
    )
