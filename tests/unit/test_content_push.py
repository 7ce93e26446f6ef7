"""Upload and download streams: order, offsets, time-outs, one piece ahead and no more, and the rate all of them share."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.registry.content.port import Progress
from services.registry.content.staged import StagedStore
from services.registry.content.staged_upload import StagedUpload
from services.registry.limits import Slots
from services.registry.pull import CHECK_AGAIN_S, Pull
from services.registry.push import PIECE_BYTES, Push, Start
from splitmesh.errors import MeshError, Reason
from tests.support.contents import FolderPlace, digest, write

CONTENT = os.urandom(3 * PIECE_BYTES + 1000)
SHA = digest(CONTENT)
PIECES = [CONTENT[first : first + PIECE_BYTES] for first in range(0, len(CONTENT), PIECE_BYTES)]
START = Start(SHA, len(CONTENT), 0)


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path)


@pytest.fixture
async def store(place: FolderPlace) -> AsyncIterator[StagedStore]:
    async with place.store() as made:
        yield made


class Sender:
    """Messages as a client sends them; says how many were taken."""

    def __init__(self, *messages: Start | bytes, hang: bool = False) -> None:
        self._messages = messages
        self._hang = hang
        self.taken = 0
        self.silent = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Start | bytes]:
        for message in self._messages:
            self.taken += 1
            yield message
        if self._hang:
            self.silent.set()
            await asyncio.Event().wait()


def push_to(store: StagedStore, **changes: Any) -> Push:
    return Push(store, Slots("uploads", 2), **{"idle_s": 10.0, "stream_s": 60.0, **changes})


async def receive(push: Push, sender: Sender) -> Start:
    return await push.receive(sender.__aiter__(), _accept)


async def _accept() -> None:
    return None


async def test_a_stream_of_pieces_becomes_the_content(store: StagedStore) -> None:
    assert await receive(push_to(store), Sender(START, *PIECES)) == START
    assert await store.read(SHA, 0, 2**23) == CONTENT


async def test_a_stream_goes_on_where_the_last_one_ended(store: StagedStore) -> None:
    await write(store, CONTENT, upto=1234)
    rest = CONTENT[1234:]
    pieces = [rest[first : first + 777_777] for first in range(0, len(rest), 777_777)]
    await receive(push_to(store), Sender(Start(SHA, len(CONTENT), 1234), *pieces))
    assert await store.read(SHA, 0, 2**23) == CONTENT


@pytest.mark.parametrize(
    ("messages", "reason", "kept"),
    [
        ([PIECES[0]], Reason.PROTOCOL_VIOLATION, 0),
        ([], Reason.PROTOCOL_VIOLATION, 0),
        ([Start(SHA, len(CONTENT), 7)], Reason.UPLOAD_OFFSET_MISMATCH, 0),
        ([START, *PIECES[:2]], Reason.UPLOAD_TRUNCATED, 2 * PIECE_BYTES),
        ([START], Reason.UPLOAD_TRUNCATED, 0),
        ([START, PIECES[0], START], Reason.PROTOCOL_VIOLATION, PIECE_BYTES),
        ([START, PIECES[0], b""], Reason.PROTOCOL_VIOLATION, PIECE_BYTES),
        ([START, PIECES[0], b"x" * (PIECE_BYTES + 1)], Reason.FRAME_TOO_LARGE, PIECE_BYTES),
        ([START, *PIECES[:3], PIECES[0]], Reason.PROTOCOL_VIOLATION, 3 * PIECE_BYTES),
        ([START, *PIECES[:3], b"x" * 1000], Reason.DIGEST_MISMATCH, 0),
    ],
)
async def test_a_stream_that_breaks_the_rules_keeps_what_was_right(
    store: StagedStore, messages: list[Start | bytes], reason: Reason, kept: int
) -> None:
    with pytest.raises(MeshError) as error:
        await receive(push_to(store), Sender(*messages))
    assert error.value.reason is reason
    assert await store.progress(SHA) == Progress(kept, False)
    if reason is Reason.UPLOAD_TRUNCATED:
        assert error.value.metadata["offset"] == str(kept)


async def test_a_sender_that_falls_silent_is_let_go_and_told_how_far_it_came(store: StagedStore) -> None:
    with pytest.raises(MeshError, match="no message came") as error:
        await receive(push_to(store, idle_s=0.05), Sender(START, *PIECES[:2], hang=True))
    assert error.value.reason is Reason.DEADLINE_EXPIRED
    assert error.value.metadata["offset"] == str(2 * PIECE_BYTES)
    with pytest.raises(MeshError, match="no message came"):
        await receive(push_to(store, idle_s=0.05), Sender(hang=True))


async def test_a_stream_lives_only_so_long(store: StagedStore) -> None:
    with pytest.raises(MeshError, match="lasted longer") as error:
        await receive(push_to(store, stream_s=0.05), Sender(START, PIECES[0], hang=True))
    assert error.value.reason is Reason.DEADLINE_EXPIRED
    assert (await store.progress(SHA)).offset == PIECE_BYTES


async def test_one_piece_is_taken_while_the_last_one_is_written_and_no_more(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, at_gate = asyncio.Event(), asyncio.Event()
    plain = StagedUpload.append

    async def slow(upload: StagedUpload, data: bytes) -> None:
        at_gate.set()
        await gate.wait()
        await plain(upload, data)

    monkeypatch.setattr(StagedUpload, "append", slow)
    sender = Sender(START, *PIECES)
    task = asyncio.create_task(receive(push_to(store), sender))
    async with asyncio.timeout(10):
        await at_gate.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert sender.taken == 3  # the start, the piece at the gate, and the next one
        gate.set()
        await task
    assert await store.read(SHA, 0, 2**23) == CONTENT


async def test_a_piece_that_cannot_be_written_ends_the_stream(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(upload: StagedUpload, data: bytes) -> None:
        raise MeshError(Reason.STORAGE_FULL, "full")

    monkeypatch.setattr(StagedUpload, "append", full)
    for messages in (PIECES, PIECES[:1]):
        with pytest.raises(MeshError) as error:
            await receive(push_to(store), Sender(START, *messages))
        assert error.value.reason is Reason.STORAGE_FULL


async def test_a_cancelled_stream_keeps_what_it_took(store: StagedStore) -> None:
    sender = Sender(START, *PIECES[:2], hang=True)
    task = asyncio.create_task(receive(push_to(store), sender))
    async with asyncio.timeout(10):
        await sender.silent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.progress(SHA)).offset == 2 * PIECE_BYTES


class Asleep:
    """A rate's clock and sleep: nobody waits, and the moment is known."""

    def __init__(self) -> None:
        self.moment = 0.0

    def clock(self) -> float:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += seconds
        await asyncio.sleep(0)


async def test_uploads_share_one_rate_and_downloads_another(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, down = Asleep(), Asleep()
    push = push_to(store, bytes_per_s=1_000_000.0)
    pull = Pull(store, Slots("downloads", 2), bytes_per_s=500_000.0)
    for rate, time in ((push.rate, up), (pull.rate, down)):
        monkeypatch.setattr(rate, "_clock", time.clock)
        monkeypatch.setattr(rate, "_sleep", time.sleep)
        monkeypatch.setattr(rate, "_bucket", type(rate._bucket)(rate.bytes_per_s, rate._burst_bytes, 0.0))  # type: ignore[union-attr]
    other = os.urandom(1_000_000)
    await asyncio.gather(
        receive(push, Sender(START, *PIECES)),
        receive(push, Sender(Start(digest(other), len(other), 0), other)),
    )
    total = len(CONTENT) + len(other)
    assert up.moment == pytest.approx((total - 250_000) / 1_000_000, rel=0.01)  # less what was saved up
    assert down.moment == 0.0
    await asyncio.gather(*(_pulled(pull, sha256) for sha256 in (SHA, digest(other))))
    assert down.moment == pytest.approx((total - 125_000) / 500_000, rel=0.01)


async def _pulled(pull: Pull, sha256: str, offset: int = 0) -> bytes:
    return b"".join([piece.data async for piece in pull.pieces(sha256, offset)])


@pytest.mark.parametrize("offset", [0, 1, PIECE_BYTES, len(CONTENT) - 1, len(CONTENT)])
async def test_a_download_begins_at_any_byte(store: StagedStore, offset: int) -> None:
    await write(store, CONTENT)
    pieces = [piece async for piece in Pull(store, Slots("downloads", 1)).pieces(SHA, offset)]
    assert b"".join(piece.data for piece in pieces) == CONTENT[offset:]
    assert pieces[0].offset == offset
    assert {piece.size_bytes for piece in pieces} == {len(CONTENT)}


async def test_a_download_beyond_the_end_or_of_nothing_is_refused(store: StagedStore) -> None:
    pull = Pull(store, Slots("downloads", 1))
    await write(store, CONTENT)
    for sha256, offset, reason in (
        (SHA, len(CONTENT) + 1, Reason.FIELD_INVALID),
        ("0" * 64, 0, Reason.ARTIFACT_NOT_FOUND),
    ):
        with pytest.raises(MeshError) as error:
            await _pulled(pull, sha256, offset)
        assert error.value.reason is reason


async def test_one_piece_is_read_ahead_and_no_more(store: StagedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(store, CONTENT)
    offsets = []
    second = asyncio.Event()
    plain = store.read

    async def read(sha256: str, offset: int, length: int) -> bytes:
        offsets.append(offset)
        if offset:
            second.set()
        return await plain(sha256, offset, length)

    monkeypatch.setattr(store, "read", read)
    slots = Slots("downloads", 1)
    pieces = Pull(store, slots).pieces(SHA, 0)
    async with asyncio.timeout(10):
        await anext(pieces)
        await second.wait()
        for _ in range(100):
            await asyncio.sleep(0)
    assert offsets == [0, PIECE_BYTES]
    with pytest.raises(MeshError) as error:
        await _pulled(Pull(store, slots), SHA)
    assert error.value.reason is Reason.QUEUE_FULL
    await pieces.aclose()
    assert await _pulled(Pull(store, slots), SHA) == CONTENT  # the place is free again


@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"?", CONTENT[:-5], CONTENT[:PIECE_BYTES], b""])
async def test_a_damaged_content_is_never_sent_to_its_end(
    place: FolderPlace, store: StagedStore, damaged: bytes
) -> None:
    await write(store, CONTENT)
    place.damage(SHA, damaged)
    sent = bytearray()
    with pytest.raises(MeshError) as error:
        await _pull_into(sent, Pull(store, Slots("downloads", 1)))
    assert error.value.reason is Reason.INTERNAL
    assert len(sent) < max(1, len(damaged))
    assert await store.missing([SHA]) == [SHA]  # so that it can be pushed again


async def test_an_undamaged_content_is_hashed_again_only_after_a_while(
    store: StagedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(store, CONTENT)
    moment = 0.0
    hashed: list[float] = []
    plain = hashlib.sha256

    def counted() -> object:
        hashed.append(moment)
        return plain()

    monkeypatch.setattr("services.registry.pull.hashlib.sha256", counted)
    pull = Pull(store, Slots("downloads", 1), now=lambda: moment)
    for moment in (0.0, 1.0, CHECK_AGAIN_S - 1.0, CHECK_AGAIN_S, CHECK_AGAIN_S + 1.0):  # noqa: B007  read by the clock
        assert await _pulled(pull, SHA) == CONTENT
    assert hashed == [0.0, CHECK_AGAIN_S]


async def _pull_into(sent: bytearray, pull: Pull) -> None:
    async for piece in pull.pieces(SHA, 0):
        sent += piece.data
