"""One link to tails that do what the test says: retries, refusals, hedges, cancelling, and what the link tells of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

from splitmesh.api.segment.v1 import segment_pb2 as pb
from splitmesh.client.balance import Policy
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.segment import SegmentLink, SegmentResult
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.tensor import TensorSpec, pack
from splitmesh.testing.links import PROFILES
from splitmesh.testing.relay import LinkRelay
from tests.support.fake_tail import Answer, FakeTail, serving

WAIT_S = 20.0
FRAME = pack([("t", np.arange(8, dtype=np.uint8).reshape(1, 8))], "identity")
WIRE = [TensorSpec("t", "uint8", (-1, 8))]


@asynccontextmanager
async def linked(
    *tails: FakeTail, estimator: LinkEstimator | None = None, policy: Policy | None = None, priority: int = 0
) -> AsyncIterator[SegmentLink]:
    """A link that all tails have accepted."""
    async with AsyncExitStack() as stack:
        for tail in tails:
            await stack.enter_async_context(serving(tail))
        channels = Channels(StaticDiscovery({"tail": [tail.address for tail in tails]}))
        stack.push_async_callback(channels.close)
        link = SegmentLink(channels, "m", 1, "head-1", wire=WIRE, estimator=estimator, policy=policy, priority=priority)
        stack.push_async_callback(link.stop)
        await link.start()
        await until(lambda: link.load().tails == len(tails))
        yield link


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not done():  # noqa: ASYNC110  the link tells nobody of what it sees
            await asyncio.sleep(0.005)


async def ask(link: SegmentLink, deadline_s: float = WAIT_S) -> SegmentResult:
    return await link.run(FRAME, trace_context=b"", deadline_s=deadline_s)


def who(result: SegmentResult) -> str:
    named = result.outputs["who"].tobytes().decode()
    assert named == result.node
    return named


def refusing(reason: Reason, retry_after_s: float | None = None) -> Answer:
    async def refuse(frame: pb.SegmentFrame) -> float:
        raise MeshError(reason, "as the test wants", retry_after_s=retry_after_s)

    return refuse


async def never(frame: pb.SegmentFrame) -> float:
    await asyncio.Event().wait()
    return 0.0


# one tail fails, another answers


@pytest.mark.parametrize(
    "reason",
    [
        Reason.QUEUE_FULL,
        Reason.NOT_READY,
        Reason.INTERNAL,
        Reason.SERVICE_UNAVAILABLE,
        Reason.CANCELLED,
        Reason.MODEL_CORRUPT,
        Reason.PROTOCOL_VIOLATION,
    ],
    ids=str,
)
async def test_what_one_tail_cannot_do_another_does(reason: Reason) -> None:
    bad, good = FakeTail("bad", refusing(reason)), FakeTail("good")
    async with linked(bad, good) as link:
        assert [who(await ask(link)) for _ in range(20)] == ["good"] * 20
        assert bad.seen
        assert {one.node: one.failed for one in link.uplinks()} == {"bad": len(bad.seen), "good": 0}


async def test_what_is_wrong_with_the_frame_is_wrong_everywhere() -> None:
    tails = [FakeTail(name, refusing(Reason.TENSOR_NOT_FINITE)) for name in ("a", "b")]
    async with linked(*tails) as link:
        with pytest.raises(MeshError) as caught:
            await ask(link)
    assert caught.value.reason is Reason.TENSOR_NOT_FINITE
    assert sum(len(tail.seen) for tail in tails) == 1


async def test_when_every_tail_refuses_the_frame_gets_the_last_ones_reason() -> None:
    tails = [FakeTail(name, refusing(Reason.QUEUE_FULL, 5.0)) for name in ("a", "b", "c")]
    async with linked(*tails) as link:
        with pytest.raises(MeshError) as caught:
            await ask(link)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert [len(tail.seen) for tail in tails] == [1, 1, 1]
        with pytest.raises(MeshError) as caught:
            await ask(link)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert 4.0 < (caught.value.retry_after_s or 0) <= 5.0
    assert [len(tail.seen) for tail in tails] == [1, 1, 1]


async def test_a_tail_that_named_a_time_is_left_alone_until_then() -> None:
    busy, free = FakeTail("busy", refusing(Reason.QUEUE_FULL, 0.3)), FakeTail("free")
    async with linked(busy, free) as link:
        while not busy.seen:
            await ask(link)
        busy.answer = free.answer
        for _ in range(20):
            assert who(await ask(link)) == "free"
        assert len(busy.seen) == 1
        await asyncio.sleep(0.35)
        await until_answered_by(link, "busy")


async def until_answered_by(link: SegmentLink, node: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while who(await ask(link)) != node:
            pass


async def test_no_retry_goes_beyond_the_deadline() -> None:
    async with linked(FakeTail("a", never), FakeTail("b", never)) as link:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(MeshError) as caught:
            await ask(link, 0.2)
        assert caught.value.reason is Reason.DEADLINE_EXPIRED
        assert asyncio.get_running_loop().time() - begun < 5


async def test_frames_above_every_tails_credit_are_refused_at_once() -> None:
    async with linked(FakeTail("a", never, credit=2), FakeTail("b", never, credit=1)) as link:
        waiting = [asyncio.create_task(ask(link)) for _ in range(3)]
        await until(lambda: link.in_flight == 3)
        with pytest.raises(MeshError) as caught:
            await ask(link)
        assert caught.value.reason is Reason.QUEUE_FULL
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert link.in_flight == 0


# late frames


async def _seasoned(link: SegmentLink, frames: int = 100) -> None:
    for _ in range(frames):
        await ask(link)


async def test_a_late_frame_goes_to_a_second_tail_and_the_first_one_is_told() -> None:
    tails = {name: FakeTail(name) for name in ("a", "b")}
    async with linked(*tails.values()) as link:
        await _seasoned(link)
        before = {one.node: one.hedged for one in link.uplinks()}
        for tail in tails.values():
            tail.answer = _first_one_never(tail)
        result = await ask(link, 10.0)
        assert result.round_trip_ms < 9000
        late = next(tail for name, tail in tails.items() if name != who(result))
        await until(lambda: late.seen[-1].frame_id in late.cancelled)
        assert {one.node: one.hedged - before[one.node] for one in link.uplinks()} == {late.name: 1, who(result): 0}
        assert link.in_flight == 0


def _first_one_never(tail: FakeTail) -> Answer:
    """The first frame that comes to any of them from now on stays without an answer."""

    async def answer(frame: pb.SegmentFrame) -> float:
        if not _silent:
            _silent.append(tail.name)
            await asyncio.Event().wait()
        return 0.0

    return answer


_silent: list[str] = []


@pytest.fixture(autouse=True)
def nobody_was_silent() -> None:
    _silent.clear()


async def test_late_frames_of_a_single_tail_are_waited_for() -> None:
    only = FakeTail("only")
    async with linked(only) as link:
        await _seasoned(link)

        async def slowly(frame: pb.SegmentFrame) -> float:
            await asyncio.sleep(0.3)
            return 0.0

        only.answer = slowly
        await ask(link)
    assert len(only.seen) == 101


async def test_extra_frames_stay_within_the_budget_when_everything_is_late() -> None:
    tails = [FakeTail(name) for name in ("a", "b", "c")]
    async with linked(*tails, policy=Policy(hedge_budget=0.05, eject_factor=0.0)) as link:
        await _seasoned(link)

        async def slowly(frame: pb.SegmentFrame) -> float:
            await asyncio.sleep(0.15)
            return 0.0

        for tail in tails:
            tail.answer = slowly
        before = sum(len(tail.seen) for tail in tails)
        await asyncio.gather(*(ask(link) for _ in range(60)))
        extra = sum(len(tail.seen) for tail in tails) - before - 60
    assert 1 <= extra <= 5 + 3  # what 100 frames saved up, and a share of 60


async def test_nothing_is_sent_twice_to_tails_that_say_they_are_crowded() -> None:
    async def crowded(frame: pb.SegmentFrame) -> float:
        await asyncio.sleep(0.1 if len(_silent) else 0)
        return 500.0

    tails = [FakeTail(name, crowded) for name in ("a", "b")]
    async with linked(*tails, policy=Policy(eject_factor=0.0)) as link:
        await _seasoned(link)
        _silent.append("slow now")
        await asyncio.gather(*(ask(link) for _ in range(10)))
    assert sum(len(tail.seen) for tail in tails) == 110


async def test_frames_that_a_tail_holds_when_it_is_ejected_are_answered_by_another_whatever_the_budget() -> None:
    silent, good = FakeTail("silent"), FakeTail("good")
    async with linked(silent, good, policy=Policy(hedge_budget=0.001)) as link:
        await _seasoned(link)
        silent.answer = never
        before = len(silent.seen)
        results = await asyncio.gather(*(ask(link) for _ in range(20)))
        assert len(silent.seen) - before >= 3
        assert {who(result) for result in results} == {"good"}
        assert {one.node: one.state for one in link.uplinks()}["silent"] == pb.UPLINK_STATE_EJECTED


# what the tails are told


async def test_a_tail_is_told_when_nobody_waits_any_more_and_not_of_answered_frames() -> None:
    tail = FakeTail("a")
    async with linked(tail) as link:
        await ask(link)
        tail.answer = never
        waiting = asyncio.create_task(ask(link))
        await until(lambda: len(tail.seen) == 2)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        with pytest.raises(MeshError):
            await ask(link, 0.1)
        await until(lambda: len(tail.cancelled) == 2)
        assert tail.cancelled == [frame.frame_id for frame in tail.seen[1:]]


async def test_streams_open_with_the_priority_and_frames_name_no_tensors_that_the_version_states() -> None:
    tail = FakeTail("a")
    async with linked(tail, priority=7) as link:
        await ask(link)
        other = pack([("t", np.zeros((1, 9), np.uint8))], "identity")
        await link.run(other, trace_context=bytes(25), deadline_s=WAIT_S)
    assert [one.priority for one in tail.opened] == [7]
    lean, stated = tail.seen
    assert not lean.header.tensors
    assert (lean.payload, lean.trace_context) == (bytes(FRAME.payload), b"")
    assert [spec.name for spec in stated.header.tensors] == ["t"]
    assert stated.trace_context == bytes(25)


# what the link tells of itself


async def test_a_link_tells_of_every_stream_and_of_its_load() -> None:
    async def in_five_ms(frame: pb.SegmentFrame) -> float:
        await asyncio.sleep(0.005)
        return 40_000.0

    fast, slow = FakeTail("fast"), FakeTail("slow", in_five_ms)
    estimator = LinkEstimator(1e4, 10.0)
    async with linked(fast, slow, estimator=estimator) as link:
        await asyncio.gather(*(ask(link) for _ in range(16)))
        uplinks = {one.node: one for one in link.uplinks()}
        assert {one.state for one in uplinks.values()} == {pb.UPLINK_STATE_OPEN}
        assert {(one.model, one.version, one.address) for one in uplinks.values()} == {
            ("m", 1, tail.address) for tail in (fast, slow)
        }
        assert sum(one.answered for one in uplinks.values()) == 16
        assert uplinks["slow"].latency_ms >= 5
        assert uplinks["slow"].backlog_ms > 30_000
        facts = estimator.facts()
        load = link.load()
        assert (load.tails, load.backlog_ms) == (2, 0.0)
        assert (load.goodput_mbps, load.rtt_ms, load.loss) == (facts.goodput_mbps, facts.rtt_ms, facts.loss)


async def test_a_link_without_tails_says_so() -> None:
    channels = Channels(StaticDiscovery({"tail": ["127.0.0.1:1"]}))
    link = SegmentLink(channels, "m", 1, "head-1")
    await link.start()
    await until(lambda: bool(link.uplinks()))
    (uplink,) = link.uplinks()
    assert (uplink.node, uplink.state) == ("", pb.UPLINK_STATE_CONNECTING)
    assert link.load().tails == 0
    with pytest.raises(MeshError) as caught:
        await ask(link)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    await link.stop()
    await channels.close()


# a link that swallows


async def test_a_link_that_takes_everything_and_brings_nothing_is_seen_and_frames_wait_for_nobody() -> None:
    """Without a limit to the wait for a ping's answer gRPC believes in such a link for a minute, three times ``WAIT_S``."""
    tail = FakeTail("only")
    async with serving(tail), LinkRelay(tail.address, PROFILES["loopback"]) as relay:
        channels = Channels(StaticDiscovery({"tail": [relay.address]}))
        link = SegmentLink(channels, "m", 1, "head-1", wire=WIRE)
        try:
            await link.start()
            await until(lambda: link.available)
            relay.down(refuse_new=False)
            await until(lambda: not link.available)
            with pytest.raises(MeshError) as refused:
                await ask(link)
            assert refused.value.reason is Reason.SERVICE_UNAVAILABLE
            relay.up()
            await until(lambda: link.available)
            await ask(link)
        finally:
            await link.stop()
            await channels.close()
