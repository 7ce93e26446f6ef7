"""Measured times shared out among operators: sums are kept, noise is smoothed and nothing is negative."""

import itertools

import numpy as np
import pytest

from splitmesh.model.shares import non_decreasing, share_out, time_of


def test_the_difference_of_two_heads_belongs_to_the_operators_between_them() -> None:
    shares = share_out([1, 3, 2, 2], [(0b0011, 8.0), (0b0111, 9.0)], 10.0)
    assert shares == pytest.approx([2.0, 6.0, 1.0, 1.0])


def test_pieces_may_come_in_any_order_and_leave_branches_out() -> None:
    # operator 1 and 2 are branches: a head may hold 0 and 2 without 1
    shares = share_out([1, 1, 1, 1], [(0b1111, 7.0), (0b0101, 4.0), (0b0001, 1.0)], 7.0)
    assert shares == pytest.approx([1.0, 1.5, 3.0, 1.5])


def test_without_work_operators_share_alike() -> None:
    assert share_out([0, 0], [], 3.0) == pytest.approx([1.5, 1.5])


def test_a_piece_that_does_not_hold_the_smaller_ones_is_left_out() -> None:
    assert share_out([1, 1, 1], [(0b001, 1.0), (0b110, 50.0)], 3.0) == pytest.approx([1.0, 1.0, 1.0])


def test_a_head_slower_than_the_whole_model_keeps_its_time() -> None:
    shares = share_out([1, 1], [(0b01, 5.0)], 4.0)
    assert shares == pytest.approx([5.0, 0.0])


@pytest.mark.parametrize("seed", range(20))
def test_any_nested_pieces_keep_their_smoothed_times(seed: int) -> None:
    rng = np.random.default_rng(seed)
    work = list(rng.exponential(1, 30))
    ends = sorted(rng.choice(np.arange(1, 30), 6, replace=False))
    pieces = [((1 << int(end)) - 1, float(rng.uniform(0, 10))) for end in ends]
    shares = share_out(work, pieces, 5.0)
    assert min(shares) >= -1e-12
    smoothed = non_decreasing([ms for _, ms in pieces])
    for (bits, _), ms in zip(pieces, smoothed, strict=True):
        assert time_of(bits, shares) == pytest.approx(ms)
    assert sum(shares) == pytest.approx(max(5.0, *smoothed))


def test_smoothing_is_the_nearest_sequence_that_never_falls() -> None:
    assert non_decreasing([1, 2, 2, 5]) == [1, 2, 2, 5]
    assert non_decreasing([1, 3, 2, 4]) == [1, 2.5, 2.5, 4]
    assert non_decreasing([3, 2, 1]) == [2, 2, 2]
    assert non_decreasing([]) == []
    # against every sequence of a grid
    values = [2, 0, 3, 1]
    grid = [step / 2 for step in range(7)]
    best = min(
        (candidate for candidate in itertools.product(grid, repeat=4) if list(candidate) == sorted(candidate)),
        key=lambda candidate: sum((a - b) ** 2 for a, b in zip(candidate, values, strict=True)),
    )
    assert non_decreasing(values) == pytest.approx(best)
