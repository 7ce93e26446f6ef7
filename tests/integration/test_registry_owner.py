"""Whose a database and its contents are: two registries on one PostgreSQL as real processes, contents and databases of others."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.model.alternatives import ALTERNATIVES
from tests.integration.registry_world import Process, World, digest, parts, reaching, relu_model, running
from tests.support.postgres import fresh_database, lose_locks, standing_by


async def test_a_registry_that_lost_its_database_ends_and_a_standby_ends_when_told_to(tmp_path: Path) -> None:
    with fresh_database() as url:
        shared = {"database_url": url, "database_wait_s": 3600}
        first = Process(tmp_path / "first", **shared)
        await first.address()
        second = Process(tmp_path / "second", **shared)
        try:
            await standing_by(url)
            with first.held_up():
                await asyncio.to_thread(lose_locks, url)
                address = await second.address()
            code, log = await first.ended()
            assert code == 1
            (said,) = [line for line in log.splitlines() if "another registry has taken over this database" in line]
            assert "registry cannot go on and stops" in said
            assert "registry has stopped" in log

            standby = Process(tmp_path / "first", **shared)
            await standing_by(url)
            standby.terminate()
            assert (await standby.ended())[0] == 0
            async with reaching(address) as channels:
                world = World.at(tmp_path / "second", address, channels)
                await world.client.create_version("m", parts(), created_by="test")
                assert set(world.visible()) >= {digest(relu_model())}
        finally:
            second.kill()


async def test_what_versions_of_an_older_release_run_with_stays_after_the_next_start(tmp_path: Path) -> None:
    entries = [{"version": one, "name": f"way {one}", "edge_ms": 1.0} for one in (0, 1)]
    ways = json.dumps({"alternatives": entries, "uplink_mbps": 10, "rtt_ms": 1}).encode()
    async with running(tmp_path) as world:
        await world.client.create_version("m", parts(), created_by="test")
        await world.client.create_version("m", {**parts(), ALTERNATIVES: ways}, created_by="test")
    with closing(sqlite3.connect(tmp_path / "registry.sqlite3")) as connection, connection:
        assert connection.execute("DELETE FROM version_needs").rowcount == 1  # older releases wrote none
    async with running(tmp_path) as world:
        with pytest.raises(MeshError) as caught:
            await world.client.delete_version("m", 1, deleted_by="test")
        assert caught.value.reason is Reason.VERSION_IN_USE


async def test_contents_of_another_database_are_refused_unless_they_are_adopted(tmp_path: Path) -> None:
    """A folder's contents move with the folder: here the metadata was lost, or another one was put beside them."""
    async with running(tmp_path) as world:
        await world.client.create_version("m", parts(), created_by="test")
    for name in ("registry.sqlite3", "registry.sqlite3-wal", "registry.sqlite3-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(MeshError, match="belong to the database") as caught:
        async with running(tmp_path):
            pass
    assert caught.value.reason is Reason.NOT_READY
    async with running(tmp_path, contents_adopt=True) as world:
        assert set(world.visible()) >= {digest(relu_model())}
    async with running(tmp_path) as world:
        await world.require_healthy()
