"""What comes with the exit at a cut so that hard samples are told well: the expected gain of asking, and what is unlike the rest.

Both are fitted to samples that did not teach the exit its weights (the gain), or that need no answer at all (what is usual), and
never to the hold-out. Too few samples are no error: the version comes without them, and heads go by the probabilities alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.work import Rows, Samples
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import DEFERRAL, UNUSUAL
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from splitmesh.routing.costs import NO_ANSWER
from splitmesh.routing.deferral import Deferral
from splitmesh.routing.deferral_fit import fit_deferral
from splitmesh.routing.division import divided
from splitmesh.routing.rule import Judge
from splitmesh.routing.unusual import Unusual
from splitmesh.routing.unusual_fit import fit_unusual
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

FOLDS = 5
"""In which validation samples get a gain from a score that was not fitted to them."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The validation samples, as the exit at the cut and the whole model answered them."""

    probabilities: Floats
    """``[n, classes]``, the exit's."""
    features: Floats
    """``[n, F]``, pooled as the exit reads them."""
    exit_right: Booleans
    """``[n]``: by the truth where that is known, else by the whole model's answer."""
    tail_right: Booleans | None
    """``[n]``: by the truth; None: the whole model is the reference."""
    groups: NDArray[np.int64] | None

    @classmethod
    def of(
        cls,
        probabilities: Floats,
        features: Floats,
        whole: NDArray[np.int64],
        labels: NDArray[np.int64] | None,
        groups: NDArray[np.int64] | None,
        *,
        finding: bool,
    ) -> Asked:
        """The truth counts where every sample has a label; of a detector's exit none does. A row that is no distribution is
        taken as one that says nothing, since such a sample is asked about in any case."""
        _, answers = Judge(finding=finding).eases(probabilities)
        probabilities = np.where((answers == NO_ANSWER)[:, None], 1 / max(1, probabilities.shape[1]), probabilities)
        if labels is None or finding or (labels < 0).any():
            return cls(probabilities, features, answers == whole, None, groups)
        return cls(probabilities, features, answers == labels, whole == labels, groups)

    def fit(self, rows: Rows | None = None) -> Deferral:
        """To all samples, or to some."""

        def chosen(values: NDArray[np.generic] | None) -> NDArray[np.generic] | None:
            return values if values is None or rows is None else values[rows]

        return fit_deferral(
            np.asarray(chosen(self.probabilities)),
            exit_right=np.asarray(chosen(self.exit_right)),
            tail_right=chosen(self.tail_right),
            features=chosen(self.features),
            groups=chosen(self.groups),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """A deferral score, and what it says of the samples it was made from."""

    score: Deferral
    worth: Floats
    """``[n]``: of each sample by a score that was fitted to the others."""


def fit_gain(asked: Asked) -> Gain | None:
    """None for too few samples."""
    try:
        worth = np.full(len(asked.exit_right), np.nan)
        fold = divided(len(worth), [1 / FOLDS] * FOLDS, seed=0, groups=asked.groups)
        for number in range(FOLDS):
            others, own = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if len(own):
                worth[own] = asked.fit(others).worth(asked.probabilities[own], asked.features[own])
        return Gain(asked.fit(), worth)
    except MeshError as error:
        if error.reason is not Reason.CALIBRATION_INSUFFICIENT:
            raise
        return None


def fit_usual(features: Floats, samples: Samples) -> Unusual | None:
    """From every sample outside the hold-out; None for too few of them, or where a limit could not be held to."""
    rows = samples.made_from
    groups = samples.calibration.groups
    try:
        found = fit_unusual(features[rows], groups=None if groups is None else groups[rows])
    except MeshError as error:
        if error.reason is not Reason.CALIBRATION_INSUFFICIENT:
            raise
        return None
    return found if np.isfinite(found.limit) else None


def outcomes_of(
    probabilities: Sequence[Array],
    logits: Sequence[Array],
    pooled: Floats,
    whole: NDArray[np.int64],
    samples: Samples,
    *,
    finding: bool,
    names: tuple[str, ...],
) -> tuple[dict[str, bytes], CalibrationOutcomes]:
    """The artefacts that tell hard samples, and what they and the exits say of the validation and the hold-out samples.

    Args:
        probabilities: of each exit from the input on, ``[validation + hold-out, classes]``.
        logits: likewise.
        pooled: ``[all samples, F]``, what the exit at the cut reads.
        whole: ``[all samples]``, class that the whole model names.
        finding: the exits are a detector's.
        names: of the classes.
    """
    chosen, rows = len(samples.validation), np.concatenate([samples.validation, samples.holdout])
    labels, groups = samples.labels(rows), samples.calibration.groups
    groups = None if groups is None else groups[rows]
    last = probabilities[-1].astype(np.float64)
    gain = fit_gain(
        Asked.of(
            last[:chosen],
            pooled[samples.validation],
            whole[samples.validation],
            None if labels is None else labels[:chosen],
            None if groups is None else groups[:chosen],
            finding=finding,
        )
    )
    usual = fit_usual(pooled, samples)
    worth = None
    if gain is not None:
        worth = np.concatenate([gain.worth, gain.score.worth(last[chosen:], pooled[samples.holdout])])
    outcomes = CalibrationOutcomes(
        probabilities=np.stack(probabilities, axis=1).astype(np.float32),
        logits=np.stack(logits, axis=1).astype(np.float32),
        whole=whole[rows],
        part=np.repeat([int(Part.VALIDATION), int(Part.HOLDOUT)], [chosen, len(samples.holdout)]).astype(np.uint8),
        worth=None if worth is None else worth.astype(np.float32),
        strange=None if usual is None else usual.strange(pooled[rows]),
        labels=labels,
        groups=groups,
        names=names,
        finding=finding,
        seed=samples.seed,
    )
    found = {DEFERRAL: None if gain is None else gain.score, UNUSUAL: usual}
    return {name: score.to_bytes() for name, score in found.items() if score is not None}, outcomes
