"""Metadata stores of every kind for the conformance suite, opened and closed, and what its tests write into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor, AliasChange, AliasMove, Artifact, DatasetDraft, Draft
from services.registry.metadata.sql_store import SqlStore
from splitmesh.errors import MeshError, Reason
from tests.support.postgres import fresh_database

NOON = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)
ACTOR = Actor("anna", "ipv4:10.0.0.7:5000", ("k1", "k2"))
PARTS = (Artifact("model.onnx", "a" * 64, 10), Artifact("manifest.json", "b" * 64, 2**40))
DRAFT = Draft("m", PARTS, parent=0, created_by="push", description="first", request_id="")
PICTURES = ("1" * 64, "2" * 64)
DATASET = DatasetDraft(
    "boards", Artifact("dataset.json", "d" * 64, 99), 0, "site", "from line 4", "", '{"pictures":2}', PICTURES
)

KINDS = ("memory", "sqlite", "postgres")
DURABLE = ("sqlite", "postgres")


class Clock:
    """Stands still until a test sets it."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime:
        return self.time


def after(seconds: float) -> datetime:
    """So long after noon."""
    return NOON + timedelta(seconds=seconds)


@contextmanager
def durable_url(kind: str, folder: Path) -> Iterator[str]:
    """Of an SQLite file that is not there yet, or an empty PostgreSQL database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/registry.sqlite3"
        return
    with fresh_database() as url:
        yield url


@asynccontextmanager
async def opened(kind: str, folder: Path, clock: Callable[[], datetime]) -> AsyncIterator[MetadataStore]:
    """A new store."""
    if kind == "memory":
        yield MemoryStore(now=clock)
        return
    with durable_url(kind, folder) as url:
        store = SqlStore(url, now=clock)
        try:
            await store.start()
            yield store
        finally:
            await store.stop()


async def made(store: MetadataStore, *models: str) -> None:
    """One version more of each of these models."""
    for model in models:
        await store.create_version(draft(model=model), ACTOR, NOON)


def draft(**changes: Any) -> Draft:
    """:data:`DRAFT` with changes."""
    values = {name: getattr(DRAFT, name) for name in DRAFT.__slots__}
    return Draft(**{**values, **changes})


async def move(
    store: MetadataStore, alias: str, version: int, *, model: str = "m", expected: int | None = None, late: float = 0
) -> AliasMove:
    """Points an alias of a model, so many seconds after noon."""
    change = AliasChange(model, alias, version, expected, reason=f"to {version}")
    return await store.set_alias(change, ACTOR, after(late))


async def refused(call: Awaitable[object], reason: Reason) -> MeshError:
    """The error that a call ends with, which has this reason."""
    with pytest.raises(MeshError) as caught:
        await call
    assert caught.value.reason is reason, caught.value
    return caught.value
