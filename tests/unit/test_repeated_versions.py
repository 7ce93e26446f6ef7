"""Versions that follow from a request: made once, and anew under the next id when they were deleted."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

import pytest

from services.registry.metadata.refusals import model_not_found, version_not_found
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.repeated import MAX_TIMES, create_repeatable
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage, VersionName

MADE = VersionInfo("m", 9, 2, {}, "test", "", (), datetime(2026, 3, 1, tzinfo=UTC))


class Registry:
    """Refuses the first requests, then makes a version."""

    def __init__(self, *refusals: MeshError) -> None:
        self.refusals = list(refusals)
        self.asked: list[str] = []

    async def create_version(self, model: str, artifacts: object, *, request_id: str, **_: object) -> VersionInfo:
        self.asked.append(request_id)
        if self.refusals:
            raise self.refusals.pop(0)
        return MADE


async def make(registry: Registry) -> VersionInfo:
    return await create_repeatable(
        cast("RegistryClient", registry),
        "m",
        {},
        parent=2,
        created_by="test",
        description="",
        request_id="split-abc",
        lineage=Lineage(parents=(VersionName("m", 5), VersionName("other", 40))),
    )


async def test_a_request_is_asked_under_its_own_id() -> None:
    registry = Registry()
    assert await make(registry) == MADE
    assert registry.asked == ["split-abc"]


async def test_what_was_deleted_is_made_again_under_the_next_id() -> None:
    registry = Registry(*(version_not_found("model", "m", number, deleted=True) for number in (6, 8)))
    assert await make(registry) == MADE
    assert registry.asked == ["split-abc", "split-abc-2", "split-abc-3"]


@pytest.mark.parametrize(
    "refusal",
    [
        version_not_found("model", "m", 2, deleted=True),
        version_not_found("model", "m", 5, deleted=True),
        version_not_found("model", "other", 40, deleted=True),
        version_not_found("dataset", "m", 8, deleted=True),
        version_not_found("model", "m", 8),
        model_not_found("m"),
        MeshError(Reason.VERSION_NOT_FOUND, "x", metadata={"model": "m", "deleted": "true", "version": "x"}),
        MeshError(Reason.SERVICE_UNAVAILABLE, "down"),
    ],
)
async def test_a_source_that_is_gone_and_every_other_refusal_is_told(refusal: MeshError) -> None:
    registry = Registry(refusal)
    with pytest.raises(MeshError) as caught:
        await make(registry)
    assert caught.value is refusal
    assert registry.asked == ["split-abc"]


async def test_it_is_given_up_after_so_many_times() -> None:
    registry = Registry(*(version_not_found("model", "m", 6, deleted=True) for _ in range(MAX_TIMES + 1)))
    with pytest.raises(MeshError, match="was deleted"):
        await make(registry)
    assert len(registry.asked) == MAX_TIMES
    assert len(set(registry.asked)) == MAX_TIMES
