"""Many small contents up and down: a few messages, resumed after broken links, each verified, large ones on their own way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.rate import Rate
from splitmesh.client.registry import RegistryClient
from splitmesh.client.small_contents import GROUP_BYTES
from splitmesh.errors import MeshError, Reason
from splitmesh.testing.relay import PROFILES, LinkRelay
from tests.integration.registry_world import digest, reaching, running
from tests.support.scripted_registry import Scripted, serving

MIB = 1024 * 1024
SMALL = [os.urandom(50 + index) for index in range(600)]
LARGE = os.urandom(MIB + 1)


async def feed(contents: Iterable[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    for data in contents:
        yield digest(data), data


def shas(contents: Sequence[bytes]) -> list[str]:
    return [digest(data) for data in contents]


async def pulled(client: RegistryClient, contents: Sequence[bytes]) -> list[bytes]:
    found = []
    async with aclosing(client.pull_contents(shas(contents))) as items:
        async for sha256, data in items:
            assert digest(data) == sha256
            found.append(data)
    return found


async def test_many_go_up_and_come_down_in_the_order_asked(tmp_path: Path) -> None:
    mixed = [*SMALL, LARGE, b"", LARGE[:MIB], SMALL[0]]
    told: list[tuple[int, int]] = []
    async with running(tmp_path) as world:
        assert await world.client.missing(shas(mixed[:3])) == shas(mixed[:3])
        assert await world.client.push_contents(feed(mixed), on_progress=lambda *seen: told.append(seen)) == len(mixed)
        assert await world.client.missing([*shas(mixed), "0" * 64]) == ["0" * 64]
        assert await pulled(world.client, mixed) == mixed
        assert await pulled(world.client, mixed[::-1]) == mixed[::-1]
        assert await pulled(world.client, []) == []
        assert await world.client.push_contents(feed([])) == 0
    assert told == sorted(told)
    assert told[-1][0] == sum(map(len, mixed))


async def test_more_than_one_answer_holds_are_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.client.push_contents(feed(SMALL[:2]))
        asked = [digest(str(number).encode()) for number in range(10_500)]
        asked[10_200] = digest(SMALL[1])
        assert await world.client.missing(asked) == [sha for sha in asked if sha != digest(SMALL[1])]


class _Cutting:
    """A rate that passes everything, and takes the link away before the message it is told."""

    bytes_per_s = 1e9

    def __init__(self, relay: LinkRelay, before: int) -> None:
        self._relay = relay
        self._left = before

    async def take(self, size_bytes: int) -> None:
        self._left -= 1
        if not self._left:
            self._relay.down(cut_after_s=0.0)
            asyncio.get_running_loop().call_later(0.2, self._relay.up)


@pytest.mark.parametrize("before", [1, 2, 9, 40])
async def test_a_push_over_a_link_that_breaks_sends_what_is_missing(tmp_path: Path, before: int) -> None:
    contents = [os.urandom(256 * 1024) for _ in range(3 * GROUP_BYTES // (256 * 1024))]
    async with (
        running(tmp_path) as world,
        LinkRelay(world.address, PROFILES["loopback"]) as relay,
        reaching(relay.address) as channels,
    ):
        client = RegistryClient(channels, rate=cast(Rate, _Cutting(relay, before)))
        assert await client.push_contents(feed(contents)) == len(contents)
        assert await world.client.missing(shas(contents)) == []
        assert relay.uplink_bytes < sum(map(len, contents)) + GROUP_BYTES


async def test_a_pull_over_a_link_that_breaks_goes_on(tmp_path: Path) -> None:
    contents = [os.urandom(64 * 1024) for _ in range(100)]
    async with (
        running(tmp_path) as world,
        LinkRelay(world.address, PROFILES["loopback"]) as relay,
        reaching(relay.address) as channels,
    ):
        await world.client.push_contents(feed(contents))
        found = []
        async with aclosing(RegistryClient(channels).pull_contents(shas(contents))) as items:
            async for _, data in items:
                found.append(data)
                if len(found) in (10, 50):
                    relay.down(cut_after_s=0.0)
                    asyncio.get_running_loop().call_later(0.2, relay.up)
        assert found == contents


async def test_what_its_digest_does_not_say_is_not_sent(tmp_path: Path) -> None:
    async def lying() -> AsyncIterator[tuple[str, bytes]]:
        yield digest(b"good"), b"good"
        yield digest(b"expected"), b"something else"

    async with running(tmp_path) as world:
        with pytest.raises(MeshError) as caught:
            await world.client.push_contents(lying())
        assert caught.value.reason is Reason.DIGEST_MISMATCH
        assert digest(b"something else") not in world.visible()


async def test_what_is_not_there_is_said_and_what_came_before_it_is_had(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.client.push_contents(feed([LARGE, b"after"]))
        found: list[bytes] = []

        async def pull() -> None:
            async for _, data in world.client.pull_contents([digest(LARGE), "0" * 64, digest(b"after")]):
                found.append(data)

        with pytest.raises(MeshError) as caught:
            await pull()
        assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND
        assert found == [LARGE]


async def test_a_store_that_is_full_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, max_store_bytes=200_000) as world:
        with pytest.raises(MeshError) as caught:
            await world.client.push_contents(feed(os.urandom(1000) for _ in range(5000)))
        assert caught.value.reason is Reason.STORAGE_FULL


class _Liar(Scripted):
    """Sends other contents than it was asked for."""

    def __init__(self, answer: pb.PullContentsResponse) -> None:
        self._answer = answer

    async def PullContents(self, request: Any, context: Any) -> AsyncIterator[pb.PullContentsResponse]:
        yield self._answer


@pytest.mark.parametrize(
    ("sha256", "data", "reason"),
    [
        (digest(b"a"), b"b", Reason.DIGEST_MISMATCH),
        (digest(b"b"), b"b", Reason.PROTOCOL_VIOLATION),
        ("../../x", b"a", Reason.PROTOCOL_VIOLATION),
    ],
)
async def test_a_registry_that_lies_is_not_believed(sha256: str, data: bytes, reason: Reason) -> None:
    answer = pb.PullContentsResponse(contents=[pb.Content(sha256=sha256, data=data)])
    async with serving(_Liar(answer)) as channels:
        with pytest.raises(MeshError) as caught:
            await pulled(RegistryClient(channels), [b"a"])
        assert caught.value.reason is reason


async def test_more_than_was_asked_for_is_a_violation() -> None:
    one = pb.Content(sha256=digest(b"a"), data=b"a")
    async with serving(_Liar(pb.PullContentsResponse(contents=[one, one]))) as channels:
        with pytest.raises(MeshError) as caught:
            await pulled(RegistryClient(channels), [b"a"])
        assert caught.value.reason is Reason.PROTOCOL_VIOLATION
