"""What an application's hard samples ask of link and cloud: how many a second, of which worth, how large.

A *worth* is what asking the tail about a sample is expected to gain, 0..1; how it is found is not known here, nor what is made of
it (``sharing.py``). Rates are estimated from what was seen, older samples counting for less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error
from splitmesh.routing.elapsed import Elapsed

Floats = NDArray[np.float64]

MAX_BINS = 256
MAX_RATE = 1e9
"""Samples a second in a bin."""
WEIGHTS = 1e-6, 1e6
"""Least and largest."""
MAX_BYTES = 1e12
MAX_CLOUD_MS = 1e9
"""Beyond these a number is a mistake."""
LEAST_WIDTH = 1e-9
"""Of a bin."""

WARM_UP_S = 1.0
"""A histogram that is younger counts as this old: the first sample alone is no rate."""


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Of one application. MeshError FIELD_INVALID for numbers out of range."""

    application: str
    """A model's name."""
    weight: float
    """Its priority: a worth counts so many times; within ``WEIGHTS``."""
    min_share: float
    """Of its hard samples, 0..1, the worthiest first: they cross if at all possible."""
    rates: Floats
    """Hard samples a second by worth, ``[bins]``."""
    edges: Floats
    """Of the bins, ``[bins + 1]``, each above the one before, in 0..1."""
    bytes: float
    """That a sample takes on the link."""
    cloud_ms: float
    """That a sample takes of the cloud's time."""
    deadline_ok: bool = True
    """Whether the tail's answers are expected in time; where not, nothing crosses, not even the minimum."""

    def __post_init__(self) -> None:
        for name in ("rates", "edges"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if not self.application:
            raise field_error("application", "is empty")
        if not WEIGHTS[0] <= self.weight <= WEIGHTS[1]:
            raise field_error("weight", f"is {self.weight}, expected {WEIGHTS[0]:g} to {WEIGHTS[1]:g}")
        for name, most in (("min_share", 1.0), ("bytes", MAX_BYTES), ("cloud_ms", MAX_CLOUD_MS)):
            _require(name, getattr(self, name), most)
        self._check_bins()

    def _check_bins(self) -> None:
        if self.rates.ndim != 1 or not 1 <= len(self.rates) <= MAX_BINS:
            raise field_error("rates", f"has shape {list(self.rates.shape)}, expected 1 to {MAX_BINS} bins")
        if not ((self.rates >= 0) & (self.rates <= MAX_RATE)).all():
            raise field_error("rates", f"has values that are no numbers from 0 to {MAX_RATE:g}")
        if self.edges.shape != (len(self.rates) + 1,):
            raise field_error("edges", f"has shape {list(self.edges.shape)}, expected [{len(self.rates) + 1}]")
        if not (self.edges[0] >= 0 and self.edges[-1] <= 1 and (np.diff(self.edges) >= LEAST_WIDTH).all()):
            raise field_error("edges", f"must ascend by {LEAST_WIDTH:g} or more from 0 or more to 1 or less")

    @property
    def worths(self) -> Floats:
        """What a sample of each bin is taken to be worth, ``[bins]``: the bin's middle."""
        return (self.edges[:-1] + self.edges[1:]) / 2


class Histogram:
    """Of an application's hard samples: counts by worth and mean sizes, both fading with age.

    A sample counts exp(-age / ``fading_s``); a steady stream of r samples a second then adds up to r x ``fading_s``, less what a
    histogram that is still young has not seen, which is made up for. For one thread at a time.

    Args:
        now_s: on the caller's clock, from when on samples are told.
        fading_s: after which a sample counts for 1/e.
        bins: of equal width over 0..1.
        bytes_guess: of a sample, until one was seen.
        cloud_ms_guess: the same.

    Raises MeshError FIELD_INVALID for numbers out of range, here and below.
    """

    def __init__(
        self,
        now_s: float,
        *,
        fading_s: float = 30.0,
        bins: int = 32,
        bytes_guess: float = 0.0,
        cloud_ms_guess: float = 0.0,
    ) -> None:
        if not 0 < fading_s < math.inf:
            raise field_error("fading_s", f"is {fading_s}, expected a finite number above 0")
        if not 1 <= bins <= MAX_BINS:
            raise field_error("bins", f"is {bins}, expected 1 to {MAX_BINS}")
        _require("bytes_guess", bytes_guess, MAX_BYTES)
        _require("cloud_ms_guess", cloud_ms_guess, MAX_CLOUD_MS)
        self._elapsed, self._age_s, self._fading_s = Elapsed(now_s), 0.0, fading_s
        self._counts = np.zeros(bins)
        self._sizes = np.array([bytes_guess, cloud_ms_guess])

    def saw(self, worth: float, size_bytes: float, cloud_ms: float, now_s: float) -> None:
        """A hard sample. A worth that is no finite number counts as 1: undefined is hard, and nobody knows how much is lost."""
        _require("size_bytes", size_bytes, MAX_BYTES)
        _require("cloud_ms", cloud_ms, MAX_CLOUD_MS)
        self._fade(now_s)
        known = min(1.0, max(0.0, worth)) if math.isfinite(worth) else 1.0
        bins = len(self._counts)
        self._counts[min(bins - 1, int(known * bins))] += 1.0
        self._sizes += (np.array([size_bytes, cloud_ms]) - self._sizes) / self._counts.sum()

    def demand(
        self, application: str, now_s: float, *, weight: float = 1.0, min_share: float = 0.0, deadline_ok: bool = True
    ) -> Demand:
        """What is asked for now; arguments as in :class:`Demand`."""
        self._fade(now_s)
        seen_s = -self._fading_s * math.expm1(-max(self._age_s, WARM_UP_S) / self._fading_s)
        return Demand(
            application=application,
            weight=weight,
            min_share=min_share,
            rates=np.minimum(self._counts / seen_s, MAX_RATE),
            edges=np.linspace(0.0, 1.0, len(self._counts) + 1),
            bytes=float(self._sizes[0]),
            cloud_ms=float(self._sizes[1]),
            deadline_ok=deadline_ok,
        )

    def _fade(self, now_s: float) -> None:
        passed_s = self._elapsed.since_last(now_s)
        if passed_s > 0:
            self._age_s += passed_s
            self._counts *= math.exp(-passed_s / self._fading_s)


def _require(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:  # also refuses NaN
        raise field_error(name, f"is {value}, expected 0 to {most:g}")
