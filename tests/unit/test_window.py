"""Nothing passes beside the rate in any second."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.routing.window import LENGTH_S, Window


def test_what_fits_passes_and_what_does_not_waits_until_enough_is_a_second_ago() -> None:
    window = Window(0.0)
    for at_s, size in ((0.0, 40.0), (0.5, 50.0)):
        assert window.wait_s(size, 100.0, at_s) == 0.0
        window.add(size, at_s)
    assert window.passed(0.6) == 90.0
    assert window.wait_s(10.0, 100.0, 0.6) == 0.0
    assert window.wait_s(20.0, 100.0, 0.6) == pytest.approx(0.4)
    assert window.wait_s(60.0, 100.0, 0.6) == pytest.approx(0.9)
    assert window.wait_s(20.0, 100.0, 1.0) == 0.0


def test_what_is_more_than_a_second_holds_waits_until_nothing_else_is_in_it() -> None:
    window = Window(0.0)
    window.add(1.0, 0.0)
    assert window.wait_s(500.0, 100.0, 0.25) == pytest.approx(0.75)
    assert window.wait_s(500.0, 100.0, 1.0) == 0.0


def test_without_a_limit_nothing_waits() -> None:
    window = Window(0.0)
    window.add(1e12, 0.0)
    assert window.wait_s(1e12, math.inf, 0.0) == 0.0


def test_a_clock_that_is_set_back_lets_nothing_more_pass() -> None:
    window = Window(10.0)
    window.add(100.0, 10.0)
    assert window.wait_s(1.0, 100.0, 9.5) > 0.0
    assert window.passed(-1000.0) == 100.0


@given(st.lists(st.tuples(st.floats(0.0, 0.7), st.integers(1, 60)), max_size=60))
def test_no_second_ever_holds_more_than_allowed(asked: list[tuple[float, int]]) -> None:
    window, now_s, passed = Window(0.0), 0.0, list[tuple[float, int]]()
    for pause_s, size in asked:
        now_s += pause_s
        if window.wait_s(size, 100.0, now_s) <= 0:
            window.add(size, now_s)
            passed.append((now_s, size))
    for end_s, _ in passed:
        assert sum(size for at_s, size in passed if end_s - LENGTH_S < at_s <= end_s) <= 100 + 1e-6
