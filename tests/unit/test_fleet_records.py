"""Records of hosts: each kept once, all of a call or nothing of it, given out in the order they came."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from services.fleet.records.records import Records
from services.fleet.records.values import Bounds
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import Reason
from splitmesh.sql.database import Threads
from tests.support.fleet_database import opened_database
from tests.support.stores import DURABLE, NOON, durable_url, refused

WAIT_S = 30.0
MIB = 1 << 20
SOME = Bounds(max_records=1_000_000, max_bytes=1 << 30)


@pytest.fixture(params=DURABLE)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with durable_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture
async def threads(url: str) -> AsyncIterator[Threads]:
    async with opened_database(url) as threads:
        yield threads


@pytest.fixture
def kept(threads: Threads) -> Records:
    return records_of(threads)


def records_of(threads: Threads, bounds: Bounds = SOME, *, max_commits: int = 8) -> Records:
    return Records(threads, bounds, max_commits=max_commits, now=lambda: NOON + timedelta(hours=1))


def record(
    sequence: int, body: bytes = b'{"class":1}', *, boot: str = "boot1", kind: str = "sample", time: datetime = NOON
) -> pb.Record:
    made = pb.Record(boot_id=boot, sequence=sequence, kind=kind, body=body, sha256=hashlib.sha256(body).digest())
    made.time.FromDatetime(time)
    return made


def told(*records: pb.Record, edge: str = "press-1", tenant: str = "", **dropped: int) -> pb.CommitRecordsRequest:
    return pb.CommitRecordsRequest(tenant=tenant, edge=edge, records=records, dropped=dropped)


async def commit(kept: Records, *records: pb.Record, edge: str = "press-1", tenant: str = "", **dropped: int) -> int:
    return (await kept.commit(told(*records, edge=edge, tenant=tenant, **dropped))).added


async def listed(kept: Records, **wanted: str) -> list[tuple[str, str, int]]:
    """Edge, life and sequence of all that fit, in order; every page as small as may be."""
    found, token = [], ""
    while True:
        page = await kept.list(pb.ListRecordsRequest(page_size=1, page_token=token, **wanted))
        found += [(one.edge, one.record.boot_id, one.record.sequence) for one in page.records]
        if not (token := page.next_page_token):
            assert page.total == len(found)
            return found


async def test_a_record_is_given_out_as_it_came(kept: Records) -> None:
    sent = record(7, b'{"a": [1, 2.5, null, "\xc3\xa4"]}', kind="sample", time=NOON)
    assert await commit(kept, sent) == 1
    page = await kept.list(pb.ListRecordsRequest())
    assert [(one.edge, one.record) for one in page.records] == [("press-1", sent)]
    assert page.records[0].commit_time.ToDatetime(UTC) == NOON + timedelta(hours=1)
    assert (page.total, page.next_page_token, dict(page.dropped)) == (1, "", {})


async def test_each_is_kept_once_however_often_it_comes(kept: Records) -> None:
    assert await commit(kept, record(1), record(2)) == 2
    assert await commit(kept, record(1), record(2)) == 0
    assert await commit(kept, record(2), record(3), record(3)) == 1
    assert await commit(kept, record(1, boot="boot2")) == 1
    assert await commit(kept, record(1), edge="press-2") == 1
    assert await commit(kept, record(1), tenant="acme") == 1
    assert await listed(kept) == [
        ("press-1", "boot1", 1),
        ("press-1", "boot1", 2),
        ("press-1", "boot1", 3),
        ("press-1", "boot2", 1),
        ("press-2", "boot1", 1),
    ]
    assert await listed(kept, tenant="acme") == [("press-1", "boot1", 1)]


async def test_the_same_ones_at_the_same_moment_are_kept_once(kept: Records) -> None:
    calls = [told(*(record(number) for number in range(first, first + 20))) for first in range(1, 9)]
    added = await asyncio.gather(*(kept.commit(call) for call in calls))
    assert sum(one.added for one in added) == 27
    assert sorted(sequence for _, _, sequence in await listed(kept)) == [*range(1, 28)]


async def test_everything_is_there_after_a_restart_and_the_order_goes_on(url: str) -> None:
    async with opened_database(url) as threads:
        await commit(records_of(threads), record(1), record(2), STORAGE_FULL=4)
    async with opened_database(url) as threads:
        kept = records_of(threads)
        assert await commit(kept, record(2), record(3)) == 1
        assert [sequence for _, _, sequence in await listed(kept)] == [1, 2, 3]
        assert dict((await kept.list(pb.ListRecordsRequest())).dropped) == {"STORAGE_FULL": 4}


@pytest.mark.parametrize(
    "other",
    [record(2, b'{"class":2}'), record(2, kind="outcome"), record(2, time=NOON + timedelta(microseconds=1))],
    ids=["body", "kind", "time"],
)
async def test_a_name_with_other_content_is_refused_and_nothing_of_the_call_is_kept(
    kept: Records, other: pb.Record
) -> None:
    await commit(kept, record(1), record(2), CORRUPT=1)
    error = await refused(kept.commit(told(record(3), other, CORRUPT=9)), Reason.PROTOCOL_VIOLATION)
    assert error.metadata == {"boot_id": "boot1", "sequence": "2"}
    await refused(kept.commit(told(record(4), record(5), record(5, b"[]"))), Reason.PROTOCOL_VIOLATION)
    assert [sequence for _, _, sequence in await listed(kept)] == [1, 2]
    assert dict((await kept.list(pb.ListRecordsRequest())).dropped) == {"CORRUPT": 1}
    assert await commit(kept, record(3)) == 1


async def test_a_body_that_is_not_what_its_digest_says_is_refused_by_name(kept: Records) -> None:
    wrong = record(2)
    wrong.body = b'{"class":3}'
    error = await refused(kept.commit(told(record(1), wrong)), Reason.DIGEST_MISMATCH)
    assert error.metadata == {"boot_id": "boot1", "sequence": "2"}
    assert await listed(kept) == []


def changed(**values: object) -> pb.Record:
    made = record(1)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def without_time() -> pb.Record:
    made = record(1)
    made.ClearField("time")
    return made


def at_no_time() -> pb.Record:
    made = record(1)
    made.time.seconds = 2**60
    return made


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (told(record(1), edge=""), "edge"),
        (told(record(1), edge="../x"), "edge"),
        (told(record(1), tenant="a b"), "tenant"),
        (told(changed(boot_id="")), "records[0].boot_id"),
        (told(record(1), changed(sequence=0)), "records[1].sequence"),
        (told(changed(sequence=2**63)), "records[0].sequence"),
        (told(changed(kind="a\0b")), "records[0].kind"),
        (told(changed(sha256=b"short")), "records[0].sha256"),
        (told(record(1, b"{")), "records[0].body"),
        (told(record(1, b"\xff\xfe")), "records[0].body"),
        (told(record(1, b'{"loss": NaN}')), "records[0].body"),
        (told(record(1, b"[" * 100_000)), "records[0].body"),
        (told(record(1, b"")), "records[0].body"),
        (told(without_time()), "records[0].time"),
        (told(at_no_time()), "records[0].time"),
        (told(*(record(number) for number in range(1, 1002))), "records"),
        (told(*(record(number, b'"' + b"x" * 800_000 + b'"') for number in range(1, 7))), "records"),
        (pb.CommitRecordsRequest(edge="e", dropped={"": 1}), "dropped"),
        (pb.CommitRecordsRequest(edge="e", dropped={"a\0": 1}), "dropped"),
        (pb.CommitRecordsRequest(edge="e", dropped={"X": 2**63}), "dropped['X']"),
        (pb.CommitRecordsRequest(edge="e", dropped={str(number): 1 for number in range(65)}), "dropped"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_a_record_is_refused(
    tmp_path: Path, request_: pb.CommitRecordsRequest, field: str
) -> None:
    async with opened_database(f"sqlite:///{tmp_path}/fleet.db") as threads:
        kept = records_of(threads)
        error = await refused(kept.commit(request_), Reason.FIELD_INVALID)
        assert error.fields[0][0] == field
        assert await listed(kept) == []


async def test_a_call_as_large_as_may_be_is_taken(kept: Records) -> None:
    assert await commit(kept, *(record(number, b'"' + b"x" * 4000 + b'"') for number in range(1, 1001))) == 1000
    assert len(await listed(kept)) == 1000


async def test_pages_go_on_where_the_last_one_ended_also_over_what_came_meanwhile(kept: Records) -> None:
    await commit(kept, *(record(number) for number in range(1, 6)))
    first = await kept.list(pb.ListRecordsRequest(page_size=3))
    await commit(kept, record(6))
    second = await kept.list(pb.ListRecordsRequest(page_size=3, page_token=first.next_page_token))
    assert sequences(first.records) == [1, 2, 3]
    assert sequences(second.records) == [4, 5, 6]
    assert (first.total, second.total, second.next_page_token) == (5, 6, "")


def sequences(found: Sequence[pb.KeptRecord]) -> list[int]:
    return [one.record.sequence for one in found]


async def test_a_page_is_bounded_in_bytes_and_has_one_record_at_least(threads: Threads) -> None:
    kept = Records(threads, SOME, max_commits=1, max_page_bytes=250)
    body = b'"' + b"x" * 98 + b'"'
    await commit(
        kept, record(1, body), record(2, body), record(3, body), record(4, b'"' + b"y" * 998 + b'"'), record(5)
    )
    found: list[list[int]] = []
    token = ""
    while not found or token:
        page = await kept.list(pb.ListRecordsRequest(page_token=token))
        found.append(sequences(page.records))
        token = page.next_page_token
    assert found == [[1, 2], [3], [4], [5]]


async def test_records_are_found_by_head_kind_and_enterprise(kept: Records) -> None:
    await commit(kept, record(1), record(2, kind="outcome"), edge="a")
    await commit(kept, record(3), edge="b")
    await commit(kept, record(4), edge="a", tenant="acme")
    assert [sequence for *_, sequence in await listed(kept, edge="a")] == [1, 2]
    assert [sequence for *_, sequence in await listed(kept, kind="sample")] == [1, 3]
    assert [sequence for *_, sequence in await listed(kept, kind="outcome", edge="b")] == []
    assert [sequence for *_, sequence in await listed(kept, tenant="acme", edge="a")] == [4]


async def test_what_heads_dropped_is_counted_and_never_goes_down(kept: Records) -> None:
    await commit(kept, edge="a", STORAGE_FULL=5, CORRUPT=1)
    await commit(kept, edge="a", STORAGE_FULL=3, QUEUE_FULL=2)
    await commit(kept, edge="b", STORAGE_FULL=10)
    await commit(kept, edge="b", tenant="acme", STORAGE_FULL=100)
    assert dict((await kept.list(pb.ListRecordsRequest())).dropped) == {
        "CORRUPT": 1,
        "QUEUE_FULL": 2,
        "STORAGE_FULL": 15,
    }
    assert dict((await kept.list(pb.ListRecordsRequest(edge="a"))).dropped) == {
        "CORRUPT": 1,
        "QUEUE_FULL": 2,
        "STORAGE_FULL": 5,
    }


async def test_drops_of_every_life_of_a_heads_counts_add_up(kept: Records) -> None:
    for life, count in (("one", 5), ("two", 2), ("two", 3), ("one", 4)):
        await kept.commit(pb.CommitRecordsRequest(edge="a", dropped={"CORRUPT": count}, dropped_life=life))
    assert dict((await kept.list(pb.ListRecordsRequest(edge="a"))).dropped) == {"CORRUPT": 8}


@pytest.mark.parametrize(
    "bounds", [Bounds(max_records=3, max_bytes=MIB), Bounds(max_records=100, max_bytes=33)], ids=["records", "bytes"]
)
async def test_a_full_store_refuses_what_is_new_and_takes_again_what_it_has(threads: Threads, bounds: Bounds) -> None:
    kept = records_of(threads, bounds)
    assert await commit(kept, record(1), record(2)) == 2
    error = await refused(kept.commit(told(record(3), record(4))), Reason.STORAGE_FULL)
    assert error.retry_after_s is not None
    assert await commit(kept, record(3)) == 1
    assert await commit(kept, record(1), record(2), record(3), QUEUE_FULL=2) == 0
    await refused(kept.commit(told(record(4))), Reason.STORAGE_FULL)
    assert [sequence for *_, sequence in await listed(kept)] == [1, 2, 3]


async def test_more_calls_than_may_be_at_once_are_refused_with_a_time(threads: Threads) -> None:
    kept = records_of(threads, max_commits=2)
    loop, begun, go = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def stand(_connection: Connection) -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(WAIT_S)

    standing = asyncio.create_task(threads.write(stand))
    async with asyncio.timeout(WAIT_S):
        await begun.wait()
    waiting = [asyncio.create_task(commit(kept, record(number))) for number in (1, 2)]
    await asyncio.sleep(0)
    error = await refused(kept.commit(told(record(3))), Reason.QUEUE_FULL)
    assert error.retry_after_s is not None
    go.set()
    await standing
    assert await asyncio.gather(*waiting) == [1, 1]
    assert await commit(kept, record(3)) == 1


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ListRecordsRequest(page_size=-1), "page_size"),
        (pb.ListRecordsRequest(page_token="x"), "page_token"),
        (pb.ListRecordsRequest(edge="a/b"), "edge"),
        (pb.ListRecordsRequest(kind="a b"), "kind"),
        (pb.ListRecordsRequest(tenant="ä"), "tenant"),
    ],
    ids=["size", "token", "edge", "kind", "tenant"],
)
async def test_a_page_that_cannot_be_is_refused(tmp_path: Path, request_: pb.ListRecordsRequest, field: str) -> None:
    async with opened_database(f"sqlite:///{tmp_path}/fleet.db") as threads:
        error = await refused(records_of(threads).list(request_), Reason.FIELD_INVALID)
        assert error.fields[0][0] == field


async def test_a_caller_that_leaves_makes_room_for_the_next(threads: Threads) -> None:
    kept = records_of(threads, max_commits=1)
    call = asyncio.create_task(commit(kept, record(1)))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await commit(kept, record(2)) == 1
