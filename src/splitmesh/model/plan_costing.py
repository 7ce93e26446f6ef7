"""Prices every option over two tiers: edge only, cloud only, every profiled cut, and cuts with an exit. Arithmetic only.

Formulas (DADS, Neurosurgeon and the papers after them): a message takes overhead + 8 * bytes / uplink on the link, the
round trip is added once when anything crosses, edge work is slowed down and cloud work sped up relative to the hosts of
the profiles. Times add up: nothing overlaps within a sample, nobody waits in a queue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from splitmesh.errors import field_error
from splitmesh.model.plan_graph import before
from splitmesh.model.plan_limits import (
    cut_refusals,
    memory_refusals,
    operator_refusals,
    picture_refusals,
    rate_refusals,
    require_operators,
)
from splitmesh.model.plan_options import AS_SENT, RAW_PICTURE, Constraints, Kind, Link, Option, Stages, Workload
from splitmesh.model.profile_data import FLOAT_CODEC, CutProfile, PictureProfile, Profile


def sent_pictures(workload: Workload, edge: Profile, cloud: Profile) -> dict[str, tuple[PictureProfile, float]]:
    """What sending the picture costs by codec, and its decoding in the cloud in ms: the caller's sizes, else measured.

    Encoding of the caller's is not slowed down further, so it is not part of what is returned.
    """
    told = workload.picture_bytes
    found = {codec: PictureProfile(wire_bytes=size) for codec, size in told.items()} or edge.pictures
    return {
        codec: (
            picture.model_copy(update={"agreement": 1.0}) if codec in (AS_SENT, RAW_PICTURE) else picture,
            0.0 if told else cloud.pictures.get(codec, picture).decode_ms,
        )
        for codec, picture in found.items()
    }


def split_agreement(cut: CutProfile, codec: str) -> float | None:
    """Share of samples answered as by the whole model when this crosses; None: not measured."""
    return 1.0 if codec == FLOAT_CODEC else cut.agreement.get(codec)


@dataclass(frozen=True, slots=True)
class Costing:
    """Prices options under one set of circumstances. MeshError FIELD_INVALID for values that are out of range."""

    edge: Profile
    cloud: Profile
    """The same one unless the cloud host has its own."""
    link: Link
    workload: Workload
    constraints: Constraints
    edge_slowdown: float
    """Edge time = profile time * this."""
    cloud_speedup: float
    """Cloud time = profile time / this."""
    _cloud_cuts: Mapping[frozenset[str], CutProfile] = field(init=False, repr=False)
    _cloud_tails: tuple[list[float], list[float]] = field(init=False, repr=False)
    """Positions, growing, and tail times, falling."""

    def __post_init__(self) -> None:
        for name, value in (("edge_slowdown", self.edge_slowdown), ("cloud_speedup", self.cloud_speedup)):
            if not (math.isfinite(value) and value > 0):
                raise field_error(name, f"is {value}, expected a finite number greater than 0")
        require_operators(self.edge, self.constraints)
        cuts = sorted(self.cloud.cuts, key=lambda cut: cut.position)
        end = max([1.0, *(cut.position for cut in (*cuts, *self.edge.cuts))])
        tails = np.minimum.accumulate([self.cloud.whole_ms, *(cut.tail_ms for cut in cuts), 0.0])
        object.__setattr__(self, "_cloud_cuts", {frozenset(cut.tensors): cut for cut in cuts})
        object.__setattr__(self, "_cloud_tails", ([0.0, *(cut.position for cut in cuts), end], tails.tolist()))

    def options(self) -> Iterator[Option]:
        """Every option, feasible or not."""
        whole = self.edge.whole_ms * self.edge_slowdown
        reasons = (
            *memory_refusals("edge", self.edge.whole_bytes, self.constraints.max_head_bytes),
            *operator_refusals(self.constraints, {node.operator for node in self.edge.nodes}),
        )
        yield self._option(Kind.EDGE_ONLY, Stages(edge_ms=whole), reasons, head_bytes=self.edge.whole_bytes, agrees=1.0)
        yield from self._pictures()
        for cut in self.edge.cuts:
            yield from self.cut_options(cut, self.in_cloud(cut))

    def in_cloud(self, cut: CutProfile) -> CutProfile:
        """The same cut on the cloud's host: as profiled there, else the tail interpolated along the position.

        The edge's unpacking times stand for those that the cloud's profile does not hold.
        """
        if self.cloud is self.edge:
            return cut
        found = self._cloud_cuts.get(frozenset(cut.tensors))
        if found is not None:
            return found.model_copy(update={"decode_ms": {**cut.decode_ms, **found.decode_ms}})
        tail_ms = float(np.interp(cut.position, *self._cloud_tails))
        return cut.model_copy(update={"tail_ms": tail_ms, "measured": False})

    def cut_options(self, cut: CutProfile, in_cloud: CutProfile) -> Iterator[Option]:
        """A cut with every codec, and with an exit where the share of hard samples is known."""
        share = cut.escalation if self.workload.escalation is None else self.workload.escalation
        operators = self._head_operators(cut) if self.constraints.unsupported_on_edge else frozenset()
        for codec, size in cut.wire_bytes.items():
            crossing = Stages(
                edge_ms=cut.head_ms * self.edge_slowdown,
                encode_ms=cut.encode_ms.get(codec, 0.0) * self.edge_slowdown,
                link_ms=self.link.transfer_ms(size),
                rtt_ms=self.link.rtt_ms,
                cloud_ms=(in_cloud.decode_ms.get(codec, 0.0) + in_cloud.tail_ms) / self.cloud_speedup,
            )
            for kind, weight in ((Kind.SPLIT, 1.0), (Kind.CASCADE, share)):
                if weight is None:
                    continue
                yield self._option(
                    kind,
                    crossing,
                    (
                        *cut_refusals(self.constraints, cut.tensors, codec, cut.leaks(codec)),
                        *memory_refusals("edge", cut.head_bytes, self.constraints.max_head_bytes),
                        *operator_refusals(self.constraints, operators, kind, codec),
                    ),
                    cut=cut.tensors,
                    codec=codec,
                    size=size,
                    share=weight,
                    head_bytes=cut.head_bytes,
                    measured=cut.measured and in_cloud.measured,
                    agrees=self._agreement(kind, split_agreement(cut, codec), weight),
                )

    def _head_operators(self, cut: CutProfile) -> frozenset[str] | None:
        """By type; None when a tensor of the cut is not an operator's first output."""
        head = before(self.edge.nodes, cut.tensors)
        return None if head is None else frozenset(self.edge.nodes[index].operator for index in head)

    def _pictures(self) -> Iterator[Option]:
        told = bool(self.workload.picture_bytes)
        for codec, (picture, decode_ms) in sent_pictures(self.workload, self.edge, self.cloud).items():
            own = picture.encode_ms * self.edge_slowdown
            crossing = Stages(
                encode_ms=self.workload.picture_encode_ms if told else own,
                link_ms=self.link.transfer_ms(picture.wire_bytes),
                rtt_ms=self.link.rtt_ms,
                cloud_ms=(decode_ms + self.cloud.whole_ms) / self.cloud_speedup,
            )
            yield self._option(
                Kind.CLOUD_ONLY,
                crossing,
                picture_refusals(self.constraints),
                codec=codec,
                size=picture.wire_bytes,
                agrees=picture.agreement,
            )

    def _agreement(self, kind: Kind, split: float | None, share: float) -> float | None:
        """Of a cascade at least: who is answered by the exit and differs, and who crosses and differs."""
        if kind is Kind.SPLIT or split is None:
            return split
        wrong = self.workload.exit_disagreement
        return None if wrong is None else max(0.0, 1 - wrong - share * (1 - split))

    def _option(
        self,
        kind: Kind,
        crossing: Stages,
        reasons: Iterable[str],
        *,
        cut: tuple[str, ...] = (),
        codec: str = "",
        size: int = 0,
        share: float = 1.0,
        head_bytes: int = 0,
        measured: bool = True,
        agrees: float | None = None,
    ) -> Option:
        mean = Stages(
            edge_ms=crossing.edge_ms,
            encode_ms=share * crossing.encode_ms,
            link_ms=share * crossing.link_ms,
            rtt_ms=share * crossing.rtt_ms,
            cloud_ms=share * crossing.cloud_ms,
        )
        throughput = throughput_fps(mean.edge_ms + mean.encode_ms, mean.link_ms, mean.cloud_ms)
        refused = (*reasons, *rate_refusals(self.constraints, share * size, throughput))
        return Option(
            kind=kind,
            cut=cut,
            codec=codec,
            stages=mean,
            hard_latency_ms=crossing.total_ms,
            uplink_bytes=share * size,
            throughput_fps=throughput,
            head_bytes=head_bytes,
            measured=measured,
            refused_because="; ".join(refused) or None,
            agreement=agrees,
        )


def throughput_fps(*busy_ms: float) -> float:
    """Samples per second of the busiest host or link; a round trip is waiting, not work, and occupies nobody."""
    busiest = max(busy_ms)
    return 1e3 / busiest if busiest > 0 else math.inf
