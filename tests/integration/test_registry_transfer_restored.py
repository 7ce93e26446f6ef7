"""Watchers of a registry that was set back to a backup: they learn where its aliases point, whatever it told them before."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import aclosing, closing
from pathlib import Path

from services.registry.app import build
from splitmesh.client.registry import RegistryClient
from splitmesh.kernel.lifecycle import Host
from tests.integration.registry_world import parts, reaching, running, settings_for
from tests.integration.test_registry_transfer_watch import (
    AWAY,
    WAIT_S,
    Script,
    changes,
    now,
    places,
    told,
)
from tests.support.scripted_registry import serving


async def test_a_registry_that_was_set_back_is_believed() -> None:
    script = Script(
        [*now(told(90, 7)), AWAY],
        [*now(told(5, 2, up_to=6)), told(7, 3), AWAY],
        [*now(told(7, 3)), told(8, 4)],
    )
    async with serving(script) as channels:
        assert places(await changes(channels, 4)) == [(90, 7), (5, 2), (7, 3), (8, 4)]
    assert script.asked == [0, 90, 7]


async def test_a_registry_that_was_set_back_and_moved_on_since_is_believed() -> None:
    elsewhere = now(told(40, 2), told(92, 5, alias="new"), up_to=93)
    script = Script(
        [*now(told(90, 7), told(91, 1, alias="lost")), AWAY],
        [told(92, 5, alias="new"), *elsewhere, AWAY],
        [*now(told(40, 2), told(92, 5, alias="new"), up_to=93), told(94, 6)],
    )
    async with serving(script) as channels:
        found = await changes(channels, 6)
    assert places(found) == [(90, 7), (91, 1), (92, 5), (40, 2), (93, None), (94, 6)]
    lost = found[4].move
    assert lost is not None
    assert (lost.alias, lost.previous, lost.version) == ("lost", 1, 0)
    assert script.asked == [0, 91, 93]


async def test_a_number_that_was_given_anew_after_a_backup_is_another_version() -> None:
    other = told(3, 1)
    other.move.move_time.seconds = other.version.create_time.seconds = 1_700_000_000
    script = Script([*now(told(3, 1)), AWAY], [*now(told(3, 1)), AWAY], [*now(other)])
    async with serving(script) as channels, aclosing(RegistryClient(channels).watch_alias("m", "prod")) as states:
        async with asyncio.timeout(WAIT_S):
            found = [await anext(states) for _ in range(2)]
    assert [state.create_time.year if state else 0 for state in found] == [1970, 2023]


async def test_a_follower_learns_of_a_backup_that_was_brought_back_and_moved_on(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup.sqlite3"
    async with running(data) as before:
        port = int(before.address.rpartition(":")[2])
        for note in "12":
            await before.client.create_version("m", parts(note), created_by="push")
        await before.client.set_alias("m", "prod", 2)
        await before.client.set_alias("m", "canary", 1)
        _copy(data / "registry.sqlite3", backup)
        lost = await before.client.create_version("m", parts("lost"), created_by="push")
        await before.client.set_alias("m", "prod", 1)
        await before.client.set_alias("m", "canary", 3)
        async with reaching(before.address) as channels:
            client = RegistryClient(channels)
            async with (
                aclosing(client.watch_alias("m", "prod")) as prod,
                aclosing(client.watch_alias("m", "canary")) as canary,
                asyncio.timeout(WAIT_S),
            ):
                first = [await anext(prod), await anext(canary)]
                assert [state.version if state else None for state in first] == [1, 3]
                news = [asyncio.ensure_future(anext(prod)), asyncio.ensure_future(anext(canary))]
                await before.stop()
                for file in data.glob("registry.sqlite3*"):
                    file.unlink()
                _copy(backup, data / "registry.sqlite3")
                async with running(tmp_path / "data") as quiet:
                    # Behind a port that nobody follows: it has moved beyond what the followers know before they are back.
                    anew = await quiet.client.create_version("m", parts("anew"), created_by="push")
                    for number in (1, 2, 3):
                        await quiet.client.set_alias("m", "canary", number)
                async with Host("registry", settings_for(data, port=port), build):
                    states = await asyncio.gather(*news)
    assert [state.version if state else None for state in states] == [2, 3]
    assert states[1] is not None
    assert states[1].artifacts == anew.artifacts != lost.artifacts


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
