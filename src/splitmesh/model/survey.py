"""What can be known of a model before anything is timed: operators, candidate cuts, their sizes on the wire.

The part of a profile that no node changes. Knows no sessions of heads and tails; :mod:`splitmesh.model.profile` puts
measured times to it. A survey is plain data and travels between processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np

from splitmesh.errors import MeshError, Reason
from splitmesh.model.cuts import Cut, can_cross, list_cuts
from splitmesh.model.graph import Graph
from splitmesh.model.operators import type_name
from splitmesh.model.partition import ancestors
from splitmesh.model.profile_data import PictureProfile, Profile
from splitmesh.model.verify import random_inputs
from splitmesh.model.wire_cost import Feed, WireCost, estimated_bytes, wire_costs
from splitmesh.tensor.spec import Array

Clock = Callable[[], float]
Tensors = tuple[str, ...]

MAX_SAMPLES = 8
"""Inputs behind the wire sizes; more change a mean size little."""

MACS_PER_BYTE = 4.0
"""Work of reading or writing one byte, in multiply-accumulates: a core does about 20 thousand million of these a second
and moves about 5 thousand million bytes. Only orders operators that are no linear maps among those that are; measured
cuts correct it."""

_CODEC_SHARE, _CODEC_BYTES_PER_S = 0.25, 50e6
"""The part of the budget for wire sizes, and how fast rounding and packing both ways go at worst (2 slow cores)."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One node of the graph that depends on the input's values."""

    name: str
    sources: tuple[int, ...]
    """Indices of earlier operators; -1: an input of the model."""
    work: float
    """Multiply-accumulates, or what moving its tensors is worth in them."""
    weight_bytes: int
    wire_bytes: dict[str, int]
    """By codec, of the outputs that others read; empty: they cannot cross."""
    type: str
    """With the domain before a dot unless it is ONNX's own."""


@dataclass(frozen=True, slots=True)
class SurveyedCut:
    """One candidate."""

    tensors: Tensors
    position: float
    index: int
    """Number of operators in the head."""
    head: int
    """The head's operators as bits: bit ``i`` is operator ``i``."""
    head_bytes: int
    raw_bytes: int
    cost: WireCost


@dataclass(frozen=True, slots=True)
class Survey:
    """A model without its times."""

    whole_bytes: int
    operators: tuple[Operator, ...]
    """In topological order."""
    cuts: tuple[SurveyedCut, ...]
    """From the input to the output."""
    samples: int
    calibration: Literal["random", "real"]
    pictures: dict[str, PictureProfile] = field(default_factory=dict)


def survey(
    whole: bytes,
    graph: Graph,
    cuts: Sequence[Cut] | None = None,
    *,
    feeds: Sequence[Mapping[str, Array]] | None = None,
    pictures: Mapping[str, PictureProfile] | None = None,
    known: Profile | None = None,
    budget_s: float = 30.0,
    threads: int = 1,
    clock: Clock = time.perf_counter,
) -> Survey:
    """Survey a model.

    Args:
        whole: the serialised model.
        graph: the same, loaded.
        cuts: of that model; None: every candidate.
        feeds: real inputs, batches are taken apart; None: noise, and the survey says so.
        pictures: what sending the picture costs, where that is known.
        known: a profile of this model, whose sizes are taken over unless they come from noise and ``feeds`` do not.
        budget_s: of the whole profile; decides how many samples are looked at, at least one.
        threads: of the session that makes the tensors.
        clock: seconds.

    Raises MeshError CALIBRATION_INSUFFICIENT when ``feeds`` is empty or a cut has no finite value, and what running the
    model raises.
    """
    candidates = list_cuts(graph) if cuts is None else list(cuts)
    calibration: Literal["random", "real"] = "random" if feeds is None else "real"
    if known is not None and known.calibration not in ("real", calibration):
        known = None
    told = {} if known is None else {cut.tensors: cut for cut in known.cuts}
    if known is not None and all(cut.tensors in told for cut in candidates):
        found = [told[cut.tensors] for cut in candidates]
        costs = [WireCost(dict(one.wire_bytes), dict(one.encode_ms), dict(one.decode_ms)) for one in found]
        seen, calibration = known.samples, known.calibration
    else:
        samples = _samples(graph, candidates, feeds, budget_s)
        costs, seen = wire_costs(graph.model, candidates, samples, threads=threads, clock=clock), len(samples)
    needed = sorted(ancestors(graph, graph.outputs))
    number = {node: index for index, node in enumerate(needed)}
    weights = {tensor.name: tensor.ByteSize() for tensor in graph.model.graph.initializer}
    return Survey(
        whole_bytes=len(whole),
        operators=_operators(graph, needed, number, weights, dict(zip(candidates, costs, strict=True))),
        cuts=tuple(
            SurveyedCut(
                tensors=cut.tensors,
                position=cut.position,
                index=cut.index,
                head=reduce(lambda bits, node: bits | 1 << number[node], ancestors(graph, cut.tensors), 0),
                head_bytes=_head_bytes(graph, cut, weights),
                raw_bytes=cut.size_bytes,
                cost=cost,
            )
            for cut, cost in zip(candidates, costs, strict=True)
        ),
        samples=seen,
        calibration=calibration,
        pictures=dict(pictures or {}),
    )


def _samples(
    graph: Graph, cuts: Sequence[Cut], feeds: Sequence[Mapping[str, Array]] | None, budget_s: float
) -> list[Feed]:
    if feeds is None:
        return [random_inputs(graph, 1, np.random.default_rng(0))]
    total = sum(cut.size_bytes for cut in cuts)
    affordable = int(_CODEC_SHARE * budget_s * _CODEC_BYTES_PER_S / max(total, 1))
    samples: list[Feed] = []
    for feed in feeds:
        if graph.batch_symbol is None:
            samples.append(feed)
        else:
            count = min(len(array) for array in feed.values())
            samples += [{name: array[row : row + 1] for name, array in feed.items()} for row in range(count)]
        if len(samples) >= MAX_SAMPLES:
            break
    if not samples:
        raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no input to profile with")
    return samples[: min(MAX_SAMPLES, max(1, affordable))]


def _operators(
    graph: Graph,
    needed: Sequence[int],
    number: Mapping[int, int],
    weights: Mapping[str, int],
    costs: Mapping[Cut, WireCost],
) -> tuple[Operator, ...]:
    single = {cut.tensors[0]: (cut, cost) for cut, cost in costs.items() if len(cut.tensors) == 1}
    counted = set[str]()
    found = []
    for node in needed:
        outputs = [name for name in graph.nodes[node].output if name and name not in graph.replicated]
        read = [name for name in outputs if any(reader in number for reader in graph.consumers.get(name, ()))]
        sources = {number.get(graph.producers.get(name, -1), -1) for name in graph.value_inputs(node)}
        found.append(
            Operator(
                name=(read or [name for name in outputs if name in graph.outputs] or outputs)[0],
                sources=tuple(sorted(sources)),
                work=_work(graph, node, outputs),
                weight_bytes=_weight_bytes(graph, node, weights, counted),
                wire_bytes=_sizes(graph, read, single, node),
                type=type_name(graph.nodes[node]),
            )
        )
    return tuple(found)


def _work(graph: Graph, node: int, outputs: Iterable[str]) -> float:
    if graph.macs[node]:
        return float(graph.macs[node])
    specs = [graph.sample_spec(name) for name in (*graph.value_inputs(node), *outputs)]
    return MACS_PER_BYTE * sum(spec.size_bytes for spec in specs if spec is not None)


def _weight_bytes(graph: Graph, node: int, weights: Mapping[str, int], counted: set[str]) -> int:
    """Initialisers behind the node's replicated inputs that no earlier node has counted."""
    size, pending = 0, [name for name in graph.reads[node] if name in graph.replicated]
    while pending:
        name = pending.pop()
        if name in counted:
            continue
        counted.add(name)
        size += weights.get(name, 0)
        if name in graph.producers:
            pending.extend(source for source in graph.reads[graph.producers[name]] if source in graph.replicated)
    return size


def _sizes(graph: Graph, read: Sequence[str], single: Mapping[str, tuple[Cut, WireCost]], node: int) -> dict[str, int]:
    """Of a node's outputs together: measured where the only one is a cut, else by the nearest measured ratio."""
    if not read or not all(can_cross(graph, name) for name in read):
        return {}
    if len(read) == 1 and read[0] in single:
        return dict(single[read[0]][1].bytes)
    nearest = min(
        single.values(), key=lambda entry: abs(graph.producers.get(entry[0].tensors[0], -1) - node), default=None
    )
    sizes: dict[str, int] = {}
    for name in read:
        spec = graph.sample_spec(name)
        assert spec is not None, "checked by can_cross"
        for codec, size in estimated_bytes(spec, nearest).items():
            sizes[codec] = sizes.get(codec, 0) + size
    return sizes


def _head_bytes(graph: Graph, cut: Cut, weights: Mapping[str, int]) -> int:
    """Size of the operators and weights the cut's tensors depend on, as protobuf."""
    size, pending = 0, list(cut.tensors)
    seen, nodes = set[str](), set[int]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in weights:
            size += weights[name]
        elif name in graph.producers and graph.producers[name] not in nodes:
            nodes.add(graph.producers[name])
            size += graph.nodes[graph.producers[name]].ByteSize()
            pending.extend(graph.reads[graph.producers[name]])
    return max(1, size)
