"""Samples of several heads as one collection: none twice, none missing, none made up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from splitmesh.api.samples.v1 import samples_pb2 as pb
from splitmesh.api.samples.v1 import samples_pb2_grpc
from splitmesh.client import samples as client_module
from splitmesh.client.sample_messages import sample_to
from splitmesh.client.samples import SampleClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.samples.record import new_id
from splitmesh.samples.store import SampleStore
from tests.integration.kept_samples import ROOMY, client_of, serving
from tests.unit.sample_records import NOW, add, picture, sample, spread

UNKNOWN = new_id(NOW, bytes(10))


async def refused(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(MeshError) as error:
        await call
    return error.value


@asynccontextmanager
async def two_heads(folder: Path, **fields: Any) -> AsyncIterator[tuple[SampleStore, SampleStore, SampleClient]]:
    async with AsyncExitStack() as stack:
        a, b = (stack.enter_context(SampleStore(folder / name / "samples", ROOMY)) for name in "ab")
        addresses = [
            await stack.enter_async_context(serving(folder / name, node=name, sample_sharing="picture", **fields))
            for name in "ab"
        ]
        yield a, b, await stack.enter_async_context(client_of(addresses))


async def test_the_samples_of_all_heads_are_listed_newest_first(tmp_path: Path) -> None:
    async with two_heads(tmp_path) as (a, b, client):
        kept = [add((a, a, b)[n % 3], n).id for n in range(10)]
        assert [one.record.id for one in await client.list(limit=4)] == kept[:5:-1]
        assert [one.record.id async for one in client.all(page=2)] == kept[::-1]
        assert (await refused(client.list(limit=0))).reason is Reason.FIELD_INVALID


async def test_a_sample_is_asked_and_labelled_where_it_is(tmp_path: Path) -> None:
    async with two_heads(tmp_path) as (a, b, client):
        here, there = add(a, 1), add(b, 2)
        assert (await client.get(there.id))[0].record == there
        assert await client.content(there.id) == ("image/png", picture(spread(2)))
        assert await client.label({here.id: "good", there.id: "bad"}, "ana") == 2
        assert (a.get(here.id).record.label, b.get(there.id).record.label) == ("good", "bad")
        error = await refused(client.label({here.id: "x", there.id: "x", UNKNOWN: "x"}, "ana"))
        assert error.reason is Reason.SAMPLE_NOT_FOUND
        assert a.get(here.id).record.label == "good"
        assert (await refused(client.get(UNKNOWN))).reason is Reason.SAMPLE_NOT_FOUND
        assert [(one.head, one.labelled) for one in await client.counts()] == [("a", 1), ("b", 1)]


async def test_more_labels_than_fit_into_a_request_go_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_LABELS", 2)
    async with two_heads(tmp_path) as (a, b, client):
        labels = {add((a, b)[n % 2], n).id: "bad" for n in range(7)}
        assert await client.label(labels, "ana") == 7
        assert (a.counts().labelled, b.counts().labelled) == (4, 3)


async def test_processes_behind_one_port_are_one_head(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        folders = [tmp_path / f"replica-{n}" for n in (1, 2)]
        stores = [stack.enter_context(SampleStore(folder / "samples", ROOMY)) for folder in folders]
        addresses = [
            await stack.enter_async_context(serving(folder, node=f"mec-{n}")) for n, folder in enumerate(folders, 1)
        ]
        kept = [add(stores[n % 2], n).id for n in range(6)]
        for n, known in enumerate((addresses, addresses[:1], addresses[1:])):
            client = await stack.enter_async_context(client_of(known))
            assert [one.record.id for one in await client.list()] == kept[::-1]
            assert await client.label({kept[0]: f"label {n}", kept[1]: f"label {n}"}, "ana") == 2
            (counts,) = await client.counts()
            assert (counts.head, counts.samples, counts.labelled) == ("mec", 6, 2)


async def test_a_head_that_keeps_none_is_passed_over_and_one_that_is_away_is_not(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        store = stack.enter_context(SampleStore(tmp_path / "a" / "samples", ROOMY))
        well = await stack.enter_async_context(serving(tmp_path / "a"))
        none = await stack.enter_async_context(serving(tmp_path / "b", samples=False))
        kept = add(store, 1)
        client = await stack.enter_async_context(client_of([none, well]))
        assert [one.record for one in await client.list()] == [kept]
        assert (await client.get(kept.id))[0].record == kept
        assert await client.label({kept.id: "bad"}, "ana") == 1
        assert (await refused(client.get(UNKNOWN))).reason is Reason.SAMPLE_NOT_FOUND
        assert len(await client.counts()) == 1
        async with serving(tmp_path / "c") as gone:
            pass
        client = await stack.enter_async_context(client_of([well, gone]))
        errors = await asyncio.gather(
            *(refused(call) for call in (client.list(), client.counts(), client.get(UNKNOWN)))
        )
        assert {error.reason for error in errors} == {Reason.SERVICE_UNAVAILABLE}
        assert (await client.get(kept.id))[0].record.id == kept.id


async def test_without_a_head_there_is_nobody_to_ask() -> None:
    channels = Channels(StaticDiscovery({}))
    assert (await refused(SampleClient(channels).list())).reason is Reason.SERVICE_UNAVAILABLE
    await channels.close()


class Liar(samples_pb2_grpc.SampleServiceServicer):
    """A head that breaks its word."""

    GetSample: Any = None
    GetSampleCounts: Any = None
    LabelSample: Any = None

    def __init__(self) -> None:
        self.chunks: list[pb.GetContentResponse] = []
        self.sample = sample_to(sample(1), 0)

    async def ListSamples(self, request: Any, context: Any) -> pb.ListSamplesResponse:
        return pb.ListSamplesResponse(samples=[self.sample])

    async def GetContent(self, request: Any, context: Any) -> AsyncIterator[pb.GetContentResponse]:
        for chunk in self.chunks:
            yield chunk


async def test_what_a_head_must_not_send_is_not_taken() -> None:
    liar = Liar()
    server = grpc.aio.server()
    samples_pb2_grpc.add_SampleServiceServicer_to_server(liar, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with client_of([f"127.0.0.1:{port}"]) as client:
            first = pb.GetContentResponse(media_type="image/png", size_bytes=3, data=b"ab")
            for chunks in (
                [],
                [first],
                [first, pb.GetContentResponse(data=b"cd")],
                [pb.GetContentResponse(size_bytes=1 << 40, data=b"x" * (1 << 20))] * 65,
            ):
                liar.chunks = chunks
                assert (await refused(client.content(UNKNOWN))).reason is Reason.PROTOCOL_VIOLATION
            liar.chunks = [first, pb.GetContentResponse(data=b"c")]
            assert await client.content(UNKNOWN) == ("image/png", b"abc")
            for wrong in ({"id": "x"}, {"kind": 0}, {"version": 0}, {"picture": "x"}):
                liar.sample = sample_to(sample(1), 0)
                for name, value in wrong.items():
                    setattr(liar.sample, name, value)
                assert (await refused(client.list())).reason is Reason.PROTOCOL_VIOLATION
    finally:
        await server.stop(0)
