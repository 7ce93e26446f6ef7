"""How many samples would be hard at each cut: an exit is fitted there on trial and its threshold chosen as in production.

An early exit is cheap and knows little, a late one knows more and leaves less to save; a plan that gives every cut the
same share of hard samples always cuts too early. Fits on the model's own answers, needs no labels. The exit that is
deployed is fitted again, with more care, by whoever attaches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.model.classes import as_probabilities
from splitmesh.model.cuts import Cut, list_cuts
from splitmesh.model.exits import choose_feature, fit_exit
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.pooling import choose_grid, pool
from splitmesh.model.profile_data import QUANTISED_CODEC, CutProfile, Profile
from splitmesh.model.wire_cost import tapped
from splitmesh.routing.threshold import choose_threshold
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

MAX_TRIALS = 8
"""Cuts at which an exit is tried."""
MAX_HEAD_SHARE = 0.8
"""Of the whole model's time or arithmetic; an exit behind a longer head saves nothing that running the whole would not."""
TRIAL_L2 = 0.01
"""Weight penalty of a trial; choosing it per cut would take six fits."""

Floats = NDArray[np.float64]
Tensors = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """What an exit reads."""

    tensor: str
    grid: int


def with_escalation(
    profile: Profile,
    whole: bytes,
    batches: Iterable[Mapping[str, Array]],
    class_output: str,
    *,
    samples: int,
    max_disagreement: float,
    delta: float,
    budget_s: float,
    threads: int = 1,
    holdout: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> Profile:
    """The profile with the share of hard samples at the cuts that are worth an exit; None stays at the others.

    Args:
        profile: of this model.
        whole: the serialised model.
        batches: calibration inputs, not seen in training for an honest share.
        class_output: the model's output with one score per class.
        samples: how many there are in ``batches``.
        max_disagreement: tolerated share of samples on which an exit answers and differs from the whole model.
        delta: probability that the bound is wrong.
        budget_s: no further trial begins after this many seconds.
        threads: of the session that makes the features.
        holdout: share of the samples that thresholds are chosen on.
        clock: seconds.

    A model whose answers an exit cannot be fitted to (one class, too few samples) comes back unchanged.
    """
    begun = clock()
    graph = Graph(load_model(whole))
    by_name = {cut.tensors: cut for cut in list_cuts(graph)}
    # By arithmetic too: the times of a model of microseconds are mostly the clock's and the call's.
    shallow = [
        entry
        for entry in profile.cuts
        if min(entry.head_ms / max(profile.whole_ms, 1e-6), entry.position) <= MAX_HEAD_SHARE
    ]
    trials = [by_name[entry.tensors] for entry in worth_an_exit(shallow) if entry.tensors in by_name]
    sources = _sources(trials, samples)
    features, answers = _features(graph, trials, sources, batches, class_output, threads)
    shares: dict[Tensors, float] = {}
    # From the deepest cut on: late exits fit fastest, and a budget that runs out spends nothing on the shallowest.
    for cut, pooled in reversed(features.items()):
        if clock() - begun > budget_s:
            break
        try:
            fitted = fit_exit(pooled, answers, holdout=holdout, grid=sources[cut].grid, l2=TRIAL_L2)
        except MeshError as error:
            if error.reason is Reason.CALIBRATION_INSUFFICIENT:
                return profile
            raise
        choice = choose_threshold(
            fitted.holdout_confidences, fitted.holdout_agrees, max_disagreement=max_disagreement, delta=delta
        )
        shares[cut] = 1 - choice.coverage
    cuts = tuple(entry.model_copy(update={"escalation": shares.get(entry.tensors)}) for entry in profile.cuts)
    return profile.model_copy(update={"cuts": cuts})


def worth_an_exit(cuts: Sequence[CutProfile]) -> list[CutProfile]:
    """Cuts that send less than every earlier one, at most ``MAX_TRIALS``, spread from first to last."""
    front: list[CutProfile] = []
    smallest = float("inf")
    for cut in sorted(cuts, key=lambda cut: cut.position):
        size = cut.wire_bytes.get(QUANTISED_CODEC, cut.raw_bytes)
        if size < smallest:
            smallest = size
            front.append(cut)
    if len(front) <= MAX_TRIALS:
        return front
    return [front[round(index)] for index in np.linspace(0, len(front) - 1, MAX_TRIALS)]


def _sources(cuts: Sequence[Cut], samples: int) -> dict[Tensors, _Source]:
    """What an exit would read at each cut; a cut without a float tensor that fits has none."""
    sources: dict[Tensors, _Source] = {}
    for cut in cuts:
        try:
            spec = choose_feature(cut.specs)
        except MeshError as error:
            if error.reason is not Reason.CUT_INVALID:
                raise
            continue
        sources[cut.tensors] = _Source(spec.name, choose_grid(spec, samples))
    return sources


def _features(
    graph: Graph,
    cuts: Sequence[Cut],
    sources: Mapping[Tensors, _Source],
    batches: Iterable[Mapping[str, Array]],
    class_output: str,
    threads: int,
) -> tuple[dict[Tensors, Floats], Floats]:
    """Pooled features of every cut ``[n, features]`` and the model's answers ``[n, classes]``, in one pass."""
    pooled: dict[Tensors, list[Floats]] = {tensors: [] for tensors in sources}
    answers: list[Floats] = []
    model = tapped(graph.model, [cut for cut in cuts if cut.tensors in sources]).SerializeToString()
    with closing(open_session(model, threads=threads)) as session:
        for batch in batches:
            outputs = session.run(batch)
            answers.append(as_probabilities(outputs[class_output]))
            for tensors, source in sources.items():
                pooled[tensors].append(pool(outputs[source.tensor], source.grid))
    if not answers:
        return {}, np.empty((0, 0))
    return {tensors: np.concatenate(parts) for tensors, parts in pooled.items()}, np.concatenate(answers)
