"""Streams of small contents: limits, acknowledgements only of what is on disk, one batch ahead, deadlines, order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from services.registry.content.staged import StagedStore
from services.registry.limits import Slots
from services.registry.small import SmallContents
from splitmesh.client.rate import Rate
from splitmesh.errors import MeshError, Reason
from tests.support.contents import FolderPlace, digest

Batch = Sequence[tuple[str, bytes]]
PICTURES = [(digest(data), data) for data in (os.urandom(1000 + number) for number in range(30))]
WAIT_S = 10.0


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path)


@pytest.fixture
async def store(place: FolderPlace) -> AsyncIterator[StagedStore]:
    async with place.store() as made:
        yield made


def small(store: StagedStore, **changes: Any) -> SmallContents:
    settings: dict[str, Any] = {"idle_s": 10.0, "stream_s": 60.0, **changes}
    return SmallContents(store, Slots("uploads", 1), Slots("downloads", 1), **settings)


class Link:
    """Messages handed over by the test, one by one."""

    def __init__(self, *batches: Batch | None) -> None:
        self.queue: asyncio.Queue[Batch | None] = asyncio.Queue()
        self.taken = 0
        for batch in batches:
            self.queue.put_nowait(batch)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        while (batch := await self.queue.get()) is not None:
            self.taken += 1
            yield batch


async def _counts(small: SmallContents, *batches: Batch) -> list[int]:
    return [count async for count in small.receive(Link(*batches, None).__aiter__())]


async def test_batches_are_counted_as_they_get_to_the_disk(place: FolderPlace, store: StagedStore) -> None:
    assert await _counts(small(store), PICTURES[:10], PICTURES[5:20], PICTURES[20:]) == [1, 2, 3]
    assert place.whole() == dict(PICTURES)
    assert await _counts(small(store)) == []


async def test_a_batch_is_acknowledged_without_waiting_for_the_next_one(place: FolderPlace, store: StagedStore) -> None:
    link = Link()
    async with asyncio.timeout(WAIT_S), aclosing(small(store).receive(link.__aiter__())) as counts:
        for number in range(3):
            link.queue.put_nowait(PICTURES[number : number + 1])
            assert await anext(counts) == number + 1
            assert len(place.whole()) == number + 1
        link.queue.put_nowait(None)
        assert await anext(counts, "over") == "over"


async def test_one_batch_is_read_while_one_is_written_and_no_more(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, at_gate = asyncio.Event(), asyncio.Event()
    plain = store.put

    async def slow(contents: Batch) -> None:
        at_gate.set()
        await gate.wait()
        await plain(contents)

    monkeypatch.setattr(store, "put", slow)
    link = Link(*[[picture] for picture in PICTURES[:5]], None)
    task = asyncio.create_task(_all(small(store), link))
    async with asyncio.timeout(WAIT_S):
        await at_gate.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert link.taken == 2
        gate.set()
        assert await task == [1, 2, 3, 4, 5]


async def _all(small: SmallContents, link: Link) -> list[int]:
    return [count async for count in small.receive(link.__aiter__())]


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ([], Reason.PROTOCOL_VIOLATION),
        ([("0" * 64, b"liar")], Reason.DIGEST_MISMATCH),
        ([PICTURES[1], ("0" * 64, b"liar")], Reason.DIGEST_MISMATCH),
        ([("../etc/passwd", b"")], Reason.FIELD_INVALID),
        ([(digest(bytes(2001)), bytes(2001))], Reason.FRAME_TOO_LARGE),
        ([(digest(bytes(1001)), bytes(1001)), (digest(bytes(1000)), bytes(1000))], Reason.FRAME_TOO_LARGE),
        ([(digest(b"x"), b"x")] * 257, Reason.FRAME_TOO_LARGE),
    ],
)
async def test_a_bad_batch_ends_the_stream_and_leaves_those_before(
    place: FolderPlace, store: StagedStore, batch: Batch, reason: Reason
) -> None:
    counts: list[int] = []
    with pytest.raises(MeshError) as error:
        await _collect(counts, small(store, max_message_bytes=2000), Link([PICTURES[0]], batch, [PICTURES[2]]))
    assert error.value.reason is reason
    assert counts == [1]
    assert place.whole() == dict(PICTURES[:1])
    assert not place.left_over()


async def _collect(counts: list[int], small: SmallContents, link: Link) -> None:
    async with asyncio.timeout(WAIT_S):
        async for count in small.receive(link.__aiter__()):
            counts.append(count)


async def test_as_much_as_the_limits_say_is_taken(place: FolderPlace, store: StagedStore) -> None:
    full = [(digest(data), data) for data in (bytes([number]) * 8 for number in range(256))]
    assert await _counts(small(store, max_message_bytes=2048), full, [(digest(bytes(2048)), bytes(2048))]) == [1, 2]
    assert len(place.whole()) == 257


@pytest.mark.parametrize(("deadline", "said"), [("idle_s", "no message came"), ("stream_s", "lasted longer")])
async def test_a_silent_or_endless_stream_is_let_go_with_what_it_brought(
    place: FolderPlace, store: StagedStore, deadline: str, said: str
) -> None:
    counts: list[int] = []
    with pytest.raises(MeshError, match=said) as error:
        await _collect(counts, small(store, **{deadline: 0.1}), Link(PICTURES[:3]))
    assert error.value.reason is Reason.DEADLINE_EXPIRED
    assert counts == [1]
    assert place.whole() == dict(PICTURES[:3])


async def test_a_stream_that_never_falls_silent_ends_as_well_after_what_it_brought(
    place: FolderPlace, store: StagedStore
) -> None:
    counts: list[int] = []
    with pytest.raises(MeshError, match="lasted longer") as error:
        await _collect(counts, small(store, stream_s=1e-9), Link(PICTURES[:1], PICTURES[1:2], PICTURES[2:3]))
    assert error.value.reason is Reason.DEADLINE_EXPIRED
    assert counts == [1]
    assert place.whole() == dict(PICTURES[:1])


class _Admitting:
    """A rate that lets everything pass, and then has the sender's patience run out at once."""

    def __init__(self) -> None:
        self.streams: SmallContents | None = None

    async def take(self, size_bytes: int) -> None:
        assert self.streams is not None
        self.streams._idle_s = 0.0


async def test_a_sender_is_not_silent_while_what_it_sent_is_put(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, rate = store.put, _Admitting()
    one = small(store, up=rate)
    rate.streams = one

    async def slow(contents: Batch) -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        await plain(contents)
        one._idle_s = WAIT_S

    monkeypatch.setattr(store, "put", slow)
    link = Link(PICTURES[:1])
    async with asyncio.timeout(WAIT_S), aclosing(one.receive(link.__aiter__())) as counts:
        assert await anext(counts) == 1  # it waited for this before it went on
        link.queue.put_nowait(None)
        assert await anext(counts, "over") == "over"


async def test_a_stream_that_is_dropped_gives_its_place_back_and_finishes_its_batch(
    place: FolderPlace, store: StagedStore
) -> None:
    one = small(store)
    link = Link(PICTURES[:1], PICTURES[1:2])
    counts = one.receive(link.__aiter__())
    assert await anext(counts) == 1
    with pytest.raises(MeshError) as error:
        await _counts(one, PICTURES[:1])
    assert error.value.reason is Reason.QUEUE_FULL
    await counts.aclose()
    assert set(place.whole()) <= {sha256 for sha256, _ in PICTURES[:2]}
    assert await _counts(one, PICTURES[:3]) == [1]


async def test_what_is_missing_is_told_for_so_many_at_once(store: StagedStore) -> None:
    await store.put(PICTURES[:1])
    assert await small(store).missing([PICTURES[1][0], PICTURES[0][0]]) == [PICTURES[1][0]]
    for ask in (small(store).missing(["0" * 64] * 10_001), anext(small(store).pieces(["0" * 64] * 10_001))):
        with pytest.raises(MeshError) as error:
            await ask
        assert error.value.reason is Reason.FIELD_INVALID


async def test_contents_leave_in_the_order_asked_in_few_messages(store: StagedStore) -> None:
    await store.put(PICTURES)
    wanted = [*PICTURES[::-1], PICTURES[3]]
    messages = [one async for one in small(store, max_message_bytes=3200).pieces([sha256 for sha256, _ in wanted])]
    assert [content for one in messages for content in one] == wanted
    assert [len(one) for one in messages] == [3] * 10 + [1]
    assert [one async for one in small(store).pieces([])] == []


async def test_no_more_than_256_contents_are_in_a_message(store: StagedStore) -> None:
    full = [(digest(data), data) for data in (number.to_bytes(2) for number in range(300))]
    await store.put(full)
    messages = [one async for one in small(store).pieces([sha256 for sha256, _ in full])]
    assert [len(one) for one in messages] == [256, 44]
    assert [content for one in messages for content in one] == full


async def test_what_is_not_there_too_large_or_damaged_is_told(place: FolderPlace, store: StagedStore) -> None:
    await store.put([*PICTURES[:3], (digest(bytes(5000)), bytes(5000))])
    place.damage(PICTURES[2][0], b"?")
    for sha256, reason in (
        ("0" * 64, Reason.ARTIFACT_NOT_FOUND),
        (digest(bytes(5000)), Reason.FRAME_TOO_LARGE),
        (PICTURES[2][0], Reason.INTERNAL),
        ("nonsense", Reason.FIELD_INVALID),
    ):
        with pytest.raises(MeshError) as error:
            await _drain(small(store, max_message_bytes=4999), [PICTURES[0][0], sha256, PICTURES[1][0]])
        assert error.value.reason is reason


async def _drain(small: SmallContents, sha256s: list[str]) -> None:
    async for _ in small.pieces(sha256s):
        pass


async def test_small_contents_count_against_the_rates_they_are_given(store: StagedStore) -> None:
    moment = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal moment
        moment += seconds

    def rate() -> Rate:
        return Rate(10_000.0, clock=lambda: moment, sleep=sleep)

    total = sum(len(data) for _, data in PICTURES)
    one = small(store, up=rate(), down=None)
    assert await _counts(one, PICTURES[:15], PICTURES[15:]) == [1, 2]
    assert moment == pytest.approx((total - 2500) / 10_000, rel=0.01)
    moment = 0.0
    one = small(store, up=None, down=rate())
    await _drain(one, [sha256 for sha256, _ in PICTURES])
    assert moment == pytest.approx((total - 2500) / 10_000, rel=0.01)
