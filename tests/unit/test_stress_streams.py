"""One stream under everything at once, many times: whatever happens, every frame ends exactly once, and no task is left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext, suppress

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel import streams
from splitmesh.kernel.streams import Cancel, Drain, FrameStream

FRAMES = 60
WAIT_S = 20.0

Item = tuple[int, int]
"""Number of the frame, which may come twice, and the place in which it came."""
Response = tuple[Item, Reason | None]


class _Client:
    """Sends, gives up and reads by chance; ``rng`` decides everything, so that a failure comes again."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.sent: list[Item] = []
        self.read: list[Response] = []
        self.working = self.most_working = 0
        self.credit = rng.choice([1, 2, 5, 12])
        self.in_order = rng.random() < 0.5
        self.max_waiting = rng.choice([None, None, 0, 1, 3])
        self.concurrency = rng.choice([None, 1, 3])
        self.drains_at = rng.choice([None, None, rng.randrange(FRAMES)])
        self.leaves_at = rng.choice([None, None, rng.randrange(FRAMES)])
        self.drain = Drain()
        self.drain_task: asyncio.Task[None] | None = None
        self.stream: FrameStream[Item, Response] = FrameStream(
            self._answer,
            lambda item, error: (item, error.reason),
            frame_id=lambda item: item[0],
            credit=self.credit,
            drain=self.drain,
            in_order=self.in_order,
            max_waiting=self.max_waiting,
            concurrency=self.concurrency,
        )

    async def _turns(self, most: int) -> None:
        for _ in range(self.rng.randrange(most)):
            await asyncio.sleep(0)

    async def items(self) -> AsyncIterator[Item | Cancel]:
        for place in range(FRAMES):
            await self._turns(4)
            if self.rng.random() < 0.2:
                yield Cancel(self.rng.randrange(FRAMES))
            if place == self.drains_at:
                self.drain_task = asyncio.create_task(self.drain.drain(WAIT_S))
                await asyncio.sleep(0)
            number = place if self.rng.random() < 0.95 else self.rng.randrange(FRAMES)
            self.sent.append((number, place))
            yield number, place

    async def _answer(self, item: Item) -> Response:
        self.working += 1
        self.most_working = max(self.most_working, self.working)
        try:
            await self._turns(12)
            match self.rng.randrange(12):
                case 0:
                    raise MeshError(Reason.MODEL_CORRUPT, "by chance")
                case 1:
                    raise MemoryError
                case 2:
                    raise asyncio.CancelledError
            return item, None
        finally:
            self.working -= 1

    async def run(self) -> None:
        # A stream that a drain ends says so.
        ended = nullcontext() if self.drains_at is None else suppress(MeshError)
        with ended:
            async with asyncio.timeout(WAIT_S), aclosing(self.stream.serve(self.items())) as responses:
                async for response in responses:
                    self.read.append(response)
                    if len(self.read) == self.leaves_at:
                        return
                    await self._turns(3)

    def check(self) -> None:
        left = self.leaves_at is not None and len(self.read) == self.leaves_at
        ends = Counter(item for item, _ in self.read)
        assert all(count == 1 for count in ends.values()), "a frame ended twice"
        if not left:
            missing = [item for item in self.sent if item not in ends]
            assert self.drains_at is not None or not missing, f"never ended: {missing}"
            # Cut off in the middle of a send by the drain, at most.
            assert len(missing) <= 1
        if self.in_order:
            places = [item[1] for item, _ in self.read]
            assert places == sorted(places)
        assert self.most_working <= (self.concurrency or self.credit)
        assert self.working == 0
        reasons = {reason for _, reason in self.read}
        assert self.max_waiting is not None or Reason.FRAME_SUPERSEDED not in reasons


@pytest.mark.parametrize("seed", range(40))
async def test_every_frame_ends_exactly_once_whatever_happens(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LAST_READ_S", 0.0)
    before = asyncio.all_tasks()
    client = _Client(random.Random(seed))
    await client.run()
    client.check()
    await asyncio.sleep(0)
    if client.drain_task is not None:
        await client.drain_task
    assert asyncio.all_tasks() == before
