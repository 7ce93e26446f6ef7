"""Corrects a profile by what a segment takes in production: the same host, but warm, busy or throttled."""

from __future__ import annotations

import math
from typing import Literal

from splitmesh.model.profile_data import Profile

MIN_LIVE_RUNS = 50
"""Fewer runs say too little."""
FACTORS = 0.2, 5.0
"""Least and largest correction: beyond them something else is wrong."""
NEGLIGIBLE = 0.05
"""A profile that is off by less is left as it is."""

Side = Literal["whole", "head", "tail"]


def corrected(profile: Profile, side: Side, cut: frozenset[str], live_ms: float, runs: int) -> Profile | None:
    """The profile with every time scaled by live over profiled time; None when there is nothing to correct.

    Args:
        profile: of the node.
        side: what runs there.
        cut: behind the head or before the tail; empty for the whole model.
        live_ms: its median in production, per sample, in batches of the profile's size.
        runs: behind that median.
    """
    expected = profile.whole_ms
    if side != "whole":
        entry = next((one for one in profile.cuts if frozenset(one.tensors) == cut), None)
        if entry is None:
            return None
        expected = entry.head_ms if side == "head" else entry.tail_ms
    if runs < MIN_LIVE_RUNS or expected <= 0 or not 0 <= live_ms < math.inf:
        return None
    factor = min(max(live_ms / expected, FACTORS[0]), FACTORS[1])
    if abs(factor - 1) < NEGLIGIBLE:
        return None
    times = ("head_ms", "head_p90_ms", "head_p99_ms", "tail_ms", "tail_p90_ms", "tail_p99_ms")

    def scaled(ms: float | None) -> float | None:
        return None if ms is None else ms * factor

    return profile.model_copy(
        update={
            "whole_ms": profile.whole_ms * factor,
            "whole_p90_ms": profile.whole_p90_ms * factor,
            "whole_p99_ms": scaled(profile.whole_p99_ms),
            "cuts": tuple(
                one.model_copy(update={name: scaled(getattr(one, name)) for name in times} | {"live_runs": runs})
                for one in profile.cuts
            ),
            "nodes": tuple(
                one.model_copy(update={"head_ms": one.head_ms * factor, "tail_ms": one.tail_ms * factor})
                for one in profile.nodes
            ),
        }
    )
