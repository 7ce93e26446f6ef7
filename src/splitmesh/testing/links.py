"""Link profiles: how fast, how far and how steady the links are that splitmesh is meant for.

Knows published figures; does not know how a link is imitated (``relay`` does).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

FADE_S = 1.0
"""How long a fading link keeps one rate."""
_FADE_CORRELATION = 0.88
"""From one second to the next, as measured on the low band."""
_FADE_FLOOR_MBPS = 0.1
_Z95 = 1.645


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """How good a link is; uplink is towards the target."""

    name: str
    uplink_mbps: float
    """Median rate, Mbit/s; ``math.inf`` for none."""
    downlink_mbps: float
    rtt_ms: float
    """Round trip without queueing; half of it each way."""
    jitter_ms: float = 0.0
    """Standard deviation of the round trip. Bytes stay in order: a late piece holds up those behind it."""
    uplink_p5_mbps: float | None = None
    uplink_p95_mbps: float | None = None
    """Between these the uplink's rate moves from second to second where fading is asked for."""


PROFILES = {
    profile.name: profile
    for profile in (
        LinkProfile("loopback", math.inf, math.inf, 0.0),
        # Rates and round trips to a server within 50 km are from SIGCOMM'21 and mahimahi traces. Assumed, for want of a
        # measurement: all of private 5G, the low band's round trip, and every downlink (it carries small answers only).
        LinkProfile("private-5g", 100.0, 100.0, 10.0, 3.0),
        LinkProfile("public-5g-nsa", 70.0, 140.0, 21.0, 3.0, 33.0, 99.0),
        LinkProfile("public-5g-sa", 28.0, 56.0, 30.0, 3.0, 5.0, 49.0),
        LinkProfile("lte", 5.7, 11.4, 24.0, 1.0, 1.2, 11.0),
    )
}


def faded_mbps(profile: LinkProfile, level: float) -> float:
    """The uplink's rate at a level of a standard normal: the median at 0, p5 and p95 at -1.645 and 1.645.

    Linear on either side: on the low band's figures this puts 9.9 % of seconds below 10 Mbit/s and 2.7 % below 1, where
    8 % and 2.9 % were measured.
    """
    bound = profile.uplink_p5_mbps if level < 0 else profile.uplink_p95_mbps
    if bound is None:
        return profile.uplink_mbps
    return max(_FADE_FLOOR_MBPS, profile.uplink_mbps + abs(level) / _Z95 * (bound - profile.uplink_mbps))


def fading_levels(rng: random.Random) -> Iterator[float]:
    """Standard normal levels for :func:`faded_mbps`, one per ``FADE_S``, each close to the one before."""
    level = rng.gauss(0.0, 1.0)
    while True:
        yield level
        level = _FADE_CORRELATION * level + math.sqrt(1 - _FADE_CORRELATION**2) * rng.gauss(0.0, 1.0)
