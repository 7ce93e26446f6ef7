"""What a deployment is made of: what was asked for, where it stands, where its hosts stand. Knows no rule and no store."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from services.fleet.rollout.strategy import Strategy
from services.fleet.values import Target
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2

State: TypeAlias = "fleet_pb2.DeploymentState.ValueType"

NO_STATE = fleet_pb2.DEPLOYMENT_STATE_UNSPECIFIED
SHADOW = fleet_pb2.DEPLOYMENT_STATE_SHADOW
CANARY = fleet_pb2.DEPLOYMENT_STATE_CANARY
ROLLING = fleet_pb2.DEPLOYMENT_STATE_ROLLING
PAUSED = fleet_pb2.DEPLOYMENT_STATE_PAUSED
DONE = fleet_pb2.DEPLOYMENT_STATE_DONE
ROLLING_BACK = fleet_pb2.DEPLOYMENT_STATE_ROLLING_BACK
ROLLED_BACK = fleet_pb2.DEPLOYMENT_STATE_ROLLED_BACK
SUPERSEDED = fleet_pb2.DEPLOYMENT_STATE_SUPERSEDED

TRIAL_STATES = (SHADOW, CANARY)
ACTIVE = (SHADOW, CANARY, ROLLING, PAUSED, ROLLING_BACK)
ENDED = (DONE, ROLLED_BACK, SUPERSEDED)


class Stage(IntEnum):
    """Where a host of a deployment stands. Numbers are in databases."""

    WAITING = 1
    """Not told, or not told to switch."""
    TRYING = 2
    """Told to try the version."""
    TRIAL = 3
    """Tries it."""
    SWITCHING = 4
    """Told to serve it."""
    SERVING = 5
    """Serves it."""
    FAILED = 6
    """Cannot, or did not in time. May still come to."""
    RETURNING = 7
    """Told to go back."""
    RETURNED = 8
    """Is back, or was never told anything."""
    STUCK = 9
    """Was told to go back and cannot, or did not in time. May still come to."""


UNDER_WAY = (Stage.TRYING, Stage.TRIAL, Stage.SWITCHING, Stage.RETURNING)
MOVING = (Stage.TRYING, Stage.SWITCHING, Stage.RETURNING)
"""Told something that has not happened yet."""


@dataclass(slots=True)
class HostRow:
    """One host of a deployment."""

    node: str
    wave: int
    stage: Stage = Stage.WAITING
    from_version: int = 0
    """Of the assignment that it had before; 0: none."""
    from_previous: int = 0
    """What that assignment had replaced."""
    from_deployment: str = ""
    """Whose that assignment was."""
    base_version: int = 0
    """What answered before, by an assignment or an alias; 0: nothing."""
    to_version: int = 0
    """What it was told last; 0: to have no assignment."""
    generation: int = 0
    """Of the last order; 0: none."""
    since_us: int = 0
    """When it was told."""
    task_id: str = ""
    """That brings the last order."""
    reason: str = ""
    message: str = ""
    taken_by: str = ""
    """The later deployment that has the host now."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    number: int
    """Counts the deployments."""
    id: str
    model: str
    version: int
    target: Target
    asked_target: fleet_pb2.Target
    strategy: Strategy
    asked_strategy: fleet_pb2.Strategy
    waves: int
    created_by: str = ""
    description: str = ""
    create_time_us: int = 0
    request_id: str = ""


@dataclass(slots=True)
class Status:
    """Where a deployment stands."""

    state: State
    resumes: State = NO_STATE
    """The state it goes on with after a pause."""
    message: str = ""
    wave: int = 1
    wave_end_us: int = 0
    """When the wave ended, while the pause before the next one lasts; 0: it has not."""
    trial_since_us: int = 0
    """When the trial began, or was told to go on."""
    pairs_limit: int = 0
    """The trial pauses at so many pairs."""
    canary_from: int = 0
    """Pairs when the canary began."""
    alias_moved: bool = False
    """The alias points at the version because of this deployment."""
    alias_from: int = 0
    """Where it pointed before; 0: nowhere."""
    superseded_by: str = ""
    update_time_us: int = 0


@dataclass(frozen=True, slots=True)
class Order:
    """What a host shall be told."""

    node: str
    version: int
    """0: the assignment is withdrawn."""
    trial: serving_pb2.Trial | None = None
    back: bool = False
    """It goes back to what it had before the deployment."""


@dataclass(slots=True)
class Figures:
    """Hosts of a deployment by where they stand."""

    total: int = 0
    waiting: int = 0
    under_way: int = 0
    serving: int = 0
    failed: int = 0
    offline: int = 0
    rolled_back: int = 0
    tried: dict[int, list[int]] = field(default_factory=dict)
    """By wave: hosts that failed, and hosts that count for their share."""
