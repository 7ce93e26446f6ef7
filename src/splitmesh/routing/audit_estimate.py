"""How often accepted samples disagree with the tail, estimated from audited ones, with an interval that few audits only widen.

The rate is the stratified one: every stratum's share of audits that disagreed, weighted by how many samples it accepted. Its
limits hold at every number of audits, for any rates in the strata: they come from Chernoff's inequality (1952; Hoeffding 1963
for unequal summands) applied to the weighted sum. A rate is excluded when, however it is spread over the strata, a sum as far
off as the one that was seen has less than the allowed probability. For one stratum without a disagreement that is the exact
limit of Clopper and Pearson (1934); with disagreements it is up to two fifths wider. The normal approximation of stratified
Wilson intervals (Yan and Su 2010) is no use here: most strata have few audits and no disagreement.

A stratum that nobody audited may disagree always or never, and widens the interval by its weight. Assumed: within a stratum the
audited are like the accepted (``audit.py``), and samples do not depend on each other; near copies of one unit count for less than
they seem to. In ``REST`` strata of different shares are mixed, so there the first of these holds only about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error
from splitmesh.routing.audit import Counts, Stratum

Floats = NDArray[np.float64]
SLOPES = 128
"""Exponents of Chernoff's inequality that are tried; each gives a limit that holds, the best is taken."""
HALVINGS = 60


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of the disagreement among accepted samples, as shares in 0..1."""

    rate: float
    """NaN when nothing was audited. Strata without an audit are taken to be like the others."""
    low: float
    high: float
    """The rate is between them with at least the stated confidence; 0 and 1 when nothing was audited."""
    n_accepted: int
    n_audited: int
    """In strata that accepted any."""


def estimate(counts: Mapping[Stratum, Counts], *, confidence: float = 0.95) -> Estimate:
    """From counts as ``audit.merge`` gives them; strata that accepted no sample have no weight.

    Takes some 40 ms with 256 strata. MeshError FIELD_INVALID unless ``confidence`` is between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise field_error("confidence", f"is {confidence}, expected a number between 0 and 1, both excluded")
    used = [one for one in counts.values() if one.accepted]
    n_accepted, n_audited = sum(one.accepted for one in used), sum(one.audited for one in used)
    if n_audited == 0:
        return Estimate(math.nan, 0.0, 1.0, n_accepted, 0)
    known = [one for one in used if one.audited]
    weights = np.array([one.accepted for one in known]) / n_accepted
    audited = np.array([one.audited for one in known], dtype=np.float64)
    disagreed = np.array([one.disagreed for one in known], dtype=np.float64)
    alpha = (1 - confidence) / 2
    rate = float(weights @ (disagreed / audited) / weights.sum())
    high = _upper_limit(weights, audited, disagreed, alpha)
    low = 1.0 - _upper_limit(weights, audited, audited - disagreed, alpha)
    return Estimate(rate, min(max(low, 0.0), rate), max(high, rate), n_accepted, n_audited)


def _upper_limit(weights: Floats, audited: Floats, events: Floats, alpha: float) -> float:
    """The largest ``sum(weights * p)`` that the events do not exclude, plus what the weights lack to 1.

    With ``a = 1 - exp(-slope * weights / audited)`` the probability of a weighted sum of at most the one seen is below
    ``exp(slope * seen) * prod((1 - p * a) ** audited)``. The logarithm of the product is concave in p, so among all p with the
    same weighted sum it is largest where ``p = 1 / a - v / each`` for one v, cut to 0..1: v is halved upon.
    """
    each = weights / audited
    seen = float(each @ events)
    slopes = np.geomspace(1e-3 / each.max(), 50.0 / each.min(), SLOPES)[:, None]
    a = -np.expm1(-slopes * each)
    allowed = slopes[:, 0] * seen - math.log(alpha)
    least, most = np.zeros(SLOPES), (each / a).max(axis=1)  # v where every p is 1, and where it is 0
    with np.errstate(divide="ignore"):  # of p = a = 1: excluded for sure
        for _ in range(HALVINGS):
            v = (least + most) / 2
            spent = -(np.log1p(-_spread(v, a, each) * a) @ audited)
            excluded = spent > allowed
            least, most = np.where(excluded, v, least), np.where(excluded, most, v)
    reached = _spread(least, a, each) @ weights
    return float(min(1.0, 1.0 - weights.sum() + reached.min()))


def _spread(v: Floats, a: Floats, each: Floats) -> Floats:
    return np.clip(1.0 / a - v[:, None] / each, 0.0, 1.0)
