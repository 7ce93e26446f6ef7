"""What an application asks for: demands that are refused, and rates from samples that were seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.demand import MAX_BINS, Demand, Histogram

FIELDS: dict[str, Any] = {
    "application": "solder",
    "weight": 1.0,
    "min_share": 0.0,
    "rates": np.ones(2),
    "edges": np.array([0.0, 0.5, 1.0]),
    "bytes": 100.0,
    "cloud_ms": 1.0,
}


def fed(histogram: Histogram, per_s: int, seconds: float, *, worth: float = 0.5, since_s: float = 0.0) -> None:
    for index in range(int(per_s * seconds)):
        histogram.saw(worth, 100.0, 2.0, since_s + index / per_s)


@pytest.mark.parametrize("seconds", [2, 10, 60, 300])
def test_a_steady_stream_is_seen_at_its_rate_whether_the_histogram_is_young_or_old(seconds: int) -> None:
    histogram = Histogram(0.0)
    fed(histogram, 20, seconds)
    found = histogram.demand("solder", float(seconds))
    assert found.rates.sum() == pytest.approx(20, rel=0.05)
    assert found.rates[16] == found.rates.sum()


def test_a_single_sample_in_the_first_instant_is_one_a_second() -> None:
    histogram = Histogram(0.0)
    histogram.saw(0.5, 100.0, 2.0, 0.0)
    assert histogram.demand("solder", 0.0).rates.sum() == pytest.approx(1.0, rel=0.05)


def test_what_is_past_fades_and_what_is_new_takes_its_place() -> None:
    histogram = Histogram(0.0, fading_s=10.0, bins=2)
    fed(histogram, 20, 60, worth=0.9)
    assert histogram.demand("a", 60.0).rates == pytest.approx([0, 20], rel=0.05)
    assert histogram.demand("a", 70.0).rates == pytest.approx([0, 20 / math.e], rel=0.05)
    fed(histogram, 20, 60, worth=0.1, since_s=70.0)
    assert histogram.demand("a", 130.0).rates == pytest.approx([20, 0], rel=0.05, abs=0.05)
    assert histogram.demand("a", 1e9).rates.sum() == 0


@pytest.mark.parametrize(
    ("worth", "place"),
    [
        (0.0, 0),
        (0.2499, 0),
        (0.25, 1),
        (0.999, 3),
        (1.0, 3),
        (1.0000001, 3),
        (-0.1, 0),
        (math.nan, 3),
        (math.inf, 3),
        (-math.inf, 3),
    ],
)
def test_a_worth_counts_in_its_bin_and_an_undefined_one_as_the_worthiest(worth: float, place: int) -> None:
    histogram = Histogram(0.0, bins=4)
    histogram.saw(worth, 100.0, 2.0, 0.0)
    assert np.flatnonzero(histogram.demand("a", 1.0).rates).tolist() == [place]


def test_sizes_are_means_of_what_was_seen_lately_and_a_guess_before() -> None:
    histogram = Histogram(0.0, fading_s=10.0, bytes_guess=500.0, cloud_ms_guess=7.0)
    assert (histogram.demand("a", 0.0).bytes, histogram.demand("a", 0.0).cloud_ms) == (500, 7)
    histogram.saw(0.5, 100.0, 2.0, 1.0)
    histogram.saw(0.5, 300.0, 4.0, 1.0)
    assert histogram.demand("a", 1.0).bytes == pytest.approx(200)
    assert histogram.demand("a", 1.0).cloud_ms == pytest.approx(3)
    histogram.saw(0.5, 1000.0, 2.0, 101.0)
    assert histogram.demand("a", 101.0).bytes == pytest.approx(1000, rel=1e-3)
    assert histogram.demand("a", 1e9).bytes == pytest.approx(1000, rel=1e-3)  # kept when all has faded
    histogram.saw(0.5, 10.0, 2.0, 1e9)
    assert histogram.demand("a", 1e9).bytes == pytest.approx(10)


def test_a_demand_carries_what_its_application_was_given() -> None:
    found = Histogram(0.0, bins=4).demand("face", 0.0, weight=3.0, min_share=0.2, deadline_ok=False)
    assert (found.application, found.weight, found.min_share, found.deadline_ok) == ("face", 3.0, 0.2, False)
    assert found.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert found.worths.tolist() == [0.125, 0.375, 0.625, 0.875]


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 1), st.floats(0, 1e6)), max_size=40))
def test_no_clock_makes_a_rate_or_a_size_that_was_not_there(seen: list[tuple[float, float, float]]) -> None:
    histogram, now_s = Histogram(0.0, fading_s=5.0), 0.0
    for step_s, worth, size in seen:
        now_s += step_s
        histogram.saw(worth, size, size, now_s)
    found = histogram.demand("a", now_s)
    assert 0 <= found.rates.sum() <= 2 * len(seen)
    assert -1e-6 <= found.bytes <= max((size for *_, size in seen), default=0) + 1e-6


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"application": ""}, "application"),
        ({"weight": 0.0}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"weight": math.inf}, "weight"),
        ({"min_share": 1.1}, "min_share"),
        ({"min_share": math.nan}, "min_share"),
        ({"bytes": -1.0}, "bytes"),
        ({"cloud_ms": math.inf}, "cloud_ms"),
        ({"rates": np.array([1.0, -1.0])}, "rates"),
        ({"rates": np.array([1.0, math.nan])}, "rates"),
        ({"rates": np.zeros(0)}, "rates"),
        ({"rates": np.ones((2, 1))}, "rates"),
        ({"rates": np.ones(MAX_BINS + 1)}, "rates"),
        ({"rates": np.ones(3)}, "edges"),
        ({"edges": np.array([0.0, 0.5, 1.5])}, "edges"),
        ({"edges": np.array([0.0, 0.5, 0.5])}, "edges"),
        ({"edges": np.array([0.0, math.nan, 1.0])}, "edges"),
        ({"edges": np.array([-0.1, 0.5, 1.0])}, "edges"),
    ],
)
def test_a_demand_out_of_range_is_refused_by_name(changed: dict[str, Any], field: str) -> None:
    refused(lambda: Demand(**(FIELDS | changed)), field)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: Histogram(math.nan), "now_s"),
        (lambda: Histogram(0.0, fading_s=0.0), "fading_s"),
        (lambda: Histogram(0.0, fading_s=math.inf), "fading_s"),
        (lambda: Histogram(0.0, bins=0), "bins"),
        (lambda: Histogram(0.0, bins=MAX_BINS + 1), "bins"),
        (lambda: Histogram(0.0, bytes_guess=-1.0), "bytes_guess"),
        (lambda: Histogram(0.0, cloud_ms_guess=math.nan), "cloud_ms_guess"),
        (lambda: Histogram(0.0).saw(0.5, math.nan, 1.0, 0.0), "size_bytes"),
        (lambda: Histogram(0.0).saw(0.5, 1.0, -1.0, 0.0), "cloud_ms"),
        (lambda: Histogram(0.0).saw(0.5, 1.0, 1.0, math.inf), "now_s"),
        (lambda: Histogram(0.0).demand("a", 0.0, weight=-1.0), "weight"),
    ],
)
def test_a_histogram_refuses_numbers_out_of_range(call: Callable[[], object], field: str) -> None:
    refused(call, field)


def test_a_demand_does_not_change_with_the_arrays_it_was_made_of() -> None:
    rates = np.ones(2)
    one = Demand(**(FIELDS | {"rates": rates}))
    rates[0] = 9.0
    assert one.rates.tolist() == [1, 1]
    with pytest.raises(ValueError, match="read-only"):
        one.rates[0] = 9.0


def refused(call: Callable[[], object], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        call()
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field
