"""The largest value within two limits: against a solver of linear programs, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog

from splitmesh.routing.sharing_prices import Items, Optimum, best


def items(rates: list[float], values: list[float], sizes: list[float], ms: list[float]) -> Items:
    return Items(*(np.array(one, dtype=np.float64) for one in (rates, values, sizes, ms)))


def random_items(rng: np.random.Generator) -> Items:
    """Of 1 to 60 items; some have no samples, some use one limit only, many are alike."""
    n = int(rng.integers(1, 61))
    coarse = rng.random() < 0.3
    draw = [rng.uniform(0.1, 10, n), rng.uniform(0.01, 1, n), rng.uniform(1, 1e5, n), rng.uniform(0.01, 90, n)]
    if coarse:
        draw = [np.ceil(one / one.max() * 3) for one in draw]
    rates, values, sizes, ms = draw
    rates[rng.random(n) < 0.1] = 0.0
    sizes[rng.random(n) < 0.1] = 0.0
    ms[rng.random(n) < 0.1] = 0.0
    return Items(rates, values, sizes, ms)


def value(given: Items, found: Optimum) -> float:
    return float((found.shares * given.rates * given.values).sum())


def used(given: Items, found: Optimum) -> tuple[float, float]:
    crossing = found.shares * given.rates
    return float(crossing @ given.bytes), float(crossing @ given.ms)


def reference(given: Items, byte_limit: float, ms_limit: float) -> float:
    solved = linprog(
        -given.values * given.rates,
        A_ub=np.stack([given.rates * given.bytes, given.rates * given.ms]),
        b_ub=[byte_limit, ms_limit],
        bounds=(0, 1),
    )
    assert solved.success
    return -float(solved.fun)


def test_the_value_is_that_of_a_linear_program_on_two_hundred_random_problems() -> None:
    rng = np.random.default_rng(5)
    both = 0
    for _ in range(200):
        given = random_items(rng)
        everything = used(given, Optimum(np.ones_like(given.rates), 0, 0))
        byte_limit, ms_limit = (one * rng.choice([0.0, 0.02, 0.3, 0.5, 0.7, 1.5]) for one in everything)
        found = best(given, byte_limit, ms_limit)
        bytes_used, ms_used = used(given, found)
        assert bytes_used <= byte_limit * (1 + 1e-12)
        assert ms_used <= ms_limit * (1 + 1e-12)
        assert ((found.shares >= 0) & (found.shares <= 1)).all()
        expected = reference(given, byte_limit, ms_limit)
        assert value(given, found) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        both += found.price_per_byte > 0 and found.price_per_ms > 0
    assert both >= 40  # the hard case was there


def test_the_prices_prove_that_nothing_is_worth_more() -> None:
    """Weak duality: what the limits cost at the prices, and what items gain beyond them, bounds every value."""
    rng = np.random.default_rng(6)
    for _ in range(100):
        given = random_items(rng)
        everything = used(given, Optimum(np.ones_like(given.rates), 0, 0))
        byte_limit, ms_limit = (one * rng.uniform(0.05, 0.9) for one in everything)
        found = best(given, byte_limit, ms_limit)
        gains = given.values - found.price_per_byte * given.bytes - found.price_per_ms * given.ms
        bound = found.price_per_byte * byte_limit + found.price_per_ms * ms_limit
        bound += float((np.maximum(gains, 0) * given.rates).sum())
        assert value(given, found) == pytest.approx(bound, rel=1e-9, abs=1e-12)


def test_what_is_worth_more_than_it_takes_crosses_and_what_is_worth_less_stays() -> None:
    rng = np.random.default_rng(7)
    for _ in range(100):
        given = random_items(rng)
        everything = used(given, Optimum(np.ones_like(given.rates), 0, 0))
        found = best(given, *(one * rng.uniform(0.05, 0.9) for one in everything))
        takes = found.price_per_byte * given.bytes + found.price_per_ms * given.ms
        seen = given.rates > 0
        assert (found.shares[seen & (given.values > takes * (1 + 1e-6))] == 1).all()
        assert (found.shares[seen & (given.values < takes * (1 - 1e-6))] == 0).all()


def test_without_a_limit_that_binds_everything_crosses_and_nothing_has_a_price() -> None:
    given = items([1, 2], [0.5, 0.1], [100, 10], [1, 5])
    for limits in ((math.inf, math.inf), (120.0, 11.0), (120.0, math.inf), (math.inf, 11.0)):
        found = best(given, *limits)
        assert found.shares.tolist() == [1, 1]
        assert (found.price_per_byte, found.price_per_ms) == (0, 0)


def test_one_limit_takes_the_largest_value_per_unit_first_and_a_part_of_the_marginal_item() -> None:
    given = items([1, 1, 1], [0.9, 0.5, 0.2], [90, 25, 40], [1, 1, 1])
    found = best(given, 70.0, math.inf)
    assert found.shares.tolist() == [0.5, 1, 0]
    assert found.price_per_byte == pytest.approx(0.01)
    found = best(given, math.inf, 1.5)
    assert found.shares.tolist() == [1, 0.5, 0]
    assert (found.price_per_byte, found.price_per_ms) == (0, 0.5)


def test_where_what_crosses_just_fits_the_price_is_what_the_next_item_would_pay() -> None:
    found = best(items([1, 1, 1], [0.9, 0.5, 0.2], [90, 25, 40], [1, 1, 1]), 115.0, math.inf)
    assert found.shares.tolist() == [1, 1, 0]
    assert found.price_per_byte == pytest.approx(0.005)


def test_items_that_are_alike_get_the_same_share() -> None:
    found = best(items([1, 3, 1], [0.5, 0.5, 0.9], [100, 100, 100], [0, 0, 0]), 300.0, math.inf)
    assert found.shares == pytest.approx([0.5, 0.5, 1])
    found = best(items([1, 3, 2, 2], [0.5, 0.5, 0.5, 0.5], [100, 100, 50, 50], [1, 1, 2, 2]), 260.0, 5.2)
    assert found.shares[0] == pytest.approx(found.shares[1])
    assert found.shares[2] == pytest.approx(found.shares[3])


def test_what_takes_nothing_of_a_limit_crosses_although_there_is_nothing_left_of_it() -> None:
    given = items([1, 1, 1], [0.1, 0.9, 0.9], [0, 10, 0], [0, 0, 10])
    assert best(given, 0.0, math.inf).shares.tolist() == [1, 0, 1]
    assert best(given, math.inf, 0.0).shares.tolist() == [1, 1, 0]
    assert best(given, 0.0, 0.0).shares.tolist() == [1, 0, 0]


def test_values_and_sizes_of_very_different_magnitude_are_still_exact() -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        n = 40
        given = Items(*(10.0 ** rng.uniform(-3, 4, n) for _ in range(4)))
        everything = used(given, Optimum(np.ones(n), 0, 0))
        found = best(given, *(one * 10.0 ** rng.uniform(-3, 0) for one in everything))
        gains = given.values - found.price_per_byte * given.bytes - found.price_per_ms * given.ms
        assert np.isfinite(gains).all()
        limits = used(given, found)
        bound = found.price_per_byte * limits[0] + found.price_per_ms * limits[1]
        assert value(given, found) == pytest.approx(bound + float((np.maximum(gains, 0) * given.rates).sum()), rel=1e-9)
