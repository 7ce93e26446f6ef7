"""Which split a group of pictures goes to: once and for all, from the seed and the group's name alone.

A group keeps its split when the dataset grows, so that what was once tested on is never trained on later. Only where a split
would stay empty, with a handful of groups, one is moved. Knows names of groups; no pictures and no labels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal

from splitmesh.errors import MeshError, Reason, field_error

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SHARES: Mapping[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


def divide(
    groups: Collection[str],
    seed: int,
    shares: Mapping[Split, float] = SHARES,
    given: Mapping[str, Split] | None = None,
) -> dict[str, Split]:
    """The split of each group.

    Args:
        groups: by name.
        seed: of the division.
        shares: as :func:`checked_shares` takes them.
        given: groups whose split is known already; they keep it, whatever the shares are.

    Raises MeshError FIELD_INVALID for shares that are none, CALIBRATION_INSUFFICIENT when there are fewer groups than splits and
    not every group's split is given.
    """
    wanted_shares = checked_shares(shares)
    drawn = set(groups)
    known = {group: split for group, split in (given or {}).items() if group in drawn}
    drawn -= known.keys()
    if known and not drawn:
        return known
    wanted = [split for split in SPLITS if wanted_shares[split] > 0]
    if len(drawn) + len(known) < len(wanted):
        raise MeshError(
            Reason.CALIBRATION_INSUFFICIENT,
            f"{len(drawn) + len(known)} groups (a camera's hour each) cannot be divided into {', '.join(wanted)}",
        )
    order = sorted((_place(group, seed), group) for group in drawn)
    division = {group: _split_at(place, wanted, wanted_shares) for place, group in order}
    return known | _without_empty(division, [group for _, group in order], wanted, set(known.values()))


def checked_shares(shares: Mapping[Split, float]) -> dict[Split, float]:
    """All three shares, of the groups that go to each split: 0..1, together 1; FIELD_INVALID. A split of 0 gets none."""
    if unknown := sorted(set(shares) - set(SPLITS)):
        raise field_error("shares", f"{unknown[0]!r} is none of {', '.join(SPLITS)}")
    wanted = {split: float(shares.get(split, 0.0)) for split in SPLITS}
    if not all(0 <= share <= 1 for share in wanted.values()) or abs(sum(wanted.values()) - 1) > 1e-9:
        raise field_error("shares", f"are {list(wanted.values())}, expected three of 0 to 1 that sum to 1")
    return wanted


def _place(group: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\n{group}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _split_at(place: float, wanted: list[Split], shares: Mapping[Split, float]) -> Split:
    reached = 0.0
    for split in wanted:
        reached += shares[split]
        if place < reached:
            return split
    return wanted[-1]


def _without_empty(
    division: dict[str, Split], order: list[str], wanted: list[Split], filled: set[Split]
) -> dict[str, Split]:
    for empty in [split for split in wanted if split not in filled | set(division.values())]:
        sizes = Counter(division.values())
        giver = max(wanted, key=lambda split: sizes[split])
        # The last one stays where it is when its split would become the empty one.
        if sizes[giver] > 1 or giver in filled:
            division[next(group for group in order if division[group] == giver)] = empty
    return division
