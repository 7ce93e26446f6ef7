"""What the router's clients say and hear, as values; the messages are ``routing_messages.py``'s. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from splitmesh.api.routing.v1 import routing_pb2


@dataclass(frozen=True, slots=True)
class ClassLimit:
    """A class whose mistakes count apart; a limit of 0 is none."""

    label: str
    """Name of the class."""
    max_missed: float = 0.0
    """P(accepted and another class is named | the reference is this class), 0..1."""
    max_false_alarms: float = 0.0
    """P(accepted and this class is named | the reference is another one), 0..1."""


@dataclass(frozen=True, slots=True)
class Goals:
    """What may go wrong with a model, and how the threshold is to be found; see ``splitmesh.api.routing.v1.Goals``."""

    max_disagreement: float
    """Tolerated share of samples on which the exit answers and disagrees with the full model, 0..1, both excluded."""
    delta: float = 0.0
    """Probability that a promise does not hold; 0: the router's default."""
    classes: tuple[ClassLimit, ...] = ()
    score: str = ""
    """What the threshold is compared with; empty: what keeps most samples at the edge."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Of the score."""
    costs: tuple[float, ...] = ()
    """``classes * classes``, row by row, of naming the column's class where the reference is the row's; empty: all mistakes
    cost the same."""
    audit_share: float | None = None
    """Share of the exit's answers that are asked of the tail all the same, 0..0.5; None: the router's default."""
    escalate_unusual: bool | None = None
    """Whether samples unlike the calibration's escalate; None: where the version can tell them."""


@dataclass(frozen=True, slots=True)
class GoalsInForce:
    """Goals, defaults filled in."""

    goals: Goals
    stated: bool
    """Somebody stated them."""


@dataclass(frozen=True, slots=True)
class BoundInfo:
    """What is promised; see ``splitmesh.api.routing.v1.Bound``."""

    constraint: str
    limit: float
    bound: float
    events: int
    n: int


@dataclass(frozen=True, slots=True)
class OverrideInfo:
    """Another threshold for a camera, a class or both, after a drift."""

    camera: str
    """Empty: every camera."""
    label: str
    """Class that the exit names; empty: every class."""
    threshold: float
    why: str


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """How a head decides; see ``splitmesh.api.routing.v1.Policy``."""

    model: str
    version: int
    revision: int
    threshold: float
    """Smallest accepted ease; above 1 everything escalates."""
    max_disagreement: float
    delta: float
    disagreement_bound: float
    coverage: float
    calibration_samples: int
    why: str
    score: str = ""
    """Empty, from a router that knows no other: the largest probability."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    costs: tuple[float, ...] = ()
    bounds: tuple[BoundInfo, ...] = ()
    """Every promise, the disagreement first."""
    audit_share: float = 0.0
    escalate_unusual: bool = False
    overrides: tuple[OverrideInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts of decided samples."""

    edge_exit: int = 0
    cloud_tail: int = 0
    edge_fallback: Mapping[str, int] = field(default_factory=dict)
    """By reason code."""
    tail_disagreed: int = 0
    """Of ``cloud_tail``: the exit named another class."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """By reason code."""
    edge_whole: int = 0
    """Answered by the whole model at the edge: the version is not split."""
    hard: Mapping[str, int] = field(default_factory=dict)
    """Why samples were hard, by ``RouteReason`` without its prefix."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of one decided sample, without the sample; see ``splitmesh.api.routing.v1.Sight``."""

    camera: str
    exit_class: int
    """Class that the exit named; of a detector's exit 0: nothing, 1: something."""
    ease: float
    """0..1, NaN where it is undefined."""
    unusual: bool | None = None
    """None: not looked at."""
    tail_class: int | None = None
    """None: not asked, or it did not answer."""
    audited: bool = False
    """The exit was sure, and the tail was asked to check it."""
    exit: int = 0
    """Which exit decided, counted from the input."""
    age_ms: float = 0.0
    """Before the report was made."""


@dataclass(frozen=True, slots=True)
class UplinkLoad:
    """How crowded the way to the tails is, as a head saw it; see ``splitmesh.api.routing.v1.UplinkLoad``."""

    backlog_ms: float
    """How long a frame would wait at the least crowded tail."""
    goodput_mbps: float
    """0: not known."""
    rtt_ms: float
    """0: not known."""
    loss: float
    """Share of TCP segments that were sent again, 0..1."""
    tails: int
    """That take frames now."""

    @classmethod
    def of(cls, message: routing_pb2.UplinkLoad) -> UplinkLoad:
        """A message as a value."""
        return cls(message.backlog_ms, message.goodput_mbps, message.rtt_ms, message.loss, message.tails)


@dataclass(frozen=True, slots=True)
class NodeOutcomes:
    """Sums of one version on one node."""

    node: str
    version: int
    outcomes: Outcomes
    last_report_time: datetime
    """UTC."""
    load: UplinkLoad | None = None
    """Of the last report; None for a version without tails."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one sample; see ``splitmesh.api.routing.v1.DecideResponse``."""

    escalate: bool
    """It is hard and may cross."""
    hard: bool
    why: str
    """``RouteReason`` without its prefix, such as UNSURE."""
    ease: float | None
    """0..1; None: undefined."""
    threshold: float
    """What the ease was compared with."""
    worth: float
    """Expected gain of asking, 0..1."""
    refused: str
    """Why a hard sample may not cross; empty where it may."""
    label: int | None
    """Class that would be answered; None for boxes, and where there is none."""
