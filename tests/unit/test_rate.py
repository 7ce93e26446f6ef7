"""The rate that all transfers of a process share: counted, in turn, and never more than was allotted."""

from __future__ import annotations

import asyncio

import pytest

from splitmesh.client.rate import BURST_S, Rate
from splitmesh.errors import MeshError, Reason

RATE = 1000.0
BURST = int(RATE * BURST_S)


class _Clock:
    """Goes forward by what is slept, and by a hair less than was asked for, as clocks do."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, wait_s: float) -> None:
        await asyncio.sleep(0)
        self.now_s += wait_s * (1 - 1e-12)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def rate(clock: _Clock) -> Rate:
    return Rate(RATE, clock=clock, sleep=clock.sleep)


async def test_what_was_saved_up_passes_at_once_and_the_rest_at_the_rate(rate: Rate, clock: _Clock) -> None:
    await rate.take(BURST)
    assert clock.now_s == 0
    await rate.take(100)
    assert clock.now_s == pytest.approx(0.1, abs=0.002)


async def test_no_more_is_saved_up_than_a_burst_however_long_nothing_passes(rate: Rate, clock: _Clock) -> None:
    clock.now_s = 3600.0
    await rate.take(BURST)
    await rate.take(100)
    assert clock.now_s == pytest.approx(3600.1, abs=0.002)


async def test_a_piece_larger_than_a_burst_takes_as_long_as_it_must(rate: Rate, clock: _Clock) -> None:
    await rate.take(10 * BURST)
    assert clock.now_s == pytest.approx((10 * BURST - BURST) / RATE, abs=0.002)


async def test_many_transfers_together_keep_the_one_rate(rate: Rate, clock: _Clock) -> None:
    taken = 0

    async def transfer() -> None:
        nonlocal taken
        for _ in range(20):
            await rate.take(37)
            taken += 37
            assert taken <= RATE * clock.now_s + BURST + 1e-6

    await asyncio.gather(*(transfer() for _ in range(8)))
    assert taken == 8 * 20 * 37
    assert clock.now_s == pytest.approx((taken - BURST) / RATE, abs=0.002)


async def test_a_large_piece_holds_up_nobody_for_longer_than_a_burst(rate: Rate) -> None:
    order: list[str] = []

    async def take(name: str, size_bytes: int) -> None:
        await rate.take(size_bytes)
        order.append(name)

    large = asyncio.create_task(take("large", 100 * BURST))
    await asyncio.sleep(0)
    await asyncio.gather(take("small", 10), take("another", 10))
    await large
    assert order == ["small", "another", "large"]


async def test_who_gives_up_takes_the_turn_from_nobody(rate: Rate) -> None:
    await rate.take(BURST)
    waiting = [asyncio.create_task(rate.take(BURST)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [task.cancelled() for task in waiting] == [True, False, False]


async def test_nothing_costs_nothing_and_a_slow_rate_passes_a_byte_at_a_time(clock: _Clock) -> None:
    rate = Rate(0.5, clock=clock, sleep=clock.sleep)
    await rate.take(0)
    await rate.take(1)
    assert clock.now_s == 0
    await rate.take(2)
    assert clock.now_s == pytest.approx(4.0, abs=0.002)


@pytest.mark.parametrize("bytes_per_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(bytes_per_s: float) -> None:
    with pytest.raises(MeshError) as caught:
        Rate(bytes_per_s)
    assert caught.value.reason is Reason.FIELD_INVALID
