"""Measures a model for planning: how long fused heads and tails take and what each cut costs on the wire.

Times real sessions of head(k) and tail(k), not operators one by one: summed operators exceed the fused runtime by 1.4
to 2.3 times. A handful of cuts is timed, the others are interpolated along the share of work before the cut. Knows the
host it runs on and nothing about links, edges or clouds.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.cuts import Cut, list_cuts
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.profile_data import CutProfile, Profile
from splitmesh.model.split import split_model
from splitmesh.model.verify import random_inputs
from splitmesh.model.wire_cost import Feed, WireCost, wire_costs
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array

Clock = Callable[[], float]

MIN_REPEATS = 3
"""Timed runs that happen even when the budget is spent."""

MAX_SAMPLES = 8
"""Inputs that are looked at; more change neither a median time nor a mean size much."""

_CODEC_SHARE, _CODEC_BYTES_PER_S = 0.25, 50e6
"""The part of the budget for wire sizes, and how fast rounding and packing both ways go at worst (2 slow cores)."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one session."""

    median_ms: float
    p90_ms: float


@dataclass(frozen=True, slots=True)
class _Point:
    """Measured times at one position."""

    position: float
    head: Timing
    tail: Timing


def profile_cuts(
    whole: bytes,
    cuts: Sequence[Cut] | None = None,
    *,
    budget_s: float = 30.0,
    repeats: int = 20,
    warmup: int = 3,
    threads: int = 1,
    max_points: int = 8,
    feeds: Sequence[Mapping[str, Array]] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Profile:
    """Profile a model on this host, one sample at a time.

    Args:
        whole: the serialised model.
        cuts: of that model; None: every candidate. One that is timed but cannot be made is left out.
        budget_s: about how long it may take. The whole model, the first and the last cut are timed in any case, with at
            least ``MIN_REPEATS`` runs, and wire sizes of every cut are measured on at least one sample.
        repeats: timed runs of each session; fewer when the budget asks for it.
        warmup: runs before them, not timed.
        threads: of the sessions.
        max_points: cuts that are timed, spread evenly over the work of the model; at least 2.
        feeds: real inputs, batches are taken apart; None: noise, and the profile says so. A model with a fixed batch
            is run as it is, one run counting as one sample.
        on_progress: called with steps done, steps in all and what comes next.
        clock: seconds; the source of all times.

    Raises MeshError FIELD_INVALID for values out of range, CALIBRATION_INSUFFICIENT when ``feeds`` is empty or a cut
    has no finite value, and what loading, cutting and running raise.
    """
    _require_at_least("budget_s", budget_s, 0)
    _require_at_least("repeats", repeats, 1)
    _require_at_least("warmup", warmup, 0)
    _require_at_least("threads", threads, 1)
    _require_at_least("max_points", max_points, 2)
    started = clock()
    graph = Graph(load_model(whole))
    candidates = list_cuts(graph) if cuts is None else list(cuts)
    count = min(max_points, len(candidates))
    samples = _samples(graph, candidates, feeds, budget_s)
    steps = _Steps(2 + count, on_progress)
    bench = _Bench(repeats, warmup, threads, budget_s / (2 * count + 1), clock)

    steps.next("timing the whole model")
    whole_time, _ = bench.time(whole, samples)
    steps.next("measuring wire sizes")
    costs = wire_costs(graph.model, candidates, samples, threads=threads, clock=clock)
    points: dict[Cut, _Point] = {}
    refused = set[Cut]()
    for cut in _spread(candidates, costs, count):
        before = clock()
        steps.next(f"timing the cut at {', '.join(cut.tensors)}")
        try:
            points[cut] = bench.point(graph, cut, samples)
        except MeshError as error:
            if error.reason not in (Reason.CUT_INVALID, Reason.MODEL_SHAPE_UNKNOWN):
                raise
            refused.add(cut)
        after = clock()
        if len(points) >= 2 and after - started + (after - before) > budget_s:
            break
    steps.finish()
    offered = [(cut, cost) for cut, cost in zip(candidates, costs, strict=True) if cut not in refused]
    return Profile(
        whole_ms=whole_time.median_ms,
        whole_p90_ms=whole_time.p90_ms,
        whole_bytes=len(whole),
        cuts=_cut_profiles(graph, offered, points, whole_time),
        threads=threads,
        repeats=repeats,
        samples=len(samples),
        calibration="random" if feeds is None else "real",
        host=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


class _Bench:
    """Times sessions, each within an allowance."""

    def __init__(self, repeats: int, warmup: int, threads: int, allowance_s: float, clock: Clock) -> None:
        self._repeats = repeats
        self._warmup = warmup
        self._threads = threads
        self._allowance_s = allowance_s
        self._clock = clock

    def time(self, model: bytes, samples: Sequence[Feed]) -> tuple[Timing, list[dict[str, Array]]]:
        """The session's times and its outputs for every sample."""
        with closing(open_session(model, threads=self._threads)) as session:
            outputs = [session.run(sample) for sample in samples]
            return self._timed(session, samples), outputs

    def point(self, graph: Graph, cut: Cut, samples: Sequence[Feed]) -> _Point:
        split = split_model(graph, cut)
        head, features = self.time(split.head.SerializeToString(), samples)
        tail, _ = self.time(split.tail.SerializeToString(), features)
        return _Point(cut.position, head, tail)

    def _timed(self, session: Session, samples: Sequence[Feed]) -> Timing:
        for turn in range(self._warmup):
            session.run(samples[turn % len(samples)])
        times: list[float] = []
        begin = self._clock()
        for turn in range(self._repeats):
            start = self._clock()
            session.run(samples[turn % len(samples)])
            end = self._clock()
            times.append((end - start) * 1e3)
            if len(times) >= MIN_REPEATS and end - begin > self._allowance_s:
                break
        return Timing(float(np.median(times)), float(np.percentile(times, 90)))


class _Steps:
    """Reports progress."""

    def __init__(self, total: int, report: Callable[[int, int, str], None] | None) -> None:
        self._total, self._report, self._begun = total, report, 0

    def next(self, text: str) -> None:
        if self._report:
            self._report(self._begun, self._total, text)
        self._begun += 1

    def finish(self) -> None:
        if self._report:
            self._report(self._total, self._total, "done")


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


def _spread(cuts: Sequence[Cut], costs: Sequence[WireCost], most: int) -> list[Cut]:
    """First and last cut, then cuts as far as possible from those before, so that stopping early leaves no gap."""
    if len(cuts) <= 2:
        return list(cuts)
    wire = {cut: min(cost.bytes.values()) for cut, cost in zip(cuts, costs, strict=True)}
    ordered = sorted(cuts, key=lambda cut: (cut.position, cut.index))
    chosen, left = [ordered[0], ordered[-1]], ordered[1:-1]
    while left and len(chosen) < most:
        # of equally distant ones (a convolution and its ReLU) the smallest on the wire: the likelier choice of a plan
        farthest = max(left, key=lambda cut: (min(abs(cut.position - c.position) for c in chosen), -wire[cut]))
        chosen.append(farthest)
        left.remove(farthest)
    return chosen


def _cut_profiles(
    graph: Graph, cuts: Sequence[tuple[Cut, WireCost]], points: Mapping[Cut, _Point], whole: Timing
) -> tuple[CutProfile, ...]:
    guesses = _Interpolation(list(points.values()), whole)
    weights = {tensor.name: tensor.ByteSize() for tensor in graph.model.graph.initializer}
    profiles = []
    for cut, cost in cuts:
        point = points.get(cut) or guesses.at(cut.position)
        profiles.append(
            CutProfile(
                tensors=cut.tensors,
                position=cut.position,
                head_ms=point.head.median_ms,
                head_p90_ms=point.head.p90_ms,
                tail_ms=point.tail.median_ms,
                tail_p90_ms=point.tail.p90_ms,
                measured=cut in points,
                head_bytes=_head_bytes(graph, cut, weights),
                raw_bytes=cut.size_bytes,
                wire_bytes=cost.bytes,
                encode_ms=cost.encode_ms,
                decode_ms=cost.decode_ms,
            )
        )
    return tuple(profiles)


class _Interpolation:
    """Times along the position, growing for heads and falling for tails whatever the noise of the measurements.

    No cut before the input means no head and the whole model as tail, and the other way round at the output.
    """

    def __init__(self, points: Sequence[_Point], whole: Timing) -> None:
        nothing = Timing(0.0, 0.0)
        inner = sorted(points, key=lambda point: point.position)
        anchors = [_Point(0.0, nothing, whole), *inner, _Point(1.0, whole, nothing)]
        self._at = [point.position for point in anchors]
        self._head = np.maximum.accumulate([(p.head.median_ms, p.head.p90_ms) for p in anchors], axis=0)
        self._tail = np.minimum.accumulate([(p.tail.median_ms, p.tail.p90_ms) for p in anchors], axis=0)

    def at(self, position: float) -> _Point:
        head, tail = (
            Timing(*(float(np.interp(position, self._at, column)) for column in times.T))
            for times in (self._head, self._tail)
        )
        return _Point(position, head, tail)


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
            node = graph.nodes[graph.producers[name]]
            size += node.ByteSize()
            pending.extend(node.input)
    return size


def _require_at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise field_error(name, f"is {value}, expected at least {least}")
