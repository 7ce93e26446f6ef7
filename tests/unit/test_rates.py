"""At which rate a cut crosses."""

from __future__ import annotations

from itertools import pairwise

from splitmesh.model.alternatives import LinkState
from splitmesh.model.rates import HELD_S, RISE_S, RateChooser

SIZES = (1000.0, 400.0, 100.0)


def link(bytes_per_ms: float, wait_ms: float = 0.0) -> LinkState:
    return LinkState(bytes_per_ms, rtt_ms=20.0, wait_ms=wait_ms)


def test_a_wide_link_carries_the_best_rate() -> None:
    assert RateChooser(SIZES, 100.0).choose(link(1000.0), 0.0) == 0


def test_a_link_that_narrows_gets_the_best_rate_that_still_fits_at_once() -> None:
    assert RateChooser(SIZES, 100.0).choose(link(5.0), 0.0) == 1  # 1000 bytes take 200 ms, 400 take 80


def test_the_wait_for_the_frames_before_counts_as_well_as_the_link() -> None:
    assert RateChooser(SIZES, 100.0).choose(link(40.0, wait_ms=50.0), 0.0) == 0
    assert RateChooser(SIZES, 100.0).choose(link(40.0, wait_ms=150.0), 0.0) == 1


def test_a_link_that_carries_nothing_gets_the_smallest_rate() -> None:
    assert RateChooser(SIZES, 100.0).choose(link(0.0), 0.0) == 2
    assert RateChooser(SIZES, 100.0).choose(link(0.1), 0.0) == 2


def test_a_better_rate_has_to_fit_with_room_for_a_while() -> None:
    chooser = RateChooser(SIZES, 100.0)
    chooser.choose(link(5.0), 0.0)
    assert chooser.choose(link(1000.0), 1.0) == 1
    assert chooser.choose(link(1000.0), 1.0 + RISE_S / 2) == 1
    assert chooser.choose(link(1000.0), 1.0 + RISE_S) == 0


def test_a_rate_that_only_just_fits_is_not_gone_back_to() -> None:
    chooser = RateChooser(SIZES, 100.0)
    chooser.choose(link(5.0), 0.0)
    for second in range(1, 20):
        assert chooser.choose(link(11.0), float(second)) == 1  # 91 ms of 100


def test_a_link_that_swings_starts_the_wait_anew() -> None:
    chooser = RateChooser(SIZES, 100.0)
    chooser.choose(link(5.0), 0.0)
    chooser.choose(link(1000.0), 1.0)
    chooser.choose(link(11.0), 2.0)
    assert chooser.choose(link(1000.0), 1.0 + RISE_S) == 1


def test_a_version_with_one_rate_keeps_it() -> None:
    chooser = RateChooser(SIZES[:1], 100.0)
    for second in range(20):
        assert chooser.choose(link(0.001), float(second)) == 0


def test_a_better_rate_is_tried_where_small_frames_can_only_say_that_the_link_is_at_least_so_fast() -> None:
    """100 bytes in 10 ms; whether 400 would take the same nobody knows before they were sent."""
    chooser = RateChooser((100_000.0, 2000.0, 100.0), 100.0)
    chooser.choose(link(0.5), 0.0)
    assert chooser.choose(link(10.0), 1.0) == 2
    assert chooser.choose(link(10.0), 1.0 + RISE_S) == 1


def test_a_try_that_the_link_does_not_carry_is_taken_back_and_the_next_one_comes_later() -> None:
    chooser, tries, before = RateChooser((100_000.0, 2000.0, 100.0), 100.0), list[float](), 2
    chooser.choose(link(0.5), 0.0)
    for tick in range(10, 900):
        rate = chooser.choose(link(10.0), tick / 10)
        if rate < before:
            tries.append(tick / 10)
        before = rate
    pauses = [round(later - earlier, 3) for earlier, later in pairwise(tries)]
    assert len(tries) >= 3
    assert pauses == sorted(pauses)
    assert pauses[-1] >= 4 * RISE_S


def test_a_better_rate_that_was_kept_makes_the_next_rise_as_quick_as_the_first() -> None:
    chooser = RateChooser(SIZES, 100.0)
    for begin in (0.0, 100.0):
        chooser.choose(link(5.0), begin)
        chooser.choose(link(1000.0), begin + 1)
        assert chooser.choose(link(1000.0), begin + 1 + RISE_S) == 0
        assert chooser.choose(link(1000.0), begin + 1 + RISE_S + HELD_S) == 0


def test_a_link_that_is_really_narrow_is_not_tried() -> None:
    chooser = RateChooser(SIZES, 100.0)
    chooser.choose(link(1.5), 0.0)
    for tick in range(600):
        assert chooser.choose(link(1.5), tick / 10) == 2  # 67 ms of 100
