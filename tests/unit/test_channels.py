"""Channels: one per address, instances in turn, and only methods that may be repeated are retried."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

import splitmesh.api
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import (
    IDEMPOTENT,
    MESSAGE_HEADROOM_BYTES,
    Channels,
    _service_config,
    mesh_errors,
    open_channel,
    transport_options,
)
from splitmesh.kernel.discovery import Instance
from splitmesh.kernel.discovery_static import StaticDiscovery


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    made = Channels(StaticDiscovery({"tail": ["127.0.0.1:1", "127.0.0.1:2"], "head": ["127.0.0.1:3"]}))
    yield made
    await made.close()


async def test_instances_are_taken_in_turn_and_each_has_one_channel(channels: Channels) -> None:
    taken = [await channels.to("tail") for _ in range(4)]
    assert taken[0] is taken[2] is not taken[1]
    assert taken[1] is taken[3]
    assert set(taken) == {channels.at("127.0.0.1:1"), channels.at("127.0.0.1:2")}


async def test_a_service_nobody_offers_is_unavailable_and_may_come(channels: Channels) -> None:
    with pytest.raises(MeshError) as caught:
        await channels.to("registry")
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    assert caught.value.retry_after_s is not None


async def test_a_forgotten_address_gets_a_new_channel(channels: Channels) -> None:
    first = channels.at("127.0.0.1:3")
    await channels.forget(["127.0.0.1:3", "127.0.0.1:9"])
    assert channels.at("127.0.0.1:3") is not first


async def test_a_failed_call_is_the_mesh_error_behind_it_and_other_errors_pass(channels: Channels) -> None:
    call = (await channels.to("head")).unary_unary("/a/B")
    with pytest.raises(MeshError) as caught:
        async with mesh_errors():
            await call(b"", timeout=5)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE
    with pytest.raises(KeyError):
        async with mesh_errors():
            raise KeyError("x")


def test_messages_have_a_finite_limit_above_that_of_frames() -> None:
    options = dict(transport_options(1000))
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"]
    assert options["grpc.max_receive_message_length"] == 1000 + MESSAGE_HEADROOM_BYTES
    assert options["grpc.max_metadata_size"] == 16 * 1024


def test_what_is_retried_exists_is_unary_and_only_when_unavailable() -> None:
    from google.protobuf import descriptor_pool

    from splitmesh.api.compression.v1 import compression_pb2
    from splitmesh.api.datasets.v1 import datasets_pb2
    from splitmesh.api.fleet.v1 import fleet_pb2
    from splitmesh.api.registry.v1 import registry_pb2
    from splitmesh.api.routing.v1 import routing_pb2
    from splitmesh.api.samples.v1 import samples_pb2
    from splitmesh.api.segment.v1 import segment_pb2

    messages = (compression_pb2, datasets_pb2, fleet_pb2, registry_pb2, routing_pb2, samples_pb2, segment_pb2)
    assert all((splitmesh.api, *messages))
    for service, methods in IDEMPOTENT:
        known = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        for method in methods:
            assert not known[method].client_streaming, method
            assert not known[method].server_streaming, method
    (entry,) = json.loads(_service_config())["methodConfig"]
    assert entry["retryPolicy"]["retryableStatusCodes"] == [grpc.StatusCode.UNAVAILABLE.name]
    assert {"service": "splitmesh.api.registry.v1.RegistryService", "method": "GetVersion"} in entry["name"]
    assert not any(name["method"] in ("CreateVersion", "Infer") for name in entry["name"])


def _closed(channel: grpc.aio.Channel) -> bool:
    return channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_held_channel_is_shared_and_closed_by_the_last_holder(channels: Channels) -> None:
    async with channels.hold("127.0.0.1:1") as first:
        async with channels.hold("127.0.0.1:1") as second, channels.hold("127.0.0.1:2") as other:
            assert first is second is not other
        assert _closed(other)
        assert not _closed(first)
    assert _closed(first)
    async with channels.hold("127.0.0.1:1") as again:
        assert not _closed(again)


async def test_leaving_a_held_channel_takes_none_from_those_who_hold_nothing(channels: Channels) -> None:
    taken = channels.at("127.0.0.1:1")
    async with channels.hold("127.0.0.1:1"):
        pass
    assert not _closed(taken)


async def test_a_holder_may_leave_after_everything_is_closed(channels: Channels) -> None:
    async with channels.hold("127.0.0.1:1") as channel:
        await channels.close()
        assert _closed(channel)


class _Told(StaticDiscovery):
    """Knows what the test tells it, per service."""

    def __init__(self) -> None:
        super().__init__({})
        self._news: dict[str, asyncio.Queue[tuple[Instance, ...]]] = {"one": asyncio.Queue(), "two": asyncio.Queue()}

    async def tell(self, service: str, *instances: Instance) -> None:
        """Returns when the watcher has done what it does about it."""
        self._news[service].put_nowait(instances)
        await self._news[service].join()

    async def watch(self, service: str) -> AsyncIterator[tuple[Instance, ...]]:
        while True:
            yield await self._news[service].get()
            self._news[service].task_done()


async def test_the_channel_to_a_vanished_tail_is_closed_when_no_link_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[grpc.aio.Channel] = []

    def spied(address: str, **options: Any) -> grpc.aio.Channel:
        opened.append(open_channel(address, **options))
        return opened[-1]

    monkeypatch.setattr("splitmesh.kernel.channels.open_channel", spied)
    discovery = _Told()
    channels = Channels(discovery)
    links = {name: SegmentLink(channels, "m", 1, "head-1", service=name) for name in ("one", "two")}
    for name, link in links.items():
        await link.start()
        await discovery.tell(name, Instance("tail", "tail-1", "127.0.0.1:1"))
    (channel,) = opened
    await discovery.tell("one")
    assert not _closed(channel)
    await discovery.tell("two")
    assert _closed(channel)
    for link in links.values():
        await link.stop()
    await channels.close()


async def test_who_reads_slowly_has_channels_of_its_own_that_are_closed_with_the_others() -> None:
    channels = Channels(StaticDiscovery({"tail": ["127.0.0.1:1"]}))
    paced = channels.paced()
    assert channels.paced() is paced
    channel = await paced.to("tail")
    assert channel is not await channels.to("tail")
    await channels.close()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
