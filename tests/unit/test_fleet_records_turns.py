"""Turns: in order, so much at once, and nobody who leaves keeps what was his."""

from __future__ import annotations

import asyncio

import pytest

from services.fleet.records.turns import Turns

WAIT_S = 10.0


class Someone:
    """Has a turn until it is let go."""

    def __init__(self, turns: Turns, weight: int) -> None:
        self._go = asyncio.Event()
        self.has = False
        self._weight = weight
        self.task = asyncio.create_task(self._take(turns))

    async def _take(self, turns: Turns) -> None:
        async with turns.turn(self._weight):
            self.has = True
            await self._go.wait()
        self.has = False

    async def leave(self) -> None:
        self._go.set()
        async with asyncio.timeout(WAIT_S):
            await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


async def settled() -> None:
    """Everybody who can go on has."""
    for _ in range(5):
        await asyncio.sleep(0)


async def who(*people: Someone) -> list[int]:
    await settled()
    return [index for index, one in enumerate(people) if one.has]


async def test_together_they_have_at_most_so_much_and_go_in_order() -> None:
    turns = Turns(10)
    people = [Someone(turns, weight) for weight in (6, 4, 1, 9, 1)]
    assert await who(*people) == [0, 1]
    await people[1].leave()
    assert await who(*people) == [0, 2]
    await people[0].leave()
    assert await who(*people) == [2, 3]
    await people[2].leave()
    assert await who(*people) == [3, 4]


async def test_one_that_has_more_than_all_goes_alone() -> None:
    turns = Turns(10)
    people = [Someone(turns, weight) for weight in (1, 500, 1)]
    assert await who(*people) == [0]
    await people[0].leave()
    assert await who(*people) == [1]
    await people[1].leave()
    assert await who(*people) == [2]


async def test_one_that_leaves_the_line_lets_those_behind_go_on() -> None:
    turns = Turns(10)
    people = [Someone(turns, weight) for weight in (5, 10, 5)]
    assert await who(*people) == [0]
    await people[1].cancel()
    assert await who(*people) == [0, 2]


async def test_one_that_leaves_in_the_moment_its_turn_comes_gives_it_back() -> None:
    turns = Turns(10)
    before = turns.turn(10)
    await before.__aenter__()
    people = [Someone(turns, weight) for weight in (10, 10)]
    assert await who(*people) == []
    await before.__aexit__(None, None, None)
    people[0].task.cancel()
    assert await who(*people) == [1]
    await people[1].leave()
    last = Someone(turns, 10)
    assert await who(last) == [0]


async def test_one_that_fails_within_its_turn_gives_it_back() -> None:
    turns = Turns(10)
    with pytest.raises(ValueError, match="no"):
        async with turns.turn(10):
            raise ValueError("no")
    assert await who(Someone(turns, 10)) == [0]
