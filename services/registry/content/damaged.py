"""How much of what was set aside as damaged is kept for people to look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MOST = 100
MOST_BYTES = 1024 * 1024 * 1024


class SetAside(NamedTuple):
    """One damaged content."""

    at: float
    """When it was set aside, seconds since 1970."""
    name: str
    size_bytes: int


def too_many(kept: Iterable[SetAside]) -> list[str]:
    """Names of those that go, so that at most ``MOST`` of ``MOST_BYTES`` together stay; the newest one stays in any case."""
    newest_first = sorted(kept, reverse=True)
    size_bytes, going = 0, []
    for place, one in enumerate(newest_first):
        size_bytes += one.size_bytes
        if place and (place >= MOST or size_bytes > MOST_BYTES):
            going.append(one.name)
    return going
