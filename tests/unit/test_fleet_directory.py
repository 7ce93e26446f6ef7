"""The hosts on SQLite and PostgreSQL: what a life of the fleet leaves to the next one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from services.fleet.config import FleetSettings
from services.fleet.nodes.directory import Directory
from services.fleet.nodes.tables import nodes
from services.fleet.schema import open_database
from services.fleet.values import Target
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import Threads
from splitmesh.sql.times import to_us
from tests.support.fake_agent import hello
from tests.support.stores import DURABLE, NOON, durable_url


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[tuple[Directory, Threads]]:
    """A life; ``url`` is empty for SQLite."""
    threads = open_database(FleetSettings(data_dir=folder, database_url=SecretStr(url)), lambda _error: None)
    directory = Directory(threads, flush_s=1e6)
    await threads.start()
    try:
        await directory.start()
        yield directory, threads
    finally:
        await directory.stop()
        await threads.stop()


def state(model: str, version: int, head: str = "h") -> serving_pb2.ServingState:
    return serving_pb2.ServingState(model=model, active_version=version, node=head)


@pytest.mark.parametrize("kind", DURABLE)
async def test_hosts_outlive_the_fleet_and_are_found_by_target(kind: str, tmp_path: Path) -> None:
    with durable_url(kind, tmp_path) as found:
        url = "" if kind == "sqlite" else found
        async with opened(url, tmp_path) as (directory, threads):
            greetings = [hello(f"n{n:03}", site=f"s{n % 3}", camera_groups=["g1", "g2"]) for n in range(600)]
            await asyncio.gather(*(directory.arrive(one) for one in greetings))
            directory.connected("n000")
            directory.serves("n000", [state("m", 1), state("m", 2, "other"), state("k", 1)], [])
            await directory.flush()
            directory.serves("n000", [state("m", 3)], ["k"])
            directory.heard("n000", pb.Heartbeat(spooled_records=5))
            await directory.set_labels("n000", {"gpu": "yes"})
            directory.disconnected("n000")
        async with opened(url, tmp_path) as (directory, threads):
            record = directory.find("n000")
            assert sorted(record.serving) == [("m", "h"), ("m", "other")]
            assert (record.serving["m", "h"].active_version, record.metrics.spooled_records) == (3, 5)
            assert record.all_labels == {"gpu": "yes"}

            async def names(target: Target) -> list[str]:
                return [one.node for one in await threads.read(lambda connection: directory.hosts(connection, target))]

            assert len(await names(Target(every=True))) == 600
            assert len(await names(Target(sites=frozenset({"s1"})))) == 200
            everyone = frozenset(f"n{n:03}" for n in range(600))
            assert await names(Target(nodes=everyone, labels={"gpu": "yes"})) == ["n000"]
            assert await names(Target()) == []
            await directory.remove("n000", lambda _connection: None)
            assert await names(Target(labels={"gpu": "yes"})) == []
            await directory.arrive(hello("n000"))
            assert not directory.find("n000").all_labels


@pytest.mark.parametrize("kind", DURABLE)
async def test_a_hello_takes_the_place_of_what_was_said_and_not_written_yet(kind: str, tmp_path: Path) -> None:
    with durable_url(kind, tmp_path) as found:
        url = "" if kind == "sqlite" else found
        async with opened(url, tmp_path) as (directory, _):
            await directory.arrive(hello(serving=[state("m", 1)]))
            directory.serves("edge-1", [state("m", 2), state("k", 1)], [])
            await directory.arrive(hello(serving=[state("m", 2)]))
        async with opened(url, tmp_path) as (directory, _):
            assert [(one.model, one.active_version) for one in directory.serving("edge-1")] == [("m", 2)]


async def test_a_host_that_says_the_same_again_costs_no_row_until_the_next_flush(tmp_path: Path) -> None:
    minutes = [0]
    threads = open_database(FleetSettings(data_dir=tmp_path), lambda _error: None)
    directory = Directory(threads, flush_s=1e6, now=lambda: NOON + timedelta(minutes=minutes[0]))
    await threads.start()
    await directory.start()

    async def on_disk() -> tuple[str, int]:
        row = await threads.read(
            lambda connection: connection.execute(select(nodes.c.site, nodes.c.seen_time_us)).one()
        )
        return row.site, (row.seen_time_us - to_us(NOON)) // 60_000_000

    try:
        await directory.arrive(hello("n", site="s1"))
        minutes[0] = 1
        await directory.arrive(hello("n", site="s1"))
        assert await on_disk() == ("s1", 0)
        await directory.flush()
        assert await on_disk() == ("s1", 1)
        minutes[0] = 2
        await directory.arrive(hello("n", site="s2"))
        assert await on_disk() == ("s2", 2)
    finally:
        await directory.stop()
        await threads.stop()


@pytest.mark.parametrize("kind", DURABLE)
async def test_what_a_head_said_is_forgotten_when_it_is_gone(kind: str, tmp_path: Path) -> None:
    with durable_url(kind, tmp_path) as found:
        url = "" if kind == "sqlite" else found
        nothing = serving_pb2.ServingState(model="m", node="h-2")
        async with opened(url, tmp_path) as (directory, _):
            await directory.arrive(hello(serving=[state("m", 1, "h-1"), state("m", 1, "h-2")]))
            directory.serves("edge-1", [nothing], [])
            assert [one.node for one in directory.serving("edge-1")] == ["h-1"]
            # What is served again is no part of what is gone.
            directory.serves("edge-1", [state("m", 2, "h-3")], ["m"])
            assert [one.node for one in directory.serving("edge-1")] == ["h-3"]
        async with opened(url, tmp_path) as (directory, _):
            assert [one.node for one in directory.serving("edge-1")] == ["h-3"]
            await directory.arrive(hello(serving=[state("m", 2, "h-3"), nothing]))
            assert [one.node for one in directory.serving("edge-1")] == ["h-3"]


async def test_a_host_that_is_just_coming_back_is_not_removed(tmp_path: Path) -> None:
    async with opened("", tmp_path) as (directory, threads):
        await directory.arrive(hello("a"))
        begun, go_on = threading.Event(), threading.Event()

        def slow_write_of_somebody_else(_connection: object) -> None:
            begun.set()
            assert go_on.wait(30)

        slow = asyncio.create_task(threads.write(slow_write_of_somebody_else))
        await asyncio.to_thread(begun.wait, 30)
        arriving = asyncio.create_task(directory.arrive(hello("a")))
        while not directory._writing:  # noqa: ASYNC110  the directory tells nobody that a hello waits for the disk
            await asyncio.sleep(0)
        with pytest.raises(MeshError) as refused:
            await directory.remove("a", lambda _connection: None)
        go_on.set()
        await asyncio.gather(slow, arriving)
        assert refused.value.reason is Reason.NODE_ONLINE
        found = await threads.read(lambda connection: directory.hosts(connection, Target(every=True)))
        assert [host.node for host in found] == ["a"]


async def test_what_hosts_serve_is_written_again_after_a_failure_that_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = open_database(FleetSettings(data_dir=tmp_path), lambda _error: None)
    directory = Directory(threads, flush_s=0.001)
    flushed, flush = asyncio.Event(), directory.flush

    async def failing_once() -> None:
        monkeypatch.setattr(directory, "flush", writing)
        raise RuntimeError("a row that cannot be written")

    async def writing() -> None:
        await flush()
        flushed.set()

    monkeypatch.setattr(directory, "flush", failing_once)
    await threads.start()
    try:
        await directory.start()
        async with asyncio.timeout(20):
            await flushed.wait()
    finally:
        await directory.stop()
        await threads.stop()
