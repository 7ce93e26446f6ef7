"""What one placement over a chain of tiers costs, and what forbids it. Arithmetic only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from splitmesh.errors import field_error
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_costing import sent_pictures, split_agreement, throughput_fps
from splitmesh.model.plan_graph import GraphTier, allowed_codecs, crossing_nodes, graph_tier
from splitmesh.model.plan_limits import (
    cut_refusals,
    memory_refusals,
    operator_refusals,
    picture_refusals,
    rate_refusals,
)
from splitmesh.model.plan_options import Constraints, Kind, Link, Option, Stages, TierShare, Workload
from splitmesh.model.profile_data import CutProfile, PictureProfile, Profile


@dataclass(frozen=True, slots=True)
class Tier:
    """A host of a chain. MeshError FIELD_INVALID for values out of range."""

    name: str
    """For people; no two are the same."""
    profile: Profile
    """Of this host, or of another one that it is compared with."""
    slowdown: float = 1.0
    """Its time over that of the profile's host."""
    max_model_bytes: int | None = None
    """Largest model it can hold; None: any."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slowdown) and self.slowdown > 0):
            raise field_error("slowdown", f"of {self.name!r} is {self.slowdown}, expected a number greater than 0")
        if self.max_model_bytes is not None and self.max_model_bytes < 1:
            raise field_error("max_model_bytes", f"of {self.name!r} is {self.max_model_bytes}, expected at least 1")


@dataclass(frozen=True, slots=True)
class _Message:
    """What goes from one computing tier to the next, or the picture to the first."""

    first_hop: int
    last_hop: int
    cut: tuple[str, ...]
    codec: str
    size_bytes: int
    pack_ms: float
    unpack_ms: float
    agreement: float | None
    measured: bool
    refused: tuple[str, ...]


@dataclass(frozen=True)
class ChainCosting:
    """Prices placements under one set of circumstances."""

    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    workload: Workload
    constraints: Constraints
    objective: Objective

    @cached_property
    def pictures(self) -> Mapping[str, tuple[PictureProfile, float]]:
        """By image codec, with the time to decode it on the last tier's host."""
        return sent_pictures(self.workload, self.tiers[0].profile, self.tiers[-1].profile)

    def graph_tiers(self, used: Sequence[int], *, limited: bool) -> list[GraphTier]:
        """Those that compute, as a problem sees them."""
        return [
            graph_tier(
                self.tiers[tier].profile,
                self.tiers[tier].slowdown,
                first=tier == used[0],
                last=tier == used[-1],
                max_model_bytes=self._most_model_bytes(tier) if limited else None,
                unsupported=self.constraints.unsupported_on_edge if limited and tier == 0 else (),
            )
            for tier in used
        ]

    def joined(self, here: int, there: int) -> Link:
        """The links between two tiers as one: their times add up; the slowest is what limits throughput."""
        links = self.links[here:there]
        rtt_ms = math.fsum(link.rtt_ms for link in links)
        overheads = [link.message_overhead_ms for link in links]
        if self.objective is Objective.THROUGHPUT:
            return Link(min(link.uplink_mbps for link in links), rtt_ms, min(overheads))
        return Link(1 / math.fsum(1 / link.uplink_mbps for link in links), rtt_ms, math.fsum(overheads))

    def most_wire_bytes(self, here: int, there: int) -> float:
        """Bytes per sample that rate and budget leave between two tiers."""
        rate, budget = self.constraints.frames_per_s, self.constraints.uplink_budget_bytes_per_s
        if rate is None:
            return math.inf
        most = min(link.uplink_mbps for link in self.links[here:there]) * 1e6 / 8 / rate
        return most if budget is None or here > 0 else min(most, budget / rate)

    def best_picture(self, tier: int) -> str | None:
        """The image codec to reach a tier in; None without any."""
        return min(self.pictures, key=lambda codec: (self.picture_value_ms(tier, codec), codec), default=None)

    def picture_value_ms(self, tier: int, codec: str | None) -> float:
        """What sending the picture to a tier adds to the latency, or what it occupies the busiest link for."""
        if codec is None or tier == 0:
            return 0.0
        sent = self._picture(tier, codec)
        transfers = [self.links[hop].transfer_ms(sent.size_bytes) for hop in range(tier)]
        if self.objective is Objective.THROUGHPUT:
            return max(transfers)
        waiting = math.fsum(self.links[hop].rtt_ms for hop in range(tier))
        return math.fsum((sent.pack_ms, *transfers, waiting, sent.unpack_ms))

    def alone(self, tier: int, picture: str | None) -> Option:
        """Everything on one tier."""
        compute = [0.0] * len(self.tiers)
        compute[tier] = self.tiers[tier].profile.whole_ms * self.tiers[tier].slowdown
        messages = [] if picture is None else [self._picture(tier, picture)]
        kind = Kind.CLOUD_ONLY if tier else Kind.EDGE_ONLY
        held = {tier: self.tiers[tier].profile.whole_bytes}
        return self._option(kind, compute, messages, held, [tier] * len(self.tiers[0].profile.nodes))

    def price(self, at: Sequence[int], picture: str | None) -> Option | None:
        """Of a tier for every operator; None when no codec carries all that crosses somewhere."""
        used = sorted(set(at))
        compute, weights = [0.0] * len(self.tiers), dict.fromkeys(used, 0)
        graph = dict(zip(used, self.graph_tiers(used, limited=False), strict=True))
        nodes = self.tiers[0].profile.nodes
        for index, tier in enumerate(at):
            compute[tier] += graph[tier].node_ms[index]
            weights[tier] += nodes[index].weight_bytes
        messages = [] if picture is None else [self._picture(used[0], picture)]
        for here, there in itertools.pairwise(used):
            message = self._features(crossing_nodes(nodes, at, here), here, there, graph)
            if message is None:
                return None
            messages.append(message)
        return self._option(Kind.SPLIT, compute, messages, weights, at)

    def _picture(self, tier: int, codec: str) -> _Message:
        picture, decode_ms = self.pictures[codec]
        told, first = bool(self.workload.picture_bytes), self.tiers[0]
        return _Message(
            first_hop=0,
            last_hop=tier - 1,
            cut=(),
            codec=codec,
            size_bytes=picture.wire_bytes,
            pack_ms=self.workload.picture_encode_ms if told else picture.encode_ms * first.slowdown,
            unpack_ms=decode_ms * self.tiers[tier].slowdown,
            agreement=picture.agreement,
            measured=True,
            refused=tuple(picture_refusals(self.constraints)),
        )

    def _features(
        self, crossing: Sequence[int], here: int, there: int, graph: Mapping[int, GraphTier]
    ) -> _Message | None:
        """In the best codec that nothing forbids, else in the best there is."""
        profile = self.tiers[0].profile
        names = tuple(profile.nodes[index].name for index in crossing)
        known = _find(profile, names)
        allowed, limits = allowed_codecs(profile, self.constraints), self.constraints
        made = [
            self._message(known, crossing, names, codec, here, there, graph)
            for codec in sorted(set.intersection(*(set(profile.nodes[index].wire_bytes) for index in crossing)))
        ]
        good = [
            message
            for message in made
            if all(message.codec in allowed[index] for index in crossing)
            and not (here == 0 and any(operator_refusals(limits, (), codec=message.codec)))
        ]
        return min(good or made, key=lambda message: (self._cost(message), message.size_bytes), default=None)

    def _message(
        self,
        known: CutProfile | None,
        crossing: Sequence[int],
        names: tuple[str, ...],
        codec: str,
        here: int,
        there: int,
        graph: Mapping[int, GraphTier],
    ) -> _Message:
        profile = self.tiers[0].profile
        pieces = [_find(self.tiers[tier].profile, names) for tier in (here, there)]
        return _Message(
            first_hop=here,
            last_hop=there - 1,
            cut=names,
            codec=codec,
            size_bytes=sum(profile.nodes[index].wire_bytes[codec] for index in crossing),
            pack_ms=math.fsum(graph[here].pack_ms[codec][index] for index in crossing),
            unpack_ms=math.fsum(graph[there].unpack_ms[codec][index] for index in crossing),
            agreement=split_agreement(known, codec) if known else None,
            measured=all(piece is not None and piece.measured for piece in pieces),
            refused=tuple(cut_refusals(self.constraints, names, codec, known.leaks(codec) if known else None)),
        )

    def _cost(self, message: _Message) -> float:
        transfers = [self.links[hop].transfer_ms(message.size_bytes) for hop in _hops(message)]
        if self.objective is Objective.THROUGHPUT:
            return max(transfers)
        return math.fsum((message.pack_ms, *transfers, message.unpack_ms))

    def _option(
        self,
        kind: Kind,
        compute: Sequence[float],
        messages: Sequence[_Message],
        held: Mapping[int, int],
        at: Sequence[int],
    ) -> Option:
        """``at``: the tier of every operator."""
        shares, busy = list(self._shares(compute, messages)), list[float]()
        for message in messages:
            busy += [self.links[hop].transfer_ms(message.size_bytes) for hop in _hops(message)]
        stages = Stages(
            edge_ms=compute[0],
            encode_ms=math.fsum(message.pack_ms for message in messages),
            link_ms=math.fsum(busy),
            rtt_ms=math.fsum(self.links[hop].rtt_ms for message in messages for hop in _hops(message)),
            cloud_ms=math.fsum((*compute[1:], *(message.unpack_ms for message in messages))),
        )
        throughput = throughput_fps(*busy, *(share.compute_ms for share in shares))
        refused = dict.fromkeys(
            (
                *itertools.chain.from_iterable(message.refused for message in messages),
                *self._memory(held),
                *self._operators(at, messages),
                *rate_refusals(self.constraints, shares[0].uplink_bytes, throughput),
            )
        )
        return Option(
            kind=kind,
            cut=next((message.cut for message in messages if message.cut), ()),
            codec=", ".join(dict.fromkeys(message.codec for message in messages)),
            stages=stages,
            hard_latency_ms=stages.total_ms,
            uplink_bytes=shares[0].uplink_bytes,
            throughput_fps=throughput,
            head_bytes=held.get(0, 0),
            measured=len(held) < 3 and all(message.measured for message in messages),
            refused_because="; ".join(refused) or None,
            agreement=_agreement(messages),
            tiers=tuple(shares),
        )

    def _shares(self, compute: Sequence[float], messages: Sequence[_Message]) -> Iterator[TierShare]:
        for tier, entry in enumerate(self.tiers):
            leaving = next((m for m in messages if m.first_hop <= tier <= m.last_hop), None)
            coding = [m.pack_ms for m in messages if m.first_hop == tier]
            coding += [m.unpack_ms for m in messages if m.last_hop + 1 == tier]
            link_ms = 0.0
            if leaving is not None:
                link_ms = self.links[tier].transfer_ms(leaving.size_bytes) + self.links[tier].rtt_ms
            yield TierShare(
                tier=entry.name,
                compute_ms=math.fsum((compute[tier], *coding)),
                cut=leaving.cut if leaving is not None else (),
                uplink_bytes=float(leaving.size_bytes) if leaving is not None else 0.0,
                link_ms=link_ms,
            )

    def _memory(self, held: Mapping[int, int]) -> Iterator[str]:
        for tier, size in held.items():
            yield from memory_refusals(self.tiers[tier].name, size, self._most_model_bytes(tier))

    def _operators(self, at: Sequence[int], messages: Sequence[_Message]) -> Iterator[str]:
        nodes = self.tiers[0].profile.nodes
        codec = next((message.codec for message in messages if message.first_hop == 0 and message.cut), "")
        yield from operator_refusals(
            self.constraints,
            {node.operator for node, tier in zip(nodes, at, strict=True) if tier == 0},
            codec=codec,
        )

    def _most_model_bytes(self, tier: int) -> int | None:
        limits = [self.tiers[tier].max_model_bytes, self.constraints.max_head_bytes if tier == 0 else None]
        return min((limit for limit in limits if limit is not None), default=None)


def _hops(message: _Message) -> range:
    return range(message.first_hop, message.last_hop + 1)


def _find(profile: Profile, names: Sequence[str]) -> CutProfile | None:
    return next((cut for cut in profile.cuts if set(cut.tensors) == set(names)), None)


def _agreement(messages: Sequence[_Message]) -> float | None:
    """Known when at most one of them changes anything."""
    lossy = [message.agreement for message in messages if message.agreement != 1.0]
    return 1.0 if not lossy else lossy[0] if len(lossy) == 1 else None
