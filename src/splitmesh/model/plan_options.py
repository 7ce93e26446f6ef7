"""One way to run a model: what it costs per sample and what forbids it. Arithmetic only, no I/O.

Formulas (DADS, Neurosurgeon and the papers after them): a message takes overhead + 8 * bytes / uplink on the link, the
round trip is added once when anything crosses, edge work is slowed down and cloud work sped up relative to the host of
the profile. Times add up: nothing overlaps within a sample, nobody waits in a queue. ``plan.py`` compares the options.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from splitmesh.errors import field_error
from splitmesh.model.profile_data import QUANTISED_CODEC, CutProfile, Profile


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


@dataclass(frozen=True, slots=True)
class Link:
    """The way from edge to cloud. MeshError FIELD_INVALID for values out of range."""

    uplink_mbps: float
    """Megabits (10^6) per second that the edge can send, greater than 0."""
    rtt_ms: float
    """Round trip of an empty message."""
    message_overhead_ms: float = 0.5
    """Handling of one message on both hosts, beside coding and transfer; an assumption until it is measured."""

    def __post_init__(self) -> None:
        _require_above_zero("uplink_mbps", self.uplink_mbps)
        _require_not_negative("rtt_ms", self.rtt_ms)
        _require_not_negative("message_overhead_ms", self.message_overhead_ms)

    def transfer_ms(self, size_bytes: float) -> float:
        """One message of this size, one way, without the round trip."""
        return self.message_overhead_ms + 8 * size_bytes / (self.uplink_mbps * 1e3)


@dataclass(frozen=True, slots=True)
class Workload:
    """What the cameras send. MeshError FIELD_INVALID for values out of range."""

    picture_bytes: Mapping[str, int] = field(default_factory=dict)
    """Mean size of a picture by codec, e.g. ``{"jpeg q90": 2670}``; empty: cloud only is not considered."""
    picture_encode_ms: float = 0.0
    """Encoding of a picture on the edge host itself (not slowed down further)."""
    escalation: float | None = None
    """Expected share of hard samples, 0..1, at any cut; None: what the profile measured, no cascade where it did not."""

    def __post_init__(self) -> None:
        for codec, size in self.picture_bytes.items():
            _require_above_zero(f"picture_bytes[{codec}]", size)
        object.__setattr__(self, "picture_bytes", dict(self.picture_bytes))
        _require_not_negative("picture_encode_ms", self.picture_encode_ms)
        if self.escalation is not None and not 0 <= self.escalation <= 1:
            raise field_error("escalation", f"is {self.escalation}, expected a share between 0 and 1")


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a plan must respect. MeshError FIELD_INVALID for values out of range."""

    picture_stays_on_site: bool = False
    """Forbids sending pictures. Features of a shallow cut can be inverted to pictures: a split alone is no privacy."""
    max_head_bytes: int | None = None
    """Largest model file the edge can hold; None: any."""
    uplink_budget_bytes_per_s: float | None = None
    """Mean use of the uplink; needs ``frames_per_s``."""
    frames_per_s: float | None = None
    """What the line delivers; an option that carries less is refused."""
    allow_quantised: bool = True
    """Whether the cut may be rounded to 8 bits."""

    def __post_init__(self) -> None:
        for name in ("max_head_bytes", "uplink_budget_bytes_per_s", "frames_per_s"):
            if (value := getattr(self, name)) is not None:
                _require_above_zero(name, value)
        if self.uplink_budget_bytes_per_s is not None and self.frames_per_s is None:
            raise field_error("frames_per_s", "is missing: an uplink budget per second needs the frames per second")


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds per sample by where they pass; the sum is the latency."""

    edge_ms: float = 0.0
    encode_ms: float = 0.0
    link_ms: float = 0.0
    """Message overhead and transfer."""
    rtt_ms: float = 0.0
    cloud_ms: float = 0.0
    """Decoding and the tail, or the whole model."""

    @property
    def total_ms(self) -> float:
        """All stages, one after the other."""
        return math.fsum((self.edge_ms, self.encode_ms, self.link_ms, self.rtt_ms, self.cloud_ms))


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
    """False when the times are interpolated between measured cuts."""
    refused_because: str | None
    """Every reason that forbids the option; None when feasible."""

    @property
    def latency_ms(self) -> float:
        """Mean per sample."""
        return self.stages.total_ms

    @property
    def feasible(self) -> bool:
        """Whether nothing forbids it."""
        return self.refused_because is None

    @property
    def name(self) -> str:
        """For people: ``split at relu_7 (uint8+zstd)``."""
        place = f" at {'+'.join(self.cut)}" if self.cut else ""
        codec = f" ({self.codec})" if self.codec else ""
        return f"{self.kind.value.lower().replace('_', ' ')}{place}{codec}"


@dataclass(frozen=True, slots=True)
class Costing:
    """Prices options under one set of circumstances. MeshError FIELD_INVALID for factors that are not above 0."""

    profile: Profile
    link: Link
    workload: Workload
    constraints: Constraints
    edge_slowdown: float
    """Edge time = profile time * this."""
    cloud_speedup: float
    """Cloud time = profile time / this."""

    def __post_init__(self) -> None:
        _require_above_zero("edge_slowdown", self.edge_slowdown)
        _require_above_zero("cloud_speedup", self.cloud_speedup)

    def options(self) -> Iterator[Option]:
        """Every option, feasible or not."""
        whole = self.profile.whole_ms
        yield self._option(Kind.EDGE_ONLY, Stages(edge_ms=whole * self.edge_slowdown), head=self.profile.whole_bytes)
        for codec, size in self.workload.picture_bytes.items():
            crossing = Stages(
                encode_ms=self.workload.picture_encode_ms,
                link_ms=self.link.transfer_ms(size),
                rtt_ms=self.link.rtt_ms,
                cloud_ms=whole / self.cloud_speedup,
            )
            yield self._option(Kind.CLOUD_ONLY, crossing, codec=codec, size=size)
        for cut in self.profile.cuts:
            for codec, size in cut.wire_bytes.items():
                stages = self._cut_stages(cut, codec, size)
                yield self._option(Kind.SPLIT, stages, cut=cut, codec=codec, size=size)
                share = cut.escalation if self.workload.escalation is None else self.workload.escalation
                if share is not None:
                    yield self._option(Kind.CASCADE, stages, cut=cut, codec=codec, size=size, share=share)

    def _cut_stages(self, cut: CutProfile, codec: str, size: int) -> Stages:
        return Stages(
            edge_ms=cut.head_ms * self.edge_slowdown,
            encode_ms=cut.encode_ms.get(codec, 0.0) * self.edge_slowdown,
            link_ms=self.link.transfer_ms(size),
            rtt_ms=self.link.rtt_ms,
            cloud_ms=(cut.decode_ms.get(codec, 0.0) + cut.tail_ms) / self.cloud_speedup,
        )

    def _option(
        self,
        kind: Kind,
        crossing: Stages,
        *,
        cut: CutProfile | None = None,
        codec: str = "",
        size: int = 0,
        share: float = 1.0,
        head: int = 0,
    ) -> Option:
        mean = Stages(
            edge_ms=crossing.edge_ms,
            encode_ms=share * crossing.encode_ms,
            link_ms=share * crossing.link_ms,
            rtt_ms=share * crossing.rtt_ms,
            cloud_ms=share * crossing.cloud_ms,
        )
        # the round trip is waiting, not work: it delays a sample and occupies nobody
        busiest = max(mean.edge_ms + mean.encode_ms, mean.link_ms, mean.cloud_ms)
        throughput = 1e3 / busiest if busiest > 0 else math.inf
        head_bytes = cut.head_bytes if cut else head
        reasons = self._refusals(kind, codec, share * size, throughput, head_bytes)
        return Option(
            kind=kind,
            cut=cut.tensors if cut else (),
            codec=codec,
            stages=mean,
            hard_latency_ms=crossing.total_ms,
            uplink_bytes=share * size,
            throughput_fps=throughput,
            head_bytes=head_bytes,
            measured=cut.measured if cut else True,
            refused_because="; ".join(reasons) or None,
        )

    def _refusals(
        self, kind: Kind, codec: str, uplink_bytes: float, throughput: float, head_bytes: int
    ) -> Iterator[str]:
        limits = self.constraints
        if kind is Kind.CLOUD_ONLY and limits.picture_stays_on_site:
            yield "the picture may not leave the site"
        if codec == QUANTISED_CODEC and not limits.allow_quantised:
            yield "quantised cuts are not allowed"
        if limits.max_head_bytes is not None and head_bytes > limits.max_head_bytes:
            yield f"the edge would hold {head_bytes} bytes of model, at most {limits.max_head_bytes} fit"
        if limits.frames_per_s is None:
            return
        if throughput < limits.frames_per_s:
            yield f"it carries {throughput:.1f} frames/s, the line delivers {limits.frames_per_s:g}"
        used = uplink_bytes * limits.frames_per_s
        if limits.uplink_budget_bytes_per_s is not None and used > limits.uplink_budget_bytes_per_s:
            yield f"it uses {used:.0f} bytes/s of the uplink, the budget is {limits.uplink_budget_bytes_per_s:g}"


def _require_above_zero(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise field_error(name, f"is {value}, expected a finite number greater than 0")


def _require_not_negative(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise field_error(name, f"is {value}, expected a finite number of at least 0")
