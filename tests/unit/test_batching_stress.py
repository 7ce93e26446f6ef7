"""Random frames, deadlines, cancellations and stops against several segments on shared slots: each frame ends exactly once."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_times import BatchTimes
from splitmesh.kernel.batching import Batcher
from splitmesh.kernel.slots import ComputeSlots
from splitmesh.tensor.spec import Array
from tests.support.held import POISON, WAIT_S, feed, value

FRAMES = 250
SEGMENTS = 3
BROKEN = "the frame cannot be unpacked"


class Session:
    """Doubles in a random time; fails on poison; counts how often it saw each frame."""

    def __init__(self, chance: random.Random) -> None:
        self.seen: Counter[float] = Counter()
        self._chance = chance

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["x"]
        time.sleep(self._chance.choice((0, 0.0005, 0.003)))
        if (x == POISON).any():
            raise RuntimeError("poison")
        self.seen.update(x[:, 0].tolist())
        return {"y": np.asarray(x) * 2}


async def one_frame(batcher: Batcher, number: int, chance: random.Random, ends: Counter[str]) -> None:
    """Unpacked at once or later, perhaps broken or poisonous; how it ended is counted."""
    await asyncio.sleep(chance.random() * 0.15)
    poison = chance.random() < 0.05
    deadline_s = chance.choice((0.002, 0.01, 0.1, WAIT_S))
    try:
        with batcher.place(4, deadline_s, chance.randrange(10)) as place:
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() * 0.004)
            if chance.random() < 0.05:
                raise ValueError(BROKEN)
            done = await place.computed(feed(POISON if poison else number, width=chance.choice((1, 1, 2))))
        assert not poison
        assert value(done) == 2.0 * number
        ends["computed"] += 1
    except asyncio.CancelledError:
        ends["cancelled"] += 1
        raise
    except MeshError as error:
        ends[error.reason.value] += 1
    except ValueError:
        ends["broken"] += 1
    except RuntimeError:
        assert poison
        ends["computed"] += 1


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_every_frame_ends_once_the_counts_add_up_and_nothing_is_left(seed: int) -> None:
    chance = random.Random(seed)
    slots = ComputeSlots(chance.choice((1, 2)), max_frames=40, max_bytes=chance.choice((120, 1 << 20)))
    sessions = [Session(chance) for _ in range(SEGMENTS)]
    batchers = [
        Batcher(
            session,
            slots=slots,
            max_batch=chance.choice((1, 4, 16)),
            max_delay_s=chance.choice((0.0, 0.002)),
            max_queue=chance.choice((3, 30)),
            times=BatchTimes(),
        )
        for session in sessions
    ]
    ends: list[Counter[str]] = [Counter() for _ in batchers]
    tasks = [
        asyncio.create_task(one_frame(batchers[number % SEGMENTS], number, chance, ends[number % SEGMENTS]))
        for number in range(SEGMENTS * FRAMES)
    ]

    async def give_up(task: asyncio.Task[None]) -> None:
        await asyncio.sleep(chance.random() * 0.2)
        task.cancel()

    async with asyncio.timeout(4 * WAIT_S):
        giving_up = [give_up(task) for task in chance.sample(tasks, len(tasks) // 4)]
        stopped = asyncio.create_task(stop_later(batchers[0]))
        results, _ = await asyncio.gather(asyncio.gather(*tasks, return_exceptions=True), asyncio.gather(*giving_up))
        await stopped
        await asyncio.gather(*(batcher.stop() for batcher in batchers))
    assert not [one for one in results if isinstance(one, Exception)]
    assert (slots.frames, slots.bytes, slots.free) == (0, 0, slots._slots)
    for batcher, session, how in zip(batchers, sessions, ends, strict=True):
        assert len(batcher) == 0
        tally = batcher.tally
        assert set(session.seen.values()) <= {1}
        assert tally.refused == how[Reason.QUEUE_FULL.value]
        # Who gives up when it was computed or dropped already counts as that; before it had a place, as nothing.
        others = tally.computed + tally.expired - how["computed"] - how[Reason.DEADLINE_EXPIRED.value]
        assert tally.computed >= how["computed"]
        assert tally.expired >= how[Reason.DEADLINE_EXPIRED.value]
        assert others + tally.cancelled <= how["cancelled"]
    await slots.stop()


async def stop_later(batcher: Batcher) -> None:
    await asyncio.sleep(0.12)
    await batcher.stop()
