"""Pages of versions: cut by count and by size, joined without gap or repeat."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from services.registry.garbage import Pins
from services.registry.limits import Slots
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Actor, Draft
from services.registry.signatures import Signatures
from services.registry.versions import READ_AT_ONCE, Versions
from services.registry.watch import ModelWatch
from splitmesh.kernel.streams import Drain

NOW = datetime(2026, 5, 4, tzinfo=UTC)
COUNT = 2 * READ_AT_ONCE + 7


async def listing(max_page_bytes: int, asked: int, description: str = "") -> list[list[int]]:
    store = MemoryStore()
    for _ in range(COUNT):
        await store.create_version(Draft("m", (), 0, "", description, ""), Actor(), NOW)
    watch = ModelWatch(store, Slots("watches", 1), stream_s=1.0, drain=Drain())
    nothing = cast(Any, None)
    versions = Versions(
        store, nothing, Pins(), nothing, Signatures(store, None), watch, max_artifacts=1, max_page_bytes=max_page_bytes
    )
    pages, token = [], ""
    while True:
        found, token = await versions.list_versions("m", asked, token)
        pages.append([one.version for one in found])
        if not token:
            return pages


@pytest.mark.parametrize("asked", [1, 7, READ_AT_ONCE - 1, READ_AT_ONCE, READ_AT_ONCE + 1, COUNT - 1, COUNT, 1000])
async def test_pages_have_what_was_asked_for(asked: int) -> None:
    pages = await listing(1 << 30, asked)
    assert [one for page in pages for one in page] == list(range(COUNT, 0, -1))
    assert {len(page) for page in pages[:-1]} <= {asked}
    assert 1 <= len(pages[-1]) <= asked


@pytest.mark.parametrize(("max_page_bytes", "per_page"), [(1, 1), (60_000, 3), (300_000, 17)])
async def test_pages_of_large_versions_are_shorter(max_page_bytes: int, per_page: int) -> None:
    pages = await listing(max_page_bytes, 1000, description="x" * 4000)
    assert [one for page in pages for one in page] == list(range(COUNT, 0, -1))
    assert {len(page) for page in pages[:-1]} == {per_page}
