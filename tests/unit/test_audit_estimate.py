"""The disagreement among accepted samples: the interval holds, exactly where it can be worked out, by simulation elsewhere."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from splitmesh.errors import MeshError
from splitmesh.routing.audit import Auditor, Counts, Stratum
from splitmesh.routing.audit_estimate import Estimate, estimate


def strata(*counts: tuple[int, int, int]) -> dict[Stratum, Counts]:
    return {Stratum("line", str(i), 7): Counts(*one) for i, one in enumerate(counts)}


def test_one_stratum_without_a_disagreement_has_the_exact_limit() -> None:
    found = estimate(strata((10_000, 100, 0)))
    assert (found.rate, found.low) == (0, 0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 100), rel=1e-6)
    assert (found.n_accepted, found.n_audited) == (10_000, 100)


@pytest.mark.parametrize(("n", "events"), [(20, 1), (100, 1), (100, 7), (400, 40), (50, 25), (50, 50)])
def test_one_stratum_is_little_wider_than_clopper_and_pearson_and_never_narrower(n: int, events: int) -> None:
    found = estimate(strata((5000, n, events)))
    high = beta.ppf(0.975, events + 1, n - events) if events < n else 1.0
    low = beta.ppf(0.025, events, n - events + 1)
    assert found.high >= high - 1e-9
    assert found.low <= low + 1e-9
    assert found.high - found.low <= 1.4 * (high - low)


@pytest.mark.parametrize(
    ("weights", "audited"), [((9000, 1000), (12, 3)), ((5000, 5000), (2, 14)), ((1000, 9000), (10, 5))]
)
def test_two_strata_are_covered_for_any_rates_in_them(weights: tuple[int, int], audited: tuple[int, int]) -> None:
    shares = np.array(weights) / sum(weights)
    rates = np.concatenate([[0.0], np.geomspace(0.002, 1.0, 30)])
    one, other = np.meshgrid(rates, rates)
    true = shares[0] * one + shares[1] * other
    outside = {"low": np.zeros_like(true), "high": np.zeros_like(true)}
    for events in product(*(range(n + 1) for n in audited)):
        found = estimate(strata(*zip(weights, audited, events, strict=True)))
        chance = binom.pmf(events[0], audited[0], one) * binom.pmf(events[1], audited[1], other)
        outside["low"] += chance * (true < found.low - 1e-9)
        outside["high"] += chance * (true > found.high + 1e-9)
    assert max(missed.max() for missed in outside.values()) <= 0.025


def test_many_strata_with_few_audits_each_are_covered() -> None:
    rng, draws, missed = np.random.default_rng(11), 150, 0
    for _ in range(draws):
        accepted = (10 ** rng.uniform(1, 4, 16)).astype(int)
        audited = np.maximum(1, accepted // 100)
        rates = rng.beta(0.3, 6, 16)
        true = float(accepted @ rates / accepted.sum())
        found = estimate(
            strata(*zip(accepted.tolist(), audited.tolist(), rng.binomial(audited, rates).tolist(), strict=True))
        )
        missed += not found.low <= true <= found.high
    assert missed <= 0.05 * draws


def test_what_the_auditor_takes_estimates_the_rate_of_all_although_rare_strata_are_over_sampled() -> None:
    """The rare class disagrees forty times as often, and the plain share of audits that disagree is far too high."""
    rng, found, plain, true = np.random.default_rng(5), [], [], []
    for seed in range(4):
        auditor, wrong = Auditor(0.05, seed), 0
        for i in range(6000):
            rare = rng.random() < 0.04
            ease, bad = (0.97 if rng.random() < 0.5 else 0.999), rng.random() < (0.4 if rare else 0.01)
            wrong += bad
            if auditor.take("line", "rare" if rare else "common", ease, f"{i}"):
                auditor.answered("line", "rare" if rare else "common", ease, disagreed=bool(bad))
        counts = auditor.counts()
        found.append(estimate(counts))
        plain.append(sum(one.disagreed for one in counts.values()) / sum(one.audited for one in counts.values()))
        true.append(wrong / 6000)
    assert all(one.low <= rate <= one.high for one, rate in zip(found, true, strict=True))
    assert np.mean([one.rate for one in found]) == pytest.approx(np.mean(true), rel=0.35)
    assert np.mean(plain) > 1.6 * np.mean(true)


def test_a_stratum_that_nobody_audited_widens_the_interval_by_its_weight() -> None:
    seen = estimate(strata((9000, 100, 2)))
    half_blind = estimate(strata((9000, 100, 2), (1000, 0, 0)))
    assert half_blind.low == pytest.approx(0.9 * seen.low, abs=1e-9)
    assert half_blind.high == pytest.approx(0.9 * seen.high + 0.1, abs=1e-9)
    assert half_blind.rate == pytest.approx(seen.rate)


def test_audits_of_a_stratum_that_accepted_nothing_have_no_weight() -> None:
    assert estimate(strata((900, 50, 1), (0, 30, 30))) == estimate(strata((900, 50, 1)))


@pytest.mark.parametrize("counts", [{}, strata((100, 0, 0)), strata((0, 5, 1))])
def test_without_an_audit_nothing_is_known(counts: dict[Stratum, Counts]) -> None:
    found = estimate(counts)
    assert math.isnan(found.rate)
    assert (found.low, found.high, found.n_audited) == (0.0, 1.0, 0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(1, 200), st.floats(0, 1)).map(
            lambda one: (one[0], one[1], round(one[1] * one[2]))
        ),
        min_size=1,
        max_size=6,
    )
)
def test_limits_enclose_the_rate_and_more_confidence_is_wider(counts: list[tuple[int, int, int]]) -> None:
    usual, surer = estimate(strata(*counts)), estimate(strata(*counts), confidence=0.99)
    assert 0 <= surer.low <= usual.low <= usual.rate <= usual.high <= surer.high <= 1
    mirrored = estimate(strata(*((accepted, n, n - events) for accepted, n, events in counts)))
    assert mirrored.low == pytest.approx(1 - usual.high, abs=1e-6)


def test_more_audits_are_narrower_and_256_strata_are_no_burden() -> None:
    few, many = (estimate(strata(*[(4000, n, n // 10) for _ in range(256)])) for n in (10, 100))
    assert isinstance(many, Estimate)
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("confidence", [0, 1, -1, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(MeshError, match="confidence"):
        estimate(strata((10, 1, 0)), confidence=confidence)
