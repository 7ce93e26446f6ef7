"""Versions of a release that kept no note of what they run with: their alternatives stay all the same."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry import needs
from services.registry.content.folder import FolderStore
from services.registry.content.port import ContentLimits
from services.registry.metadata.memory_store import MemoryStore
from services.registry.metadata.records import Artifact
from services.registry.needs import OlderNeeds
from splitmesh.errors import Reason
from splitmesh.model.alternatives import ALTERNATIVES
from tests.support.contents import LIMITS, digest
from tests.support.stores import ACTOR, NOON, draft, made, refused


@pytest.fixture
async def contents(tmp_path: Path) -> AsyncIterator[FolderStore]:
    store = FolderStore(tmp_path, ContentLimits(**LIMITS))  # type: ignore[arg-type]
    await store.start()
    yield store
    await store.stop()


def listing(*versions: int) -> bytes:
    entries = [{"version": one, "name": f"way {one}", "edge_ms": 1.0} for one in versions]
    return json.dumps({"alternatives": entries, "uplink_mbps": 10, "rtt_ms": 1}).encode()


async def older(store: MemoryStore, contents: FolderStore, text: bytes, *, kept: bool = True) -> None:
    """A version as an older release made it."""
    if kept:
        await contents.put([(digest(text), text)])
    artifacts = (Artifact(ALTERNATIVES, digest(text), len(text)),)
    await store.create_version(draft(model="m", artifacts=artifacts), ACTOR, NOON)


async def test_a_list_that_the_disk_does_not_give_stops_no_start(
    contents: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def read(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    store = MemoryStore()
    await older(store, contents, listing(0))
    monkeypatch.setattr(contents, "read", read)
    await OlderNeeds(store, contents).start()
    assert "the alternatives of m:1 are not known" in caplog.text


async def test_alternatives_that_older_versions_list_cannot_be_deleted_after_the_start(
    contents: FolderStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(needs, "AT_ONCE", 2)
    store = MemoryStore()
    await made(store, "m", "m", "m", "m")
    await older(store, contents, listing(0, 1))
    await older(store, contents, b"no list")
    await older(store, contents, listing(0, 4), kept=False)
    await older(store, contents, listing(0, 2, 40))
    await older(store, contents, listing(0, 2**40))
    await older(store, contents, listing(0, 3))
    await store.delete_version("m", 3, "", ACTOR, NOON)
    await OlderNeeds(store, contents).start()
    for alternative, user in ((1, 5), (2, 8)):
        error = await refused(store.delete_version("m", alternative, "", ACTOR, NOON), Reason.VERSION_IN_USE)
        assert error.metadata["users"] == f"model m:{user}"
    for unknown in ("m:6", "m:7", "m:9"):
        assert f"the alternatives of {unknown} are not known" in caplog.text
    assert "m:10" not in caplog.text
    await store.delete_version("m", 4, "", ACTOR, NOON)
    await store.delete_version("m", 5, "", ACTOR, NOON)
    await store.delete_version("m", 1, "", ACTOR, NOON)
