"""Those who bring much wait for each other, so that what everybody else asks of the same thread comes soon. Knows no thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """In the order they came; together they have at most so much at once, and one alone whatever it has.

    Args:
        most: of what is counted, such as rows.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, weight: int) -> AsyncIterator[None]:
        """Waits for its turn; the next one's comes with the end."""
        weight = min(weight, self._most)
        if self._line or self._taken + weight > self._most:
            await self._wait(weight)
        else:
            self._taken += weight
        try:
            yield
        finally:
            self._give_back(weight)

    async def _wait(self, weight: int) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((weight, mine))
        try:
            await mine
        except asyncio.CancelledError:
            self._give_back(0 if mine.cancelled() else weight)
            raise

    def _give_back(self, weight: int) -> None:
        self._taken -= weight
        while self._line:
            weight, first = self._line[0]
            if not first.cancelled():
                if self._taken + weight > self._most:
                    return
                self._taken += weight
                first.set_result(None)
            self._line.popleft()
