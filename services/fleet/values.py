"""What the fleet talks about within itself: hosts, targets, drafts of tasks. Knows no store and no stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitmesh.api.fleet.v1 import fleet_pb2

Work = fleet_pb2.DeployWork | fleet_pb2.ProfileWork | fleet_pb2.CollectWork
"""What exactly a task is to do; its type says the kind."""


@dataclass(frozen=True, slots=True)
class Host:
    """Who a host is; what a target looks at."""

    node: str
    """By name, unique in the fleet."""
    tenant: str = "default"
    site: str = ""
    line: str = ""
    camera_groups: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    """The host's own, and an operator's in their place where both have one."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which hosts: those that fit every field that is set, with any value within a field."""

    nodes: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    lines: frozenset[str] = frozenset()
    camera_groups: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of these."""
    every: bool = False

    def fits(self, host: Host) -> bool:
        """Whether it means the host; nothing set means none."""
        if self.every:
            return True
        if not (self.nodes or self.sites or self.lines or self.camera_groups or self.labels):
            return False
        return (
            (not self.nodes or host.node in self.nodes)
            and (not self.sites or host.site in self.sites)
            and (not self.lines or host.line in self.lines)
            and (not self.camera_groups or not self.camera_groups.isdisjoint(host.camera_groups))
            and all(host.labels.get(name) == value for name, value in self.labels.items())
        )


@dataclass(frozen=True, slots=True)
class TaskDraft:
    """A task that is not made yet."""

    work: Work
    node: str = ""
    """The one host that may have it; empty: any that ``target`` means."""
    target: Target | None = None
    max_attempts: int = 3
    created_by: str = ""
    deployment_id: str = ""
    request_id: str = ""
    """One value makes one task, ever; empty: every draft makes one."""
