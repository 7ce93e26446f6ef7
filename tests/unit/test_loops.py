"""A loop that others may call late."""

import asyncio

import pytest

from splitmesh.kernel.loops import ForgivingLoop


def test_a_closed_loop_takes_late_calls_and_does_nothing_with_them() -> None:
    called = []
    loop = ForgivingLoop()
    loop.close()
    loop.call_soon_threadsafe(called.append, 1)
    assert called == []
    with pytest.raises(RuntimeError):
        loop.call_soon(called.append, 1)


def test_an_open_loop_does_what_it_is_told() -> None:
    async def told() -> list[int]:
        called: list[int] = []
        asyncio.get_running_loop().call_soon_threadsafe(called.append, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return called

    with asyncio.Runner(loop_factory=ForgivingLoop) as runner:
        assert runner.run(told()) == [1]


async def test_the_loops_of_tests_are_forgiving() -> None:
    assert isinstance(asyncio.get_running_loop(), ForgivingLoop)
