"""Trying exits at the cuts of a profile, in a child process of its own: only this step needs scipy, which is slow to import."""

from __future__ import annotations

from dataclasses import dataclass

from services.partitioner.timing_work import SAMPLE_BATCH, Version
from splitmesh.model.escalation import with_escalation
from splitmesh.model.profile_data import Profile

MAX_TRIAL_SAMPLES = 2000
"""Calibration samples on which exits are tried."""


@dataclass(frozen=True, slots=True)
class ExitTrial:
    """How exits are tried at the cuts; see the settings of the same names."""

    max_disagreement: float
    delta: float
    holdout_share: float


def try_exits(version: Version, profile: Profile, trial: ExitTrial, threads: int, budget_s: float) -> Profile:
    """The profile with shares of hard samples; unchanged for what is no classifier with calibration samples."""
    about = version.about()
    samples = version.samples(about)
    if samples is None or not about.class_output:
        return profile
    return with_escalation(
        profile,
        version.whole,
        samples.batches(SAMPLE_BATCH, limit=MAX_TRIAL_SAMPLES),
        about.class_output,
        samples=min(samples.samples, MAX_TRIAL_SAMPLES),
        max_disagreement=trial.max_disagreement,
        delta=trial.delta,
        threads=threads,
        holdout=trial.holdout_share,
        budget_s=budget_s,
    )
