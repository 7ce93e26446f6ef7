"""The hosts of a fleet as values: who they are, what they can do and serve, what their applications may use.

Knows the messages of ``splitmesh.api.fleet.v1`` and ``serving.v1``; asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2


class NodeState(StrEnum):
    """Whether a host can be told something now."""

    ONLINE = "ONLINE"
    OFFLINE = "OFFLINE"
    """Its agent is away; the host itself may well be serving."""


class Phase(StrEnum):
    """How far one version of one model is on one host."""

    QUEUED = "QUEUED"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    LOADING = "LOADING"
    WARMING = "WARMING"
    WAITING_FOR_TAIL = "WAITING_FOR_TAIL"
    SERVING = "SERVING"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Target:
    """Which hosts: those that fit every field that is set, with any value within a field; nothing set means none."""

    nodes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    camera_groups: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of these."""
    every: bool = False

    def __str__(self) -> str:
        parts = {"node": self.nodes, "site": self.sites, "line": self.lines, "group": self.camera_groups}
        named = [f"{name} {' or '.join(values)}" for name, values in parts.items() if values]
        named += [f"{name}={value}" for name, value in sorted(self.labels.items())]
        return "every host" if self.every else ", ".join(named) or "no host"


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """Something that computes segments on a host, or is installed there and cannot."""

    name: str
    version: str
    precisions: tuple[str, ...]
    unusable: str
    """Why; empty: it can."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor."""

    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a host is and can do."""

    cpu_model: str
    cpu_flags: tuple[str, ...]
    cores: int
    memory_bytes: int
    architecture: str
    os: str
    gpus: tuple[Gpu, ...]
    backends: tuple[BackendInfo, ...]
    task_kinds: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NodeMetrics:
    """A host's last figures."""

    cpu_share: float
    memory_bytes: int
    disk_free_bytes: int
    spooled_records: int
    dropped_records: int
    policy_generation: int


@dataclass(frozen=True, slots=True)
class BackendCandidate:
    """One way of computing a segment on a host, with what was measured."""

    backend: str
    precision: str
    threads: int
    p50_ms: float
    p99_ms: float
    frames_per_s: float
    error: float
    refused: str
    """Why it is not used; empty: it could be."""


@dataclass(frozen=True, slots=True)
class VersionProgress:
    """How far a version is on a host."""

    version: int
    phase: Phase | None
    """None: nothing is known yet."""
    done_bytes: int = 0
    total_bytes: int = 0
    reason: str = ""
    message: str = ""
    backend: BackendCandidate | None = None
    """The one that was chosen."""
    candidates: tuple[BackendCandidate, ...] = ()
    """Everything that was looked at."""

    def __str__(self) -> str:
        if self.phase is None:
            return "not told yet"
        text = self.phase.value.lower().replace("_", " ")
        if self.phase is Phase.DOWNLOADING and self.total_bytes:
            text += f" {self.done_bytes / self.total_bytes:.0%}"
        return text


@dataclass(frozen=True, slots=True)
class ServingInfo:
    """What one model does on a host."""

    model: str
    generation: int
    """Of its assignment; 0: it follows an alias."""
    active_version: int
    previous_version: int
    wanted: VersionProgress | None
    candidate: VersionProgress | None
    """The version that is tried."""
    memory_bytes: int
    head: str
    """Who answers."""


@dataclass(frozen=True, slots=True)
class AppShare:
    """What one application of a host may use."""

    model: str
    priority: int = 0
    cpu_weight: float = 0.0
    """0: 1."""
    memory_bytes: int = 0
    """0: no limit of its own."""


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """What the applications of a host may use."""

    shares: tuple[AppShare, ...] = ()
    memory_bytes: int = 0
    """0: what the host has."""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A host."""

    node: str
    tenant: str
    site: str
    line: str
    camera_groups: tuple[str, ...]
    labels: Mapping[str, str]
    state: NodeState
    boot_id: str
    agent_version: str
    capabilities: Capabilities
    metrics: NodeMetrics
    serving: tuple[ServingInfo, ...]
    create_time: datetime
    seen_time: datetime
    warning: str
    policy: HostPolicy | None


def target_message(target: Target) -> pb.Target:
    """As it travels."""
    return pb.Target(
        nodes=target.nodes,
        sites=target.sites,
        lines=target.lines,
        camera_groups=target.camera_groups,
        labels=dict(target.labels),
        all=target.every,
    )


def target_of(message: pb.Target) -> Target:
    """As it came."""
    return Target(
        nodes=tuple(message.nodes),
        sites=tuple(message.sites),
        lines=tuple(message.lines),
        camera_groups=tuple(message.camera_groups),
        labels=dict(message.labels),
        every=message.all,
    )


def policy_message(policy: HostPolicy) -> serving_pb2.HostPolicy:
    """As it travels; its generation is the fleet's to give."""
    shares = [serving_pb2.HostShare(**asdict(share)) for share in policy.shares]
    return serving_pb2.HostPolicy(shares=shares, memory_bytes=policy.memory_bytes)


def node_of(message: pb.Node) -> NodeInfo:
    """As it came."""
    return NodeInfo(
        node=message.node,
        tenant=message.tenant,
        site=message.site,
        line=message.line,
        camera_groups=tuple(message.camera_groups),
        labels=dict(message.labels),
        state=NodeState.ONLINE if message.state == pb.NODE_STATE_ONLINE else NodeState.OFFLINE,
        boot_id=message.boot_id,
        agent_version=message.agent_version,
        capabilities=_capabilities(message.capabilities),
        metrics=NodeMetrics(**{name: getattr(message.metrics, name) for name in NodeMetrics.__slots__}),
        serving=tuple(_serving(one) for one in message.serving),
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
        seen_time=message.seen_time.ToDatetime(tzinfo=UTC),
        warning=message.warning,
        policy=_policy(message.policy) if message.HasField("policy") else None,
    )


def version_progress_of(message: serving_pb2.VersionState) -> VersionProgress:
    """As it came; a phase that this release does not know is none."""
    name = serving_pb2.Phase.Name(message.phase).removeprefix("PHASE_") if message.phase in _PHASES else ""
    chosen = message.backend.chosen if message.backend.HasField("chosen") else None
    return VersionProgress(
        version=message.version,
        phase=Phase(name) if name else None,
        done_bytes=message.done_bytes,
        total_bytes=message.total_bytes,
        reason=message.reason,
        message=message.message,
        backend=_candidate(chosen) if chosen is not None else None,
        candidates=tuple(_candidate(one) for one in message.backend.candidates),
    )


_PHASES = frozenset(serving_pb2.Phase.values()) - {serving_pb2.PHASE_UNSPECIFIED}


def _candidate(message: serving_pb2.BackendCandidate) -> BackendCandidate:
    return BackendCandidate(**{name: getattr(message, name) for name in BackendCandidate.__slots__})


def _serving(message: serving_pb2.ServingState) -> ServingInfo:
    return ServingInfo(
        model=message.model,
        generation=message.generation,
        active_version=message.active_version,
        previous_version=message.previous_version,
        wanted=version_progress_of(message.wanted) if message.HasField("wanted") else None,
        candidate=version_progress_of(message.candidate) if message.HasField("candidate") else None,
        memory_bytes=message.memory_bytes,
        head=message.node,
    )


def _policy(message: serving_pb2.HostPolicy) -> HostPolicy:
    shares = tuple(AppShare(**{name: getattr(one, name) for name in AppShare.__slots__}) for one in message.shares)
    return HostPolicy(shares, message.memory_bytes, message.generation)


def _capabilities(message: pb.Capabilities) -> Capabilities:
    return Capabilities(
        cpu_model=message.cpu_model,
        cpu_flags=tuple(message.cpu_flags),
        cores=message.cores,
        memory_bytes=message.memory_bytes,
        architecture=message.architecture,
        os=message.os,
        gpus=tuple(Gpu(one.name, one.memory_bytes, one.driver) for one in message.gpus),
        backends=tuple(
            BackendInfo(one.name, one.version, tuple(one.precisions), one.unusable) for one in message.backends
        ),
        task_kinds=tuple(pb.TaskKind.Name(one).removeprefix("TASK_KIND_") for one in message.task_kinds),
        fingerprint=message.fingerprint,
    )
