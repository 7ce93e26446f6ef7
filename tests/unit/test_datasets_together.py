"""Near duplicates across splits are put together before a dataset is frozen again."""

from __future__ import annotations

import pytest

from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import items_of
from splitmesh.datasets.near import Pair
from splitmesh.datasets.together import together
from splitmesh.errors import MeshError
from tests.unit.dataset_items import digest_of, item

ITEMS = [item(n, group=f"g{n % 30:02}") for n in range(60)]


def pair(one: int, other: int) -> Pair:
    first, second = sorted((digest_of(one), digest_of(other)))
    return Pair(first, second, 0, 1.0, ("train", "test"))


def groups(*pairs: Pair) -> list[str]:
    return [one.group for one in together(ITEMS, pairs)]


def test_groups_that_pairs_link_are_one_and_others_stay() -> None:
    found = groups(pair(7, 3), pair(3, 21), pair(44, 29), pair(1000, 5))
    assert [found[n] for n in (3, 7, 21, 33, 37, 51)] == ["g03"] * 6
    assert [found[n] for n in (14, 44, 29, 59)] == ["g14"] * 4
    assert [found[n] for n in (5, 0, 35)] == ["g05", "g00", "g05"]


def test_the_order_of_pairs_changes_nothing() -> None:
    chain = [pair(n, n + 1) for n in range(20)]
    assert groups(*chain) == groups(*reversed(chain))
    assert set(groups(*chain)[:21]) == {"g00"}


def test_frozen_again_no_pair_is_in_two_splits() -> None:
    pairs = [pair(n, n + 7) for n in range(0, 20, 3)]
    first = freeze_items(ITEMS, seed=1)
    split = {entry.picture: entry.split for entry in first.entries}
    assert any(split[one.one] != split[one.other] for one in pairs)
    again = freeze_items(together(list(items_of(first, keep_splits=False)), pairs), seed=1)
    split = {entry.picture: entry.split for entry in again.entries}
    assert all(split[one.one] == split[one.other] for one in pairs)


def test_splits_that_were_given_are_not_changed_in_silence() -> None:
    first = freeze_items(ITEMS, seed=1)
    parted = [pair(n, m) for n in range(30) for m in range(30) if n < m]
    with pytest.raises(MeshError, match="of its group 'g00' in"):
        freeze_items(together(list(items_of(first)), parted), seed=1)
