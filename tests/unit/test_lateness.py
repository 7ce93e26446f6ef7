"""How late a loop is: seen when it is held up, and forgotten by and by."""

from __future__ import annotations

import asyncio
import time

import pytest

from edge.head.lateness import FORGOTTEN_S, TICK_S, Lateness


async def test_a_loop_that_is_held_up_is_late_by_as_much() -> None:
    lateness = Lateness()
    lateness.start()
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(time.sleep, TICK_S + 0.2)
    await asyncio.sleep(3 * TICK_S)
    assert lateness.peak_s >= 0.15
    await lateness.stop()


def test_the_peak_counts_and_fades() -> None:
    lateness = Lateness()
    lateness.saw(0.1, 0.05)
    lateness.saw(0.001, 0.05)
    assert lateness.peak_s == pytest.approx(0.1, rel=0.01)
    lateness.saw(0.0, FORGOTTEN_S)
    assert 0.03 < lateness.peak_s < 0.04
