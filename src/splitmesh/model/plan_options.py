"""What a plan is asked, what forbids an option, and what an option is. Data only.

``plan_costing.py`` prices options over two tiers, ``plan_chain.py`` over more, ``plan.py`` ranks them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from splitmesh.errors import field_error

AS_SENT = "as sent"
"""Codec of a picture that crosses as the camera sends it."""

RAW_PICTURE = "raw"
"""Codec of a picture that crosses as its samples."""


class Kind(StrEnum):
    """Which parts run where."""

    EDGE_ONLY = "EDGE_ONLY"
    """The whole model on the edge; nothing crosses."""
    CLOUD_ONLY = "CLOUD_ONLY"
    """The picture crosses; the whole model in the cloud."""
    SPLIT = "SPLIT"
    """The head on the edge, the tail in the cloud, for every sample."""
    CASCADE = "CASCADE"
    """Head and exit on the edge for every sample, the tail in the cloud for the hard ones."""


MESSAGE_OVERHEAD_MS = 3.0
"""What a message costs besides coding and transfer: the tail's wait for a batch (2 ms unless set otherwise), gRPC on both
hosts. As ``benchmarks.cost_model`` sees it on two x86 cores."""


SLOWEST_MBPS = 1e-6
"""A bit a second; what is slower is no link, and its times overflow."""

LONGEST_RTT_MS = 3.6e6
"""An hour."""


@dataclass(frozen=True, slots=True)
class Link:
    """The way from edge to cloud. MeshError FIELD_INVALID for values out of range."""

    uplink_mbps: float
    """Megabits (10^6) per second that the edge can send, greater than 0."""
    rtt_ms: float
    """Round trip of an empty message."""
    message_overhead_ms: float = MESSAGE_OVERHEAD_MS
    """Waiting for a batch and handling on both hosts, beside coding and transfer."""

    def __post_init__(self) -> None:
        _require_above_zero("uplink_mbps", self.uplink_mbps)
        _require_not_negative("rtt_ms", self.rtt_ms)
        if self.uplink_mbps < SLOWEST_MBPS:
            raise field_error("uplink_mbps", f"is {self.uplink_mbps}, expected at least {SLOWEST_MBPS:g}")
        if self.rtt_ms > LONGEST_RTT_MS:
            raise field_error("rtt_ms", f"is {self.rtt_ms}, expected at most {LONGEST_RTT_MS:g}")
        _require_not_negative("message_overhead_ms", self.message_overhead_ms)

    def transfer_ms(self, size_bytes: float) -> float:
        """One message of this size, one way, without the round trip."""
        return self.message_overhead_ms + 8 * size_bytes / (self.uplink_mbps * 1e3)


@dataclass(frozen=True, slots=True)
class Workload:
    """What the cameras send. MeshError FIELD_INVALID for values out of range."""

    picture_bytes: Mapping[str, int] = field(default_factory=dict)
    """Mean size of a picture by codec, e.g. ``{"as sent": 2670}``; empty: those the profile measured."""
    picture_encode_ms: float = 0.0
    """Encoding of a picture on the edge host itself (not slowed down further)."""
    escalation: float | None = None
    """Expected share of hard samples, 0..1, at any cut; None: what the profile measured, no cascade where it did not."""
    exit_disagreement: float | None = None
    """Share of all samples that exits may answer unlike the whole model, 0..1; None: unknown, and so is the agreement
    of a cascade."""

    def __post_init__(self) -> None:
        for codec, size in self.picture_bytes.items():
            _require_above_zero(f"picture_bytes[{codec}]", size)
        object.__setattr__(self, "picture_bytes", dict(self.picture_bytes))
        _require_not_negative("picture_encode_ms", self.picture_encode_ms)
        _require_share("escalation", self.escalation)
        _require_share("exit_disagreement", self.exit_disagreement)


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a plan must respect. MeshError FIELD_INVALID for values out of range."""

    picture_stays_on_site: bool = False
    """Forbids sending pictures. Features of a shallow cut can be inverted to pictures: see ``max_leakage``."""
    max_head_bytes: int | None = None
    """Largest model file the edge can hold; None: any."""
    uplink_budget_bytes_per_s: float | None = None
    """Mean use of the uplink; needs ``frames_per_s``."""
    frames_per_s: float | None = None
    """What the line delivers; an option that carries less is refused."""
    allow_quantised: bool = True
    """Whether the cut may be rounded to 8 bits."""
    max_leakage: float | None = None
    """Highest similarity (SSIM) of a reconstruction of the picture from what crosses, 0..1: a cut whose leakage is
    higher or unknown is refused; the picture itself has 1. None: any."""
    kept_on_edge: tuple[str, ...] = ()
    """Tensors that may not leave the first tier."""
    unsupported_on_edge: frozenset[str] = frozenset()
    """Types of operators that the first tier cannot run, such as ``GridSample``."""

    def __post_init__(self) -> None:
        _require_share("max_leakage", self.max_leakage)
        object.__setattr__(self, "kept_on_edge", tuple(self.kept_on_edge))
        object.__setattr__(self, "unsupported_on_edge", frozenset(self.unsupported_on_edge))
        for name in ("max_head_bytes", "uplink_budget_bytes_per_s", "frames_per_s"):
            if (value := getattr(self, name)) is not None:
                _require_above_zero(name, value)
        if self.uplink_budget_bytes_per_s is not None and self.frames_per_s is None:
            raise field_error("frames_per_s", "is missing: an uplink budget per second needs the frames per second")


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds per sample by where they pass; the sum is the latency."""

    edge_ms: float = 0.0
    """Operators on the first tier."""
    encode_ms: float = 0.0
    link_ms: float = 0.0
    """Message overhead and transfer."""
    rtt_ms: float = 0.0
    cloud_ms: float = 0.0
    """Decoding, and the operators on all later tiers."""

    @property
    def total_ms(self) -> float:
        """All stages, one after the other."""
        return math.fsum((self.edge_ms, self.encode_ms, self.link_ms, self.rtt_ms, self.cloud_ms))


@dataclass(frozen=True, slots=True)
class TierShare:
    """What one tier does in an option over a chain of tiers."""

    tier: str
    compute_ms: float
    """Compute and coding."""
    cut: tuple[str, ...]
    """Tensors that leave it for the next tier, those it only hands on included; empty: nothing or the picture does."""
    uplink_bytes: float
    """That leave it, per sample."""
    link_ms: float
    """Overhead, transfer and round trip to the next tier."""

    @property
    def computes(self) -> bool:
        """Whether operators run here; else it sends the picture, hands something on, or rests."""
        return self.compute_ms > 0 and bool(self.cut or not self.uplink_bytes)


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run the model, with its price."""

    kind: Kind
    cut: tuple[str, ...]
    """The cut's tensors; empty without a cut."""
    codec: str
    """What encodes the message; empty when nothing crosses."""
    stages: Stages
    """Mean per sample: in a cascade everything after the head weighs by the share of hard samples."""
    hard_latency_ms: float
    """Latency of a sample that crosses; equals ``latency_ms`` except in a cascade."""
    uplink_bytes: float
    """Mean per sample."""
    throughput_fps: float
    """Samples per second of the busiest of edge, link and cloud, each serving one sample at a time."""
    head_bytes: int
    """Model file on the edge; 0 when none."""
    measured: bool
    """False when a time is interpolated between measured cuts or a sum over operators."""
    refused_because: str | None
    """Every reason that forbids the option; None when feasible."""
    agreement: float | None = None
    """Share of samples answered as by the whole model on the original picture; in a cascade at least. None: unknown."""
    tiers: tuple[TierShare, ...] = ()
    """Over a chain of tiers: each one's share, the first tier first; empty over two."""

    @property
    def latency_ms(self) -> float:
        """Mean per sample."""
        return self.stages.total_ms

    @property
    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """Of the segments that run it, from the input on; empty where nothing is cut, or the first tier only sends on."""
        if not self.tiers:
            return (self.cut,) if self.cut else ()
        used = [index for index, share in enumerate(self.tiers) if share.computes]
        return tuple(self.tiers[tier - 1].cut for tier in used[1:]) if used[:1] == [0] else ()

    @property
    def feasible(self) -> bool:
        """Whether nothing forbids it."""
        return self.refused_because is None

    @property
    def name(self) -> str:
        """For people: ``split at relu_7 (uint8+zstd)``."""
        codec = f" ({self.codec})" if self.codec else ""
        if self.tiers:
            return placement_name(self.tiers) + codec
        place = f" at {'+'.join(self.cut)}" if self.cut else ""
        return f"{self.kind.value.lower().replace('_', ' ')}{place}{codec}"


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far from the best over every cut of the graph the first option can be, by the profile's times.

    Where samples leave at an exit, every cut with that exit or with none. Limits on frames per second are relaxed to
    what the uplink can carry, and coding is left out where throughput is asked for: the bound holds all the same.
    """

    lower_bound_ms: float
    """No placement of the operators takes less: per sample, or per sample of the busiest host or link."""
    gap_ms: float
    """How much more the first option takes."""
    method: str


def placement_name(tiers: Sequence[TierShare]) -> str:
    """For people: ``edge > waist > MEC > neck > cloud``, a tier alone as ``MEC only``; of tiers that compute."""
    used = [index for index, share in enumerate(tiers) if share.computes]
    if len(used) == 1:
        return f"{tiers[used[0]].tier} only"
    steps = [f"{tiers[here].tier} > {'+'.join(tiers[there - 1].cut)} >" for here, there in itertools.pairwise(used)]
    return " ".join([*steps, tiers[used[-1]].tier])


def _require_above_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise field_error(name, f"is {value}, expected a finite number greater than 0")


def _require_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise field_error(name, f"is {value}, expected a finite number of at least 0")


def _require_share(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise field_error(name, f"is {value}, expected a share between 0 and 1")
