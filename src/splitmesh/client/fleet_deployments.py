"""Deployments as values: a version on its way to hosts, how it goes there, and what its trial has shown.

Knows the messages of ``splitmesh.api.fleet.v1``; asks nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.fleet_nodes import Target, VersionProgress, target_of, version_progress_of


class DeploymentState(StrEnum):
    """Where a deployment stands."""

    SHADOW = "SHADOW"
    """The candidate computes beside the version that answers."""
    CANARY = "CANARY"
    """The candidate answers a share of the frames."""
    ROLLING = "ROLLING"
    PAUSED = "PAUSED"
    """Until somebody says so."""
    DONE = "DONE"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    SUPERSEDED = "SUPERSEDED"
    """A later one has taken its place."""


ENDED = frozenset({DeploymentState.DONE, DeploymentState.ROLLED_BACK, DeploymentState.SUPERSEDED})
TRIAL = frozenset({DeploymentState.SHADOW, DeploymentState.CANARY})


class Reference(StrEnum):
    """Who is right where two versions' answers are compared."""

    FULL_MODEL = "full-model"
    LABELS = "labels"


@dataclass(frozen=True, slots=True)
class Gate:
    """How it is decided whether a version is as good as the one before it; 0 is the fleet's own default everywhere."""

    margin: float = 0.0
    """How much more often it may be wrong, as a share of frames."""
    alpha: float = 0.0
    """Probability of promoting one that is worse than that, and of rolling back one that is not worse."""
    shadow_pairs: int = 0
    """Pairs that a shadow needs at least before the candidate answers anything."""
    canary_share: float = 0.0
    pair_share: float = 0.0
    max_pairs: int = 0
    """When so many have shown neither, the deployment pauses."""
    reference: Reference = Reference.FULL_MODEL
    max_time_s: float = 0.0
    """0: no limit."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a version is brought to hosts."""

    wave_percents: tuple[int, ...] = ()
    """Share of the hosts that have it at the end of each wave; empty: 100 at once."""
    gate: Gate | None = None
    """The first wave tries the version; None: every host switches at once."""
    max_failed_share: float = 0.0
    host_timeout_s: float = 0.0
    """0: the fleet's own."""
    pause_s: float = 0.0
    """Between waves."""
    require_tail: bool = False
    max_parallel: int = 0
    """0: the fleet's own."""
    alias: str = ""
    """Points at the version when the deployment is done; empty: none."""


@dataclass(frozen=True, slots=True)
class DeploymentCounts:
    """Hosts of a deployment by where they stand."""

    total: int
    waiting: int
    under_way: int
    serving: int
    failed: int
    offline: int
    rolled_back: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What pairs of answers show."""

    pairs: int
    serving_loss: float
    candidate_loss: float
    not_worse: float
    """Wealth of the bet against "worse than the margin"."""
    worse: float
    """Wealth of the bet against "not worse"."""
    needed: float
    """What either has to reach."""
    candidate_failed: int
    not_made: int


@dataclass(frozen=True, slots=True)
class DeploymentInfo:
    """A deployment now."""

    id: str
    model: str
    version: int
    target: Target
    strategy: Strategy
    state: DeploymentState
    message: str
    wave: int
    waves: int
    counts: DeploymentCounts
    evidence: Evidence | None
    create_time: datetime
    update_time: datetime
    created_by: str
    description: str
    resumes: DeploymentState | None
    """What it goes on with when it is resumed."""

    @property
    def ended(self) -> bool:
        """It will not change any more, but for a rollback."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True)
class DeploymentNode:
    """One host of a deployment."""

    node: str
    wave: int
    progress: VersionProgress
    from_version: int
    """0: none."""
    online: bool
    task_id: str
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class DeploymentNews:
    """A deployment with its hosts that changed; in the first news all of them."""

    deployment: DeploymentInfo
    nodes: tuple[DeploymentNode, ...]


def strategy_message(strategy: Strategy) -> pb.Strategy:
    """As it travels."""
    message = pb.Strategy(
        wave_percents=strategy.wave_percents,
        max_failed_share=strategy.max_failed_share,
        require_tail=strategy.require_tail,
        max_parallel=strategy.max_parallel,
        alias=strategy.alias,
    )
    if strategy.host_timeout_s:
        message.host_timeout.FromTimedelta(timedelta(seconds=strategy.host_timeout_s))
    if strategy.pause_s:
        message.pause.FromTimedelta(timedelta(seconds=strategy.pause_s))
    if strategy.gate is not None:
        message.gate.CopyFrom(_gate_message(strategy.gate))
    return message


def _gate_message(gate: Gate) -> pb.Gate:
    labels = gate.reference is Reference.LABELS
    message = pb.Gate(
        margin=gate.margin,
        alpha=gate.alpha,
        shadow_pairs=gate.shadow_pairs,
        canary_share=gate.canary_share,
        pair_share=gate.pair_share,
        max_pairs=gate.max_pairs,
        reference=serving_pb2.TRIAL_REFERENCE_LABELS if labels else serving_pb2.TRIAL_REFERENCE_FULL_MODEL,
    )
    if gate.max_time_s:
        message.max_time.FromTimedelta(timedelta(seconds=gate.max_time_s))
    return message


def deployment_of(message: pb.Deployment) -> DeploymentInfo:
    """As it came."""
    return DeploymentInfo(
        id=message.id,
        model=message.model,
        version=message.version,
        target=target_of(message.target),
        strategy=_strategy(message.strategy),
        state=_state(message.state),
        message=message.message,
        wave=message.wave,
        waves=message.waves,
        counts=DeploymentCounts(**{name: getattr(message.counts, name) for name in DeploymentCounts.__slots__}),
        evidence=Evidence(**{name: getattr(message.evidence, name) for name in Evidence.__slots__})
        if message.HasField("evidence")
        else None,
        create_time=message.create_time.ToDatetime(tzinfo=UTC),
        update_time=message.update_time.ToDatetime(tzinfo=UTC),
        created_by=message.created_by,
        description=message.description,
        resumes=_state(message.resumes) if message.resumes else None,
    )


def deployment_node_of(message: pb.DeploymentNode) -> DeploymentNode:
    """As it came."""
    return DeploymentNode(
        node=message.node,
        wave=message.wave,
        progress=version_progress_of(message.state),
        from_version=message.from_version,
        online=message.online,
        task_id=message.task_id,
        rolled_back=message.rolled_back,
    )


def _state(number: pb.DeploymentState.ValueType) -> DeploymentState:
    return DeploymentState(pb.DeploymentState.Name(number).removeprefix("DEPLOYMENT_STATE_"))


def _strategy(message: pb.Strategy) -> Strategy:
    return Strategy(
        wave_percents=tuple(message.wave_percents),
        gate=_gate(message.gate) if message.HasField("gate") else None,
        max_failed_share=message.max_failed_share,
        host_timeout_s=message.host_timeout.ToTimedelta().total_seconds(),
        pause_s=message.pause.ToTimedelta().total_seconds(),
        require_tail=message.require_tail,
        max_parallel=message.max_parallel,
        alias=message.alias,
    )


def _gate(message: pb.Gate) -> Gate:
    labels = message.reference == serving_pb2.TRIAL_REFERENCE_LABELS
    return Gate(
        margin=message.margin,
        alpha=message.alpha,
        shadow_pairs=message.shadow_pairs,
        canary_share=message.canary_share,
        pair_share=message.pair_share,
        max_pairs=message.max_pairs,
        reference=Reference.LABELS if labels else Reference.FULL_MODEL,
        max_time_s=message.max_time.ToTimedelta().total_seconds(),
    )
