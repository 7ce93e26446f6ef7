"""Every way to say which samples of a case are hard, made at its origin alone: for `benchmarks.router_tradeoff`.

KubeEdge Sedna's miners are written anew from their formulas, at the thresholds of its defaults and examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.routing_cases import Case, Rows, deferral_alone, joined, router
from benchmarks.routing_merit import Graded, read_off
from splitmesh.routing.constraints import Disagreement
from splitmesh.routing.risk import choose
from splitmesh.routing.rule import Judge

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LOSS = 0.005
"""Of accuracy below the whole model's, that thresholds are read off for."""
PROMISED = {"joints, one cell": 0.05, "joints, 4 x 4 cells": 0.05, "rendered": 0.02}
"""Disagreement; 45 units are the fewest for .05 at this delta."""
DELTA = 0.1
BEST = "best single threshold"
OURS = "ours, read off"
ORACLE = "oracle"
SEDNA: Mapping[str, Callable[[Floats], Flags]] = {
    "Sedna CrossEntropy .5": lambda rows: 1 + _plogp(rows) / np.log(rows.shape[1]) < 0.5,
    "Sedna Threshold .5": lambda rows: rows.max(axis=1) < 0.5,
    "Sedna IBT .5 / .5": lambda rows: (rows.max(axis=1) <= 0.5) >= 1 - 0.5,
    "Sedna IBT .9 / .9": lambda rows: (rows.max(axis=1) <= 0.9) >= 1 - 0.9,
}
"""Which rows are hard. The last two are for boxes: a classifier's answer counts as one box with its score."""


def _plogp(rows: Floats) -> Floats:
    found: Floats = (rows * np.log(np.maximum(rows, np.finfo(np.float64).tiny))).sum(axis=1)
    return found


def graded(rows: Rows, ease: Floats) -> Graded:
    """By the truth."""
    return Graded(ease, rows.answer == rows.truth, rows.whole == rows.truth)


class Ways:
    """Everything that may say which samples are hard, made at the origin."""

    def __init__(self, found: Case) -> None:
        self.limit = PROMISED[found.line]
        self.ours = router(found, self.limit, DELTA)
        self.by_deferral = {
            "deferral with labels, read off": deferral_alone(found, labels=True),
            "deferral without, read off": deferral_alone(found, labels=False),
        }
        both = joined([found.validation, found.holdout])
        self.best = _tuned(both, top_of(both))
        self.read_off = _tuned(found.holdout, self.ours.eases(found.holdout))
        self.deferral_at = {
            name: _tuned(found.holdout, one.eases(found.holdout)) for name, one in self.by_deferral.items()
        }
        self.promised = {strict: self._promise(found.holdout, strict) for strict in (False, True)}

    def _promise(self, held: Rows, strict: bool) -> float:
        eases = self.ours.eases(held, escalate_unusual=strict)
        constraint = [Disagreement(self.limit)]
        return choose(eases, held.answer, held.whole, constraint, delta=DELTA, groups=held.unit).threshold

    def hard(self, rows: Rows, seed: int) -> dict[str, Flags]:
        """By each way ``[n]``."""
        top = top_of(rows)
        best = ~(top >= self.best)
        rng = np.random.default_rng(seed)
        found: dict[str, Flags] = {
            "exit alone": np.zeros(len(rows), dtype=np.bool_),
            "whole model alone": np.ones(len(rows), dtype=np.bool_),
            **{name: says(rows.probabilities) for name, says in SEDNA.items()},
            "random, as many": rng.permutation(best),
            BEST: best,
            OURS: ~(self.ours.eases(rows) >= self.read_off),
        }
        for name, one in self.by_deferral.items():
            found[name] = ~(one.eases(rows) >= self.deferral_at[name])
        for strict, name in ((False, "ours, promised"), (True, "ours, promised, unusual escalate")):
            found[name] = ~(self.ours.eases(rows, escalate_unusual=strict) >= self.promised[strict])
        return found | {ORACLE: (rows.answer != rows.truth) & (rows.whole == rows.truth)}

    def orders(self, rows: Rows) -> dict[str, Graded]:
        """That are compared at equal accuracy."""
        eases = {
            BEST: top_of(rows),
            "ours": self.ours.eases(rows),
            "ours, unusual escalate": self.ours.eases(rows, escalate_unusual=True),
            "deferral with labels": self.by_deferral["deferral with labels, read off"].eases(rows),
            "deferral without labels": self.by_deferral["deferral without, read off"].eases(rows),
        }
        return {name: graded(rows, ease) for name, ease in eases.items()}


def top_of(rows: Rows) -> Floats:
    """The largest probability."""
    found, _ = Judge().eases(rows.probabilities)
    return found


def _tuned(rows: Rows, ease: Floats) -> float:
    seen = graded(rows, ease)
    return read_off(seen, int(seen.whole_right.sum()) - LOSS * len(rows))


def said(rows: Rows, hard: Flags) -> dict[str, float]:
    """Sums over samples."""
    answer = np.where(hard, rows.whole, rows.answer)
    bad = rows.truth != 0
    return {
        "n": len(rows),
        "escalated": int(hard.sum()),
        "bytes": int(rows.size[hard].sum()),
        "right": int((answer == rows.truth).sum()),
        "as whole": int((answer == rows.whole).sum()),
        "bad": int(bad.sum()),
        "caught": int((bad & (answer != 0)).sum()),
    }
