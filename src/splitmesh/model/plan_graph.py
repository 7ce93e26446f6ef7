"""The operators of a profiled model as a placement problem, so that plans can look at every cut of the graph.

Times are the operators' shares of fused head and tail times: at a measured cut they add up to what was measured. What
sending an operator's outputs takes is measured where the profile has a cut there, else estimated from the nearest size.
Every output takes the codec that is cheapest for it alone, so a bound from here holds for any choice of codecs.
"""

from __future__ import annotations

import bisect
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from splitmesh.errors import MeshError, Reason
from splitmesh.model.placement.problem import Objective, Problem, Vertex
from splitmesh.model.placement.solve import place
from splitmesh.model.plan_limits import cut_refusals
from splitmesh.model.plan_options import Constraints, Link
from splitmesh.model.profile_data import CutProfile, NodeProfile, Profile

FIRST = 2
"""Index of the first operator among a problem's vertices: before it come the input and the message."""


@dataclass(frozen=True, slots=True)
class GraphTier:
    """One host, as a problem sees it."""

    node_ms: Sequence[float]
    """Time of every operator; infinite: it may not run here."""
    pack_ms: Mapping[str, Sequence[float]]
    """By codec, of every operator's outputs."""
    unpack_ms: Mapping[str, Sequence[float]]
    max_model_bytes: float = math.inf


def graph_tier(
    profile: Profile,
    factor: float,
    *,
    first: bool,
    last: bool,
    max_model_bytes: int | None,
    unsupported: Collection[str] = (),
) -> GraphTier:
    """A surveyed host whose times are ``factor`` times the profile's and that cannot run ``unsupported`` operators.

    The first of a chain runs heads and the last runs tails; what runs in between is worth the mean of both shares.
    """
    head = 1.0 if first and not last else 0.0 if last and not first else 0.5
    codecs = {codec for node in profile.nodes for codec in node.wire_bytes}
    return GraphTier(
        node_ms=[
            math.inf if node.operator in unsupported else factor * (head * node.head_ms + (1 - head) * node.tail_ms)
            for node in profile.nodes
        ],
        pack_ms={codec: _coding(profile, codec, factor, lambda cut: cut.encode_ms) for codec in codecs},
        unpack_ms={codec: _coding(profile, codec, factor, lambda cut: cut.decode_ms) for codec in codecs},
        max_model_bytes=math.inf if max_model_bytes is None else max_model_bytes,
    )


def same_graph(*profiles: Profile) -> bool:
    """Whether all were surveyed and name the same operators."""
    names = [[node.name for node in profile.nodes] for profile in profiles]
    return bool(names[0]) and all(other == names[0] for other in names[1:])


def allowed_codecs(profile: Profile, limits: Constraints) -> list[list[str]]:
    """Of every operator's outputs: the codecs in which nothing forbids them to cross.

    Where leakage is limited, outputs of a cut that keeps the limit may cross, alone or with others: a superset of what
    may.
    """
    leaks = dict[tuple[str, str], float]()
    for cut in profile.cuts:
        for name, codec in itertools.product(cut.tensors, cut.wire_bytes):
            leak = cut.leaks(codec)
            if leak is not None:
                leaks[name, codec] = min(leak, leaks.get((name, codec), math.inf))
    return [
        [
            codec
            for codec in node.wire_bytes
            if not any(cut_refusals(limits, [node.name], codec, leaks.get((node.name, codec))))
        ]
        for node in profile.nodes
    ]


@dataclass(frozen=True, slots=True)
class Exit:
    """An early exit behind some operators."""

    before: frozenset[int]
    """Operators that run on the first tier for every sample."""
    escalation: float
    """Share of samples that go on."""


def build_problem(
    nodes: Sequence[NodeProfile],
    codecs: Sequence[Sequence[str]],
    tiers: Sequence[GraphTier],
    links: Sequence[Link],
    objective: Objective,
    *,
    max_wire_bytes: Sequence[float] = (),
    exit_at: Exit | None = None,
) -> Problem:
    """The problem of cutting these operators between these tiers: the picture never crosses, all ends on the last.

    What remains, everything on one tier, needs no solver.

    Packing and unpacking are part of a transfer where latency is asked for. For throughput they are left out, as they
    burden hosts rather than links: the bound stays valid and is lower by at most that much.

    Args:
        nodes: of a profile.
        codecs: for each, those in which its outputs may cross.
        tiers: at least two.
        links: from each tier to the next.
        objective: what is asked for.
        max_wire_bytes: per hop, mean per sample.
        exit_at: pins what is before it to the first tier and weighs the rest.
    """
    count, hops = len(tiers), len(links)
    read = {source for node in nodes for source in node.sources}
    ends = [index for index in range(len(nodes)) if index not in read]
    elsewhere, never = (math.inf,) * (count - 1), (math.inf,) * hops
    vertices = [
        Vertex("input", (), (0.0, *elsewhere), never),
        # read by every last operator: paid once on each hop that anything crosses
        Vertex("message", (), (0.0, *elsewhere), tuple(link.message_overhead_ms for link in links)),
    ]
    for index, node in enumerate(nodes):
        cost = [tier.node_ms[index] for tier in tiers]
        weight = 1.0 if exit_at is None or index in exit_at.before else exit_at.escalation
        if index in ends:
            cost[:-1] = elsewhere
        elif exit_at is not None and index in exit_at.before:
            cost[1:] = elsewhere
        sources = {0 if source < 0 else source + FIRST for source in node.sources} | ({1} if index in ends else set())
        transfers, sizes = _crossing(node, index, codecs[index], tiers, links, objective)
        vertices.append(
            Vertex(
                node.name,
                tuple(sorted(sources)),
                tuple(cost),
                transfers,
                memory_bytes=(float(node.weight_bytes),) * count,
                wire_bytes=sizes,
                survival=weight,
            )
        )
    limits = tuple(tier.max_model_bytes for tier in tiers)
    return Problem(
        tuple(vertices),
        tuple(link.rtt_ms for link in links),
        max_memory_bytes=limits if any(limit < math.inf for limit in limits) else (),
        max_wire_bytes=tuple(max_wire_bytes) if any(limit < math.inf for limit in max_wire_bytes) else (),
    )


@dataclass(frozen=True, slots=True)
class Solved:
    """What a solver made of a problem."""

    tiers: tuple[int, ...] | None
    """One for every operator; None: no cut is allowed, or none was found in time."""
    lower_bound_ms: float
    """No cut takes less; infinite: none is allowed."""
    method: str


def solve(problem: Problem, objective: Objective, time_limit_s: float) -> Solved:
    """The best cut; a mixed integer program that finds none within its time proves nothing and bounds nothing."""
    begun = time.monotonic()
    try:
        placement = place(problem, objective, time_limit_s=time_limit_s)
    except MeshError as error:
        if error.reason is not Reason.PLAN_INFEASIBLE:
            raise
        proven = not problem.limited or time.monotonic() - begun < time_limit_s
        return Solved(None, math.inf if proven else 0.0, "no cut is allowed" if proven else "no cut found in time")
    return Solved(placement.tiers[FIRST:], placement.lower_bound_ms, placement.method)


def crossing_nodes(nodes: Sequence[NodeProfile], tiers: Sequence[int], hop: int) -> list[int]:
    """Operators at or before a hop whose outputs are read beyond it, ascending."""
    found = {
        source
        for node, tier in zip(nodes, tiers, strict=True)
        for source in node.sources
        if tier > hop and source >= 0 and tiers[source] <= hop
    }
    return sorted(found)


def before(nodes: Sequence[NodeProfile], tensors: Iterable[str]) -> frozenset[int] | None:
    """The operators a cut depends on; None when one of its tensors is not an operator's first output."""
    by_name = {node.name: index for index, node in enumerate(nodes)}
    pending = [by_name.get(name, -1) for name in tensors]
    if -1 in pending:
        return None
    found = set(pending)
    while pending:
        fresh = [source for source in nodes[pending.pop()].sources if source >= 0 and source not in found]
        found.update(fresh)
        pending.extend(fresh)
    return frozenset(found)


def summed_cut(profile: Profile, head: Sequence[int], crossing: Sequence[int]) -> CutProfile | None:
    """A cut that was not profiled, from its operators; None when no codec can carry all that crosses."""
    nodes, inside = profile.nodes, set(head)
    codecs = set.intersection(*(set(nodes[index].wire_bytes) for index in crossing))
    if not codecs:
        return None
    tensors = tuple(nodes[index].name for index in crossing)
    head_ms = math.fsum(nodes[index].head_ms for index in head)
    tail_ms = math.fsum(node.tail_ms for index, node in enumerate(nodes) if index not in inside)
    packing = {codec: _coding(profile, codec, 1.0, lambda cut: cut.encode_ms) for codec in codecs}
    unpacking = {codec: _coding(profile, codec, 1.0, lambda cut: cut.decode_ms) for codec in codecs}
    wire = {codec: sum(nodes[index].wire_bytes[codec] for index in crossing) for codec in sorted(codecs)}
    return CutProfile(
        tensors=tensors,
        position=head_ms / profile.whole_ms if profile.whole_ms else 0.0,
        head_ms=head_ms,
        head_p90_ms=head_ms,
        tail_ms=tail_ms,
        tail_p90_ms=tail_ms,
        measured=False,
        head_bytes=max(1, sum(nodes[index].weight_bytes for index in head)),
        raw_bytes=max(wire.values()),
        wire_bytes=wire,
        encode_ms={codec: math.fsum(packing[codec][index] for index in crossing) for codec in wire},
        decode_ms={codec: math.fsum(unpacking[codec][index] for index in crossing) for codec in wire},
    )


def _crossing(
    node: NodeProfile,
    index: int,
    codecs: Sequence[str],
    tiers: Sequence[GraphTier],
    links: Sequence[Link],
    objective: Objective,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least time and least bytes of its outputs on each hop."""
    transfers, size = [], min((float(node.wire_bytes[codec]) for codec in codecs), default=0.0)
    for hop, link in enumerate(links):
        best = math.inf
        for codec in codecs:
            time = link.transfer_ms(node.wire_bytes[codec]) - link.message_overhead_ms
            if objective is Objective.LATENCY:
                time += tiers[hop].pack_ms[codec][index] + tiers[hop + 1].unpack_ms[codec][index]
            best = min(best, max(0.0, time))
        transfers.append(best)
    return tuple(transfers), (size,) * len(links)


def _coding(
    profile: Profile, codec: str, factor: float, times: Callable[[CutProfile], Mapping[str, float]]
) -> list[float]:
    """Time of packing (or unpacking) every operator's outputs, ``factor`` times the profile's."""
    known = [cut for cut in profile.cuts if codec in cut.wire_bytes and codec in times(cut)]
    exact = {cut.tensors[0]: times(cut)[codec] for cut in known if len(cut.tensors) == 1}
    rates = sorted((cut.wire_bytes[codec], times(cut)[codec] / cut.wire_bytes[codec]) for cut in known)

    def estimate(size: int) -> float:
        place = bisect.bisect(rates, (size, 0.0))
        nearest = min(rates[max(0, place - 1) : place + 1], key=lambda rate: abs(math.log(rate[0] / size)))
        return size * nearest[1]

    found = []
    for node in profile.nodes:
        size = node.wire_bytes.get(codec)
        if node.name in exact:
            found.append(factor * exact[node.name])
        else:
            found.append(factor * estimate(size) if size and rates else 0.0)
    return found
