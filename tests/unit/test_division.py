"""Dividing samples by chance with groups whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.division import divided


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 100))
def test_every_sample_has_one_part_and_every_group_too(groups: list[int], seed: int) -> None:
    found = divided(len(groups), [0.2, 0.5, 0.3], seed=seed, groups=groups)
    assert found.shape == (len(groups),)
    assert set(found.tolist()) <= {0, 1, 2}
    assert len(set(zip(groups, found.tolist(), strict=True))) == len(set(groups))


@given(st.integers(1, 300), st.integers(0, 100))
def test_parts_have_their_shares_of_single_samples(n: int, seed: int) -> None:
    sizes = np.bincount(divided(n, [0.2, 0.5, 0.3], seed=seed), minlength=3)
    assert (np.abs(sizes - n * np.array([0.2, 0.5, 0.3])) <= 1).all()


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=50), st.integers(0, 100))
def test_two_groups_are_never_all_in_one_of_five_parts(groups: list[str], seed: int) -> None:
    found = divided(len(groups), [0.2] * 5, seed=seed, groups=groups)
    assert (len(set(found.tolist())) > 1) == (len(set(groups)) > 1)


def test_the_same_seed_divides_the_same_way_and_another_otherwise() -> None:
    first, again, other = (divided(100, [0.5, 0.5], seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("groups", [np.zeros(9), np.zeros((10, 1))])
def test_groups_of_another_shape_are_refused(groups: np.ndarray) -> None:
    with pytest.raises(MeshError) as error:
        divided(10, [0.5, 0.5], seed=0, groups=groups)
    assert error.value.reason is Reason.FIELD_INVALID
