"""Makes profiles: which cuts to time and in what order, the pieces to time, and what the times say of all other cuts.

Times real sessions of head(k) and tail(k), not operators one by one: summed operators exceed the fused runtime by 1.4
to 2.3 times. A handful of cuts is timed, the others are interpolated (see :mod:`splitmesh.model.shares`). The steps are
pure, so that whoever times on another node can do it cut by cut and stop at any time; :func:`profile_cuts` does it all
on this host. Knows nothing about links, edges or clouds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.cuts import Cut, resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.points import Pace, Point, Points, Times, known_points, per_sample
from splitmesh.model.profile_data import (
    QUANTISED_CODEC,
    CutProfile,
    NodeProfile,
    PictureProfile,
    Profile,
    ProfileKey,
)
from splitmesh.model.shares import share_out, time_of
from splitmesh.model.split import split_model
from splitmesh.model.survey import Clock, Survey, SurveyedCut, Tensors, survey
from splitmesh.model.wire_cost import Feed
from splitmesh.runtime.timing import Timing, host_text, time_piece

MAX_POINTS = 12
"""Cuts that are timed for a complete profile."""
REPEATS = 20
WARMUP = 3
NEAR = 0.15
"""Cuts so close to the middle of a gap, as a share of its work, are equally good there."""
LOCAL_NODE = "local"
"""Name of the node in profiles that no service measured."""
CANNOT_BE_CUT = frozenset({Reason.CUT_INVALID, Reason.MODEL_SHAPE_UNKNOWN})
"""Why a candidate is left out of a profile rather than ending it."""


def next_cut(found: Survey, points: Points, refused: Collection[Tensors], most: int = MAX_POINTS) -> Tensors | None:
    """The cut to time next; None when ``most`` are timed or there is no other.

    The first and the last, then inside the gap between two timed neighbours whose times differ most: there interpolation
    can err most. Of cuts near the middle of its work (a convolution and its ReLU) the smallest on the wire, the likelier
    choice of a plan.
    """
    work = np.array([operator.work for operator in found.operators])
    cuts = sorted((cut for cut in found.cuts if cut.tensors not in refused), key=lambda cut: cut.index)
    timed = [cut for cut in cuts if cut.tensors in points]
    if not cuts or len(timed) >= most or len(timed) == len(cuts):
        return None
    for end in (cuts[0], cuts[-1]):
        if end.tensors not in points:
            return end.tensors
    at = {cut.tensors: time_of(cut.head, work) for cut in cuts}

    def doubt(low: SurveyedCut, high: SurveyedCut) -> tuple[float, float]:
        before, after = points[low.tensors], points[high.tensors]
        head, tail = after.head.median_ms - before.head.median_ms, before.tail.median_ms - after.tail.median_ms
        return max(0.0, head) + max(0.0, tail), at[high.tensors] - at[low.tensors]

    gaps = [
        (doubt(low, high), low, high, inner)
        for low, high in pairwise(timed)
        if (inner := [cut for cut in cuts if low.index < cut.index < high.index])
    ]
    if not gaps:
        return next(cut.tensors for cut in cuts if cut.tensors not in points)
    _, low, high, inner = max(gaps, key=lambda gap: gap[0])
    middle, width = (at[low.tensors] + at[high.tensors]) / 2, at[high.tensors] - at[low.tensors] or 1.0

    def preference(cut: SurveyedCut) -> tuple[float, int]:
        return max(0.0, abs(at[cut.tensors] - middle) / width - NEAR), min(cut.cost.bytes.values())

    return min(inner, key=preference).tensors


def pieces(graph: Graph, tensors: Tensors) -> tuple[bytes, bytes]:
    """Head and tail of a cut, serialised; MeshError CUT_INVALID or MODEL_SHAPE_UNKNOWN when it cannot be made."""
    split = split_model(graph, resolve_cut(graph, tensors))
    return split.head.SerializeToString(), split.tail.SerializeToString()


def assemble(
    found: Survey,
    key: ProfileKey,
    whole: Times,
    points: Points,
    *,
    refused: Collection[Tensors] = (),
    host: str,
    repeats: int = REPEATS,
    most: int = MAX_POINTS,
    known: Profile | None = None,
) -> Profile:
    """The profile that these measurements make; ``known`` lends what was found out about its cuts beside times."""
    work = [operator.work for operator in found.operators]
    everything = (1 << len(work)) - 1
    timed = [(cut, points[cut.tensors]) for cut in found.cuts if cut.tensors in points and cut.tensors not in refused]
    heads = [
        share_out(work, [(cut.head, point.head[which]) for cut, point in timed], whole[which]) for which in range(3)
    ]
    tails = [
        share_out(work, [(everything & ~cut.head, point.tail[which]) for cut, point in timed], whole[which])
        for which in range(3)
    ]
    head_shares, tail_shares = np.array(heads), np.array(tails)
    told = {} if known is None else {cut.tensors: cut for cut in known.cuts}
    cuts = []
    for cut in found.cuts:
        if cut.tensors in refused:
            continue
        point = points.get(cut.tensors) or Point(
            Times(*(time_of(cut.head, shares) for shares in head_shares)),
            Times(*(time_of(everything & ~cut.head, shares) for shares in tail_shares)),
        )
        entry = _cut_profile(cut, point, cut.tensors in points)
        earlier = told.get(cut.tensors)
        cuts.append(entry if earlier is None else entry.model_copy(update=_learnt(earlier, entry)))
    return Profile(
        key=key,
        whole_ms=whole.median_ms,
        whole_p90_ms=whole.p90_ms,
        whole_p99_ms=_worst(whole),
        whole_bytes=found.whole_bytes,
        cuts=tuple(cuts),
        nodes=tuple(
            NodeProfile(
                name=operator.name,
                sources=operator.sources,
                head_ms=heads[0][index],
                tail_ms=tails[0][index],
                weight_bytes=operator.weight_bytes,
                wire_bytes=operator.wire_bytes,
                operator=operator.type,
            )
            for index, operator in enumerate(found.operators)
        ),
        pictures=found.pictures,
        repeats=repeats,
        samples=found.samples,
        calibration=found.calibration,
        host=host,
        complete=next_cut(found, points, refused, most) is None,
    )


def profile_cuts(
    whole: bytes,
    cuts: Sequence[Cut] | None = None,
    *,
    budget_s: float = 30.0,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    batch: int = 1,
    threads: int = 1,
    backend: str = "",
    max_points: int = MAX_POINTS,
    feeds: Sequence[Feed] | None = None,
    pictures: Mapping[str, PictureProfile] | None = None,
    known: Profile | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Profile:
    """Profile a model on this host.

    Args:
        whole: the serialised model.
        cuts: of that model; None: every candidate. One that is timed but cannot be made is left out.
        budget_s: about how long it may take. The whole model, the first and the last cut are timed in any case, and
            wire sizes of every cut are measured on at least one sample.
        repeats: timed runs of each session; fewer when the budget asks for it.
        warmup: runs before them, not timed.
        batch: samples per run. A model with a fixed batch is run as it is, one run counting as one sample.
        threads: of the sessions.
        backend: execution provider; empty: the CPU.
        max_points: cuts that are timed; at least 2.
        feeds: real inputs for the wire sizes, batches are taken apart; None: noise, and the profile says so.
        pictures: see :class:`splitmesh.model.survey.Survey`.
        known: an earlier profile of the model by this function, to be continued.
        on_progress: called with steps done, steps in all and what comes next.
        clock: seconds; the source of all times.

    Raises MeshError FIELD_INVALID for values out of range, CALIBRATION_INSUFFICIENT when ``feeds`` is empty or a cut
    has no finite value, and what loading, cutting and running raise.
    """
    for name, value, least in (
        ("budget_s", budget_s, 0),
        ("repeats", repeats, 1),
        ("warmup", warmup, 0),
        ("threads", threads, 1),
        ("batch", batch, 1),
        ("max_points", max_points, 2),
    ):
        if not value >= least:
            raise field_error(name, f"is {value}, expected at least {least}")
    started = clock()
    graph = Graph(load_model(whole))
    report = on_progress or (lambda done, total, text: None)
    providers = (backend,) if backend else ()

    def timed(model: bytes) -> Timing:
        return time_piece(
            model,
            batch=batch,
            threads=threads,
            providers=providers,
            repeats=repeats,
            warmup=warmup,
            budget_s=budget_s / (3 * max_points + 1),
            clock=clock,
        )

    report(0, 2 + max_points, "measuring wire sizes")
    found = survey(
        whole, graph, cuts, feeds=feeds, pictures=pictures, known=known, budget_s=budget_s, threads=threads, clock=clock
    )
    count = min(max_points, len(found.cuts))
    report(1, 2 + count, "timing the whole model")
    first = timed(whole)
    earlier = {} if known is None else known_points(known)
    pace, points = Pace(per_sample(first, batch)), earlier
    refused = set[Tensors]()
    while (tensors := next_cut(found, points, refused, max_points)) is not None:
        before = clock()
        report(min(2 + len(points), 1 + count), 2 + count, f"timing the cut at {', '.join(tensors)}")
        try:
            head, tail = pieces(graph, tensors)
            point = Point(per_sample(timed(head), batch), per_sample(timed(tail), batch))
            pace.add(tensors, point, per_sample(timed(whole), batch))
            points = pace.points(earlier)
        except MeshError as error:
            if error.reason not in CANNOT_BE_CUT:
                raise
            refused.add(tensors)
        after = clock()
        if len(points) >= 2 and after - started + (after - before) > budget_s:
            break
    report(2 + count, 2 + count, "done")
    return assemble(
        found,
        ProfileKey(node=LOCAL_NODE, backend=first.backend, threads=threads, batch=batch),
        pace.whole,
        points,
        refused=refused,
        host=host_text(),
        repeats=repeats,
        most=max_points,
        known=known,
    )


def _cut_profile(cut: SurveyedCut, point: Point, measured: bool) -> CutProfile:
    return CutProfile(
        tensors=cut.tensors,
        position=cut.position,
        head_ms=point.head.median_ms,
        head_p90_ms=point.head.p90_ms,
        tail_ms=point.tail.median_ms,
        tail_p90_ms=point.tail.p90_ms,
        head_p99_ms=_worst(point.head),
        tail_p99_ms=_worst(point.tail),
        measured=measured,
        head_bytes=cut.head_bytes,
        raw_bytes=cut.raw_bytes,
        wire_bytes=cut.cost.bytes,
        encode_ms=cut.cost.encode_ms,
        decode_ms=cut.cost.decode_ms,
        agreement={} if point.agreement is None else {QUANTISED_CODEC: point.agreement},
    )


def _worst(times: Times) -> float | None:
    """Never less than what nine in ten take, also where it was interpolated between cuts that know it and others."""
    return max(times.p99_ms, times.p90_ms) if times.p99_ms else None


def _learnt(earlier: CutProfile, entry: CutProfile) -> dict[str, object]:
    """What an earlier profile found out beside times, as far as nothing newer is known."""
    return {
        "escalation": earlier.escalation,
        "leakage": earlier.leakage,
        "agreement": entry.agreement or earlier.agreement,
    }
