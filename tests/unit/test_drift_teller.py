"""Telling that overrides have changed: until it is heard, however long that takes, and nothing that is said meanwhile is lost."""

from __future__ import annotations

import asyncio

import pytest

from services.router.drift import teller as drift_teller
from services.router.drift.teller import Teller
from splitmesh.errors import MeshError, Reason

PLACE = ("parts", 1)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_teller, "BACKOFF_S", (0.0, 0.0))


@pytest.mark.parametrize("error", [MeshError(Reason.SERVICE_UNAVAILABLE, "away"), TimeoutError(), ValueError("odd")])
async def test_it_is_told_until_it_is_heard_however_often_it_fails(error: Exception) -> None:
    calls = 0

    async def changed(model: str, version: int) -> None:
        nonlocal calls
        calls += 1
        if calls <= 100:
            raise error

    teller = Teller(changed)
    teller.tell(*PLACE)
    await teller.told(*PLACE)
    assert calls == 101


async def test_of_a_version_that_is_gone_nobody_is_told_again() -> None:
    calls = 0

    async def changed(model: str, version: int) -> None:
        nonlocal calls
        calls += 1
        raise MeshError(Reason.VERSION_NOT_FOUND, "gone")

    teller = Teller(changed)
    for _ in range(2):
        teller.tell(*PLACE)
        await teller.told(*PLACE)
    assert calls == 2


async def test_what_is_said_just_when_the_last_telling_ends_is_told_too() -> None:
    calls = 0
    twice = asyncio.Event()

    async def changed(model: str, version: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:  # runs after this task has ended and before who waits for it hears of that
            asyncio.get_running_loop().call_soon(lambda: teller.tell(*PLACE))
        else:
            twice.set()

    teller = Teller(changed)
    teller.tell(*PLACE)
    async with asyncio.timeout(5):
        await twice.wait()
    await teller.stop()
