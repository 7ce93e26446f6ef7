"""How strongly a model's answer reacts to each direction at a cut, from runs of the tail alone.

The products of derivatives, summed over outputs, places and samples, say what a small error costs in the answer. The
derivatives are estimated from the answers to simultaneous random changes (SPSA; Spall 1992). Two estimates from
different changes are multiplied, because their errors are independent and cancel: one estimate times itself would count
its own noise.

Knows a tail and principal components; what is made of the products is ``closed_form.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitmesh.compress.closed_form import Floats, Principal
from splitmesh.model.classes import as_probabilities
from splitmesh.runtime import Session
from splitmesh.tensor.spec import Array

SAMPLES = 32
"""Whose reactions are measured."""

SIZE = 0.1
"""Of a change, as a share of each component's deviation: small against the features, large against float32."""

CLASSES = 8
"""Best classes of a sample whose scores count, against the best one's."""

PROJECTIONS = 4
"""Random sums of all outputs that stand for them where there are no classes."""

FEWEST, MOST = 256, 2048
"""Runs of the tail for one sample each."""

WORK = 4e11
"""Multiply-adds spent, within these bounds."""


def runs_for(tail_macs: int) -> int:
    """How many runs of the tail are worth their time."""
    return int(np.clip(WORK / max(tail_macs, 1), FEWEST, MOST))


def measure_reaction(
    principal: Principal,
    features: Sequence[Array],
    tail: Session,
    tensor: str,
    *,
    class_output: str,
    runs: int,
    batch: int,
    seed: int,
) -> Floats:
    """``[r, r]``: products of the answer's derivatives by the principal components, mean over samples; positive.

    Args:
        principal: of the features at the cut.
        features: of some samples, one each, ``[1, ...]``.
        tail: takes ``tensor``.
        tensor: of the cut.
        class_output: of the tail, with a score per class; empty: all its outputs count.
        runs: of the tail, for one sample each, all together.
        batch: samples of one run.
        seed: of the changes.
    """
    random = np.random.default_rng(seed)
    deviation = np.sqrt(principal.variance)
    rank = len(deviation)
    total = np.zeros((rank, rank))
    each = max(2, runs // (2 * len(features)))
    for sample in features:
        base = _scores(tail.run({tensor: sample}), class_output)
        look = _look(base[0], class_output, random)
        halves = []
        for _ in range(2):
            summed: Floats | None = None
            for start in range(0, each, batch):
                count = min(batch, each - start) if batch > 1 else 1
                blocks = principal.layout.blocks(sample)
                signs = random.choice([-1.0, 1.0], size=(count, *blocks.shape[1:3], rank))
                change = principal.layout.features((SIZE * signs * deviation) @ principal.directions.T)
                changed = (sample.astype(np.float64) + change).astype(sample.dtype)
                moved = (_scores(tail.run({tensor: changed}), class_output) - base) @ look / SIZE
                moved[~np.isfinite(moved)] = 0.0
                part = np.einsum("kq,khwr->qhwr", moved, signs)
                summed = part if summed is None else summed + part
            assert summed is not None
            halves.append(summed.reshape(-1, rank) / each)
        total += halves[0].T @ halves[1]
    total = (total + total.T) / 2 / np.outer(deviation, deviation)
    return _without_noise(total, deviation)


def _without_noise(products: Floats, deviation: Floats) -> Floats:
    """Only what stands out: noise is as often negative as positive, true products never are."""
    scaled = products * np.outer(deviation, deviation)
    values, vectors = np.linalg.eigh(scaled)
    kept = np.maximum(values - max(-float(values[0]), 0.0), 0.0)
    clean: Floats = (vectors * kept) @ vectors.T
    return clean / np.outer(deviation, deviation)


def _scores(outputs: dict[str, Array], class_output: str) -> Floats:
    """``[n, numbers]``: logarithms of class probabilities, or every floating-point output."""
    if class_output:
        return np.log(np.maximum(as_probabilities(outputs[class_output]), 1e-9))
    rows = [array.reshape(len(array), -1) for array in outputs.values() if array.dtype.kind == "f"]
    return np.concatenate(rows, axis=1).astype(np.float64)


def _look(scores: Floats, class_output: str, random: np.random.Generator) -> Floats:
    """``[numbers, q]``: what of the scores counts."""
    if not class_output:
        return random.choice([-1.0, 1.0], size=(len(scores), PROJECTIONS))
    best = np.argsort(-scores, kind="stable")[:CLASSES]
    look = np.zeros((len(scores), len(best) - 1))
    look[best[0]] = 1.0
    look[best[1:], np.arange(len(best) - 1)] = -1.0
    return look
