"""Several real tails behind relays, and frames at a steady rate: one is killed, slowed, drained, forgotten, and comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from splitmesh.api.segment.v1 import segment_pb2 as pb
from splitmesh.client.hedging import Hedging
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery import Instance, Registration
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.links import PROFILES
from splitmesh.testing.relay import LinkRelay
from tests.support.models import HARD
from tests.support.wire import packed
from tests.support.worlds import MODEL, WAIT_S, World, world

LOOPBACK = PROFILES["loopback"]
FAR = replace(LOOPBACK, rtt_ms=400.0)
"""What a tail looks like that takes far longer than the others."""
FRAME = packed(HARD)
EVERY_S = 0.01
DEADLINE_S = 5.0


@dataclass
class Tails:
    """Tails by node name, each behind a relay, one link to all, and what became of the frames."""

    world: World
    discovery: StaticDiscovery
    link: SegmentLink
    relays: dict[str, LinkRelay] = field(default_factory=dict)
    registrations: list[Registration] = field(default_factory=list)
    failed: list[MeshError] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    """Who answered, in order."""
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def frames(self, count: int) -> Counter[str]:
        """Send so many at a steady rate and wait for all; who answered how many."""
        before = len(self.answered)
        for _ in range(count):
            self.send()
            await asyncio.sleep(EVERY_S)
        await self.settled()
        return Counter(self.answered[before:])

    def send(self) -> None:
        """One more, not waited for."""
        task = asyncio.create_task(self._ask())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def settled(self) -> None:
        await asyncio.gather(*self._under_way)

    async def _ask(self) -> None:
        try:
            result = await self.link.run(FRAME, trace_context=b"", deadline_s=DEADLINE_S)
        except MeshError as error:
            self.failed.append(error)
        else:
            self.answered.append(result.node)

    def uplink(self, name: str) -> pb.Uplink:
        return next(one for one in self.link.uplinks() if one.address == self.relays[name].address)

    async def until(self, true: Callable[[], bool], every_s: float = EVERY_S) -> None:
        """Frames flow until something has come true."""
        async with asyncio.timeout(WAIT_S):
            while not true():
                self.send()
                await asyncio.sleep(every_s)
        await self.settled()

    async def until_open(self, *names: str) -> None:
        await self.until(lambda: all(self.uplink(name).state == pb.UPLINK_STATE_OPEN for name in names), 0.05)


@pytest.fixture
async def tails(tmp_path: Path, registered: Path) -> AsyncIterator[Tails]:
    """Three of them, accepted."""
    async with world(tmp_path, registered) as made, AsyncExitStack() as stack:
        discovery = StaticDiscovery({})
        channels = Channels(discovery)
        stack.push_async_callback(channels.close)
        link = SegmentLink(channels, MODEL, 1, "head-1")
        stack.push_async_callback(link.stop)
        tails = Tails(made, discovery, link)
        for name in ("one", "two", "three"):
            host = await made.start("tail", name=name, credit=256)
            relay = await stack.enter_async_context(LinkRelay(host.address, LOOPBACK))
            tails.relays[name] = relay
            tails.registrations.append(await discovery.register(Instance("tail", name, relay.address)))
        await link.start()
        async with asyncio.timeout(WAIT_S):
            while link.load().tails < 3:  # noqa: ASYNC110  the link tells nobody of what it sees
                await asyncio.sleep(0.01)
        await tails.frames(30)
        assert not tails.failed
        yield tails


async def test_all_tails_get_frames(tails: Tails) -> None:
    for _ in range(5):
        for _ in range(30):
            tails.send()
        await tails.settled()
    assert Counter(tails.answered).keys() == {"one-1", "two-1", "three-1"}


async def test_no_frame_fails_when_a_tail_is_killed_and_it_gets_frames_again_when_it_is_back(tails: Tails) -> None:
    for _ in range(20):
        tails.send()
    tails.relays["one"].down(cut_after_s=0.0)
    got = await tails.frames(60)
    assert got["one-1"] <= 20
    assert (await tails.frames(30)).keys() <= {"two-1", "three-1"}
    assert tails.uplink("one").state == pb.UPLINK_STATE_CONNECTING
    tails.relays["one"].up()
    await tails.until_open("one")
    seen = tails.answered.count("one-1")
    await tails.until(lambda: tails.answered.count("one-1") >= seen + 5)
    assert not tails.failed


async def test_no_frame_fails_when_a_tail_is_stopped_gracefully_under_load(tails: Tails) -> None:
    for _ in range(40):
        tails.send()
    stopping = asyncio.create_task(tails.world.stop("one"))
    await tails.until(stopping.done)
    await stopping
    assert (await tails.frames(30)).keys() <= {"two-1", "three-1"}
    assert not tails.failed


async def test_a_draining_tail_answers_what_it_has(tails: Tails) -> None:
    tails.relays["one"].set_profile(replace(LOOPBACK, rtt_ms=600.0))
    tails.link._hedging = Hedging(0.0)
    for _ in range(60):
        tails.send()
    await asyncio.sleep(0.5)  # they are there, and their answers on the way
    sent, answered = tails.uplink("one").in_flight, tails.answered.count("one-1")
    assert sent
    await tails.world.stop("one")
    await tails.settled()
    assert not tails.failed
    assert tails.answered.count("one-1") == answered + sent


async def test_frames_on_their_way_to_a_tail_that_discovery_forgets_are_answered_by_it(tails: Tails) -> None:
    tails.link._hedging = Hedging(0.0)
    for relay in tails.relays.values():
        relay.set_profile(FAR)
    for _ in range(30):
        tails.send()
    await asyncio.sleep(0.05)
    flying = {f"{name}-1": tails.uplink(name).in_flight for name in tails.relays}
    before = len(tails.answered)
    for registration in tails.registrations:
        await registration.deregister()
    await tails.settled()
    assert not tails.failed
    assert Counter(tails.answered[before:]) == Counter(flying)
    async with asyncio.timeout(WAIT_S):
        while tails.link.uplinks():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(MeshError) as caught:
        await tails.link.run(FRAME, trace_context=b"", deadline_s=DEADLINE_S)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_tail_that_became_far_slower_loses_its_frames_is_ejected_and_returns_when_it_is_well(
    tails: Tails,
) -> None:
    tails.relays["two"].set_profile(FAR)
    await tails.until(lambda: tails.uplink("two").state == pb.UPLINK_STATE_EJECTED)
    got = await tails.frames(50)
    assert got["two-1"] <= 1
    tails.relays["two"].set_profile(LOOPBACK)
    await tails.until_open("two")
    seen = tails.answered.count("two-1")
    await tails.until(lambda: tails.answered.count("two-1") >= seen + 2)
    assert not tails.failed


async def test_frames_to_a_tail_that_falls_silent_are_answered_by_another_long_before_their_deadline(
    tails: Tails,
) -> None:
    await tails.frames(120)  # what the budget of second copies is made of
    begun = asyncio.get_running_loop().time()
    tails.relays["three"].down(refuse_new=False)
    for _ in range(60):  # so many at once that each of them gets some
        tails.send()
    await tails.settled()
    assert asyncio.get_running_loop().time() - begun < DEADLINE_S
    assert not tails.failed
    assert tails.uplink("three").hedged >= 1


async def test_escalation_resumes_within_two_seconds_after_every_tail_was_cut_off(tails: Tails) -> None:
    for relay in tails.relays.values():
        relay.down()
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    for relay in tails.relays.values():
        relay.up()
    healed, seen = loop.time(), len(tails.answered)
    await tails.until(lambda: len(tails.answered) > seen)
    assert loop.time() - healed < 2.0 + 1.0  # the machine may be loaded
