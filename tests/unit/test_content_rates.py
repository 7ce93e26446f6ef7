"""Many transfers on a low rate: as many as it can feed go on, each with a message every other second, and all get done."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.registry.content.staged import StagedStore
from services.registry.limits import LEAST_BYTES_PER_S, SMALLEST_BYTES, Slots
from services.registry.pull import Pull
from services.registry.push import PIECE_BYTES
from services.registry.small import SmallContents
from splitmesh.client.rate import Rate
from splitmesh.client.transfer import BUSY_TRIES, LONGEST_BUSY_S, Patience
from splitmesh.errors import MeshError, Reason
from tests.support.contents import FolderPlace, digest, write

RATE = 500_000.0
CLIENTS = 40
CONTENT = os.urandom(2 * PIECE_BYTES)
SHA = digest(CONTENT)
GIVES_UP_S = 30.0
"""A client that waits for one message."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[StagedStore]:
    async with FolderPlace(tmp_path).store() as made:
        await write(made, CONTENT)
        yield made


class Moment:
    """A rate's clock and sleep: nobody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def rate(self) -> Rate:
        return Rate(RATE, clock=lambda: self.now_s, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


class Clients:
    """Download the content, come back when they are told that it is busy, and note what they had to wait for."""

    def __init__(self, pull: Pull, moment: Moment) -> None:
        self._pull = pull
        self._moment = moment
        self._one_is_done = asyncio.Condition()
        self.gaps: list[float] = []
        self.at_once = 0
        self.most_at_once = 0
        self.hints: set[float | None] = set()

    async def one(self) -> bytes:
        while True:
            try:
                return await self._download()
            except MeshError as error:
                if error.reason is not Reason.QUEUE_FULL:
                    raise
                self.hints.add(error.retry_after_s)
                async with self._one_is_done:
                    await self._one_is_done.wait()

    async def _download(self) -> bytes:
        last = self._moment.now_s
        pieces = self._pull.pieces(SHA, 0)
        first = await anext(pieces)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.gaps.append(self._moment.now_s - last)
        got, last = first.data, self._moment.now_s
        async for piece in pieces:
            self.gaps.append(self._moment.now_s - last)
            got, last = got + piece.data, self._moment.now_s
        self.at_once -= 1
        async with self._one_is_done:
            self._one_is_done.notify_all()
        return got


async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread, in which no simulated time passes: on a busy machine the others' would run on meanwhile."""
    return work(*arguments)


async def test_forty_downloads_on_a_low_rate_all_get_done_and_none_waits_long_for_a_piece(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.registry.content.disk.Disk.run", lambda _, work: at_once(work))
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    moment = Moment()
    pull = Pull(store, Slots.at_rate("downloads", 64, RATE), bytes_per_s=RATE)
    pull.rate = moment.rate()
    clients = Clients(pull, moment)
    async with asyncio.timeout(60):
        done = await asyncio.gather(*(clients.one() for _ in range(CLIENTS)))
    assert done == [CONTENT] * CLIENTS
    assert clients.most_at_once == RATE // LEAST_BYTES_PER_S
    assert max(clients.gaps) < GIVES_UP_S / 5
    assert moment.now_s == pytest.approx(CLIENTS * len(CONTENT) / RATE, rel=0.01)  # nothing is sent twice
    assert clients.hints == {10.0}


@pytest.mark.parametrize(
    ("bytes_per_s", "places"), [(0, 64), (1, 1), (LEAST_BYTES_PER_S * 3, 3), (LEAST_BYTES_PER_S * 64, 64), (1e12, 64)]
)
def test_as_many_are_let_in_as_the_rate_can_feed(bytes_per_s: float, places: int) -> None:
    slots = Slots.at_rate("downloads", 64, bytes_per_s)
    taken = [slots.take() for _ in range(places)]
    for one in taken:
        one.__enter__()
    with pytest.raises(MeshError) as error, slots.take():
        pass
    assert error.value.metadata["limit"] == str(places)
    assert error.value.retry_after_s == (1.0 if places == 64 else 10.0)


def test_a_message_is_what_the_rate_lets_one_of_them_send_in_a_second() -> None:
    slots = Slots("downloads", 8)
    assert slots.piece_bytes(PIECE_BYTES, None) == PIECE_BYTES
    with slots.take():
        assert slots.piece_bytes(PIECE_BYTES, Rate(4e6)) == PIECE_BYTES
        assert slots.piece_bytes(PIECE_BYTES, Rate(600_000)) == 600_000
        with slots.take(), slots.take():
            assert slots.piece_bytes(PIECE_BYTES, Rate(600_000)) == 200_000
            assert slots.piece_bytes(PIECE_BYTES, Rate(1)) == SMALLEST_BYTES


async def test_messages_of_small_contents_become_smaller_when_many_share_the_rate(store: StagedStore) -> None:
    contents = [(digest(data), data) for data in (os.urandom(50_000) for _ in range(24))]
    await store.put(contents)
    slots, moment = Slots("downloads", 8), Moment()
    small = SmallContents(store, Slots("uploads", 1), slots, idle_s=10.0, stream_s=60.0, down=moment.rate())
    asked = [sha256 for sha256, _ in contents]
    with slots.take(), slots.take(), slots.take():
        messages = [one async for one in small.pieces(asked)]
    assert {len(one) for one in messages} == {2}  # of 125 kB
    assert [content for one in messages for content in one] == contents


@pytest.mark.parametrize(
    ("hint_s", "waits"),
    [(10.0, [10.0] * 4), (1e6, [LONGEST_BUSY_S] * 4), (0.5, [0.1, 0.2, 0.4, 0.8]), (None, [0.1, 0.2, 0.4, 0.8])],
)
async def test_a_client_comes_back_when_a_busy_registry_says(
    monkeypatch: pytest.MonkeyPatch, hint_s: float | None, waits: list[float]
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("splitmesh.client.transfer.asyncio.sleep", sleep)
    monkeypatch.setattr("splitmesh.client.transfer.random.uniform", lambda low, high: high)
    patience: Any = Patience(tries=1)
    error = MeshError(Reason.QUEUE_FULL, "busy", retry_after_s=hint_s)
    for _ in range(BUSY_TRIES - 1):
        await patience.after(error)
    assert slept[:4] == pytest.approx(waits)
    with pytest.raises(MeshError):
        await patience.after(error)


async def test_a_registry_that_was_busy_has_all_its_tries_left_for_what_goes_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("splitmesh.client.transfer.asyncio.sleep", sleep)
    patience = Patience(tries=3)
    busy, away = MeshError(Reason.QUEUE_FULL, "busy"), MeshError(Reason.SERVICE_UNAVAILABLE, "away")
    for error in (*[busy] * (BUSY_TRIES - 1), away, away):
        await patience.after(error)
    with pytest.raises(MeshError, match="away"):
        await patience.after(away)
    assert len(slept) == BUSY_TRIES + 1
