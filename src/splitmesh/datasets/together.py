"""Pictures that look the same into one group, so that they are in one split when the dataset is frozen. Knows items and pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from splitmesh.datasets.item import Item
from splitmesh.datasets.near import Pair


def together(items: Sequence[Item], pairs: Iterable[Pair]) -> list[Item]:
    """The items, those whose groups a pair links in one group: the first by name of all that hang together.

    Args:
        items: of pictures in groups.
        pairs: of :func:`near_duplicates`; those of pictures that are not here link nothing.

    An item whose split is known keeps it: freezing then refuses groups that were given to two splits, by name.
    """
    groups = {item.picture: item.split_group for item in items}
    links = _Links()
    for pair in pairs:
        if pair.one in groups and pair.other in groups:
            links.join(groups[pair.one], groups[pair.other])
    return [replace(item, group=links.first(item.split_group)) for item in items]


class _Links:
    """Which names hang together (disjoint sets)."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def first(self, name: str) -> str:
        """The first by name of all that hang together with it."""
        path = []
        while (above := self._above.get(name, name)) != name:
            path.append(name)
            name = above
        self._above.update(dict.fromkeys(path, name))
        return name

    def join(self, one: str, other: str) -> None:
        """From now on they do."""
        least, most = sorted((self.first(one), self.first(other)))
        self._above[most] = least
