"""From a stated tolerance to a policy: the threshold for one version, and why. Pure.

`choose_threshold` does the statistics; here is what happens around it: a version without an exit, or without enough
samples, gets a policy too, by which everything escalates. That is slow but right.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from services.router.store import Tolerance
from splitmesh.errors import MeshError
from splitmesh.model.gate import ESCALATE_ALL
from splitmesh.model.outcomes import CalibrationOutcomes
from splitmesh.model.threshold import choose_threshold


@dataclass(frozen=True, slots=True)
class Policy:
    """How a head decides; the fields are those of `splitmesh.api.routing.v1.Policy`."""

    model: str
    version: int
    threshold: float
    max_disagreement: float
    delta: float
    disagreement_bound: float
    coverage: float
    calibration_samples: int
    why: str
    revision: int = 0
    """0 until the store has numbered it."""

    def content(self) -> str:
        """Everything but the revision, as text: two policies of equal content are the same."""
        return json.dumps(asdict(replace(self, revision=0)), sort_keys=True)


def make_policy(model: str, version: int, tolerance: Tolerance, outcomes: bytes | None) -> Policy:
    """The policy of one version.

    Args:
        model: by name.
        version: its number.
        tolerance: what was stated.
        outcomes: the version's `calibration_outcomes.json`; None when it has none.

    Outcomes that cannot be read are no error: everything escalates, and the policy says so.
    """
    if outcomes is None:
        return _escalate(model, version, tolerance, "this version has no exit with measured calibration outcomes")
    try:
        measured = CalibrationOutcomes.from_json(outcomes)
    except MeshError as error:
        return _escalate(model, version, tolerance, error.message)
    confidences, agrees = measured.columns()
    choice = choose_threshold(confidences, agrees, max_disagreement=tolerance.max_disagreement, delta=tolerance.delta)
    return Policy(
        model=model,
        version=version,
        threshold=choice.threshold,
        max_disagreement=tolerance.max_disagreement,
        delta=tolerance.delta,
        disagreement_bound=choice.bound,
        coverage=choice.coverage,
        calibration_samples=choice.n,
        why=choice.reason,
    )


def _escalate(model: str, version: int, tolerance: Tolerance, reason: str) -> Policy:
    return Policy(
        model=model,
        version=version,
        threshold=ESCALATE_ALL,
        max_disagreement=tolerance.max_disagreement,
        delta=tolerance.delta,
        disagreement_bound=0.0,
        coverage=0.0,
        calibration_samples=0,
        why=f"everything escalates: {reason}",
    )
