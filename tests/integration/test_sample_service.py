"""SampleService of a head over a real connection: what may leave it, and what may not."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image

from edge.head.samples import servicer as samples_servicer
from splitmesh.api.samples.v1 import samples_pb2 as pb
from splitmesh.api.samples.v1 import samples_pb2_grpc
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors, open_channel
from splitmesh.samples.beside import Beside
from splitmesh.samples.kept import Added, Filter
from splitmesh.samples.record import new_id
from splitmesh.samples.store import SampleStore
from tests.integration.kept_samples import ROOMY, head_with, serving
from tests.unit.sample_records import NOW, add, encoded, picture, sample, spread

UNKNOWN = new_id(NOW, bytes(10))
ALL = "picture,thumbnail,features"


async def refused(call: Awaitable[Any]) -> MeshError:
    with pytest.raises(MeshError) as error:
        await call
    return error.value


def asked(**fields: Any) -> pb.ListSamplesRequest:
    return pb.ListSamplesRequest(filter=pb.SampleFilter(**fields))


async def test_records_come_page_by_page_newest_first_and_as_they_were_kept(tmp_path: Path) -> None:
    async with head_with(tmp_path) as (store, client):
        full = {
            "ease": 0.25,
            "score": "margin",
            "exit_label": "good",
            "exit_confidence": 0.5,
            "tail_label": "bad",
            "tail_confidence": 0.0,
            "trace_id": "a" * 32,
            "split_group": "shift 3",
            "captured_at": NOW + timedelta(microseconds=123),
        }
        kept = [add(store, n, **(full if n == 0 else {})) for n in range(5)]
        bare = store.add(sample(9))
        assert isinstance(bare, Added)
        store.label(kept[2].id, "bad", "ana", NOW)
        kept[2] = store.get(kept[2].id).record
        everything = [bare.record, *kept[::-1]]
        assert [one.record for one in await client.list()] == everything
        assert [one.record async for one in client.all(page=2)] == everything
        assert [one.record for one in await client.list(limit=2)] == everything[:2]
        store.add(sample(60), picture(spread(1)))
        assert [one.duplicates for one in await client.list(limit=10)] == [0, 0, 0, 0, 1, 0]


async def test_a_filter_is_the_heads(tmp_path: Path) -> None:
    async with head_with(tmp_path) as (store, client):
        one = add(store, 1, camera="a", kind="audit")
        two = add(store, 2, model="cells", kind="disputed", camera="")
        three = add(store, 3)
        store.label(three.id, "bad", "ana", NOW)
        at = two.captured_at
        for wanted, found in (
            (Filter(camera="a"), [one]),
            (Filter(camera=""), [two]),
            (Filter(kinds=("disputed", "audit")), [two, one]),
            (Filter(labelled=True), [three]),
            (Filter(labelled=False), [two, one]),
            (Filter(label="bad"), [three]),
            (Filter(model="cells"), [two]),
            (Filter(since=at), [three, two]),
            (Filter(until=at), [one]),
        ):
            assert [entry.record.id for entry in await client.list(wanted)] == [record.id for record in found], wanted
        assert (await refused(client.list(Filter(version=3)))).reason is Reason.FIELD_INVALID


async def test_a_sample_has_its_history_and_an_unknown_one_is_none(tmp_path: Path) -> None:
    async with head_with(tmp_path) as (store, client):
        kept = add(store, 1)
        assert await client.label({kept.id: "bad"}, "ana") == 1
        assert await client.label({kept.id: None}, "bo") == 1
        found, history = await client.get(kept.id)
        assert found.record == kept
        assert [(entry.label, entry.by) for entry in history] == [("bad", "ana"), (None, "bo")]
        error = await refused(client.get(UNKNOWN))
        assert (error.reason, error.metadata["sample"]) == (Reason.SAMPLE_NOT_FOUND, UNKNOWN)
        assert (await refused(client.content(UNKNOWN))).reason is Reason.CONTENT_NOT_ALLOWED


async def test_labels_are_all_given_or_none_with_the_heads_time(tmp_path: Path) -> None:
    later = NOW + timedelta(days=1)
    async with head_with(tmp_path, servicer={"now": lambda: later}) as (store, client):
        one, two = add(store, 1), add(store, 2)
        assert (await refused(client.label({one.id: "a", UNKNOWN: "b"}, "ana"))).reason is Reason.SAMPLE_NOT_FOUND
        for labels, by in (({one.id: "a"}, ""), ({one.id: "x" * 201}, "ana"), ({one.id: "a"}, "x" * 129)):
            assert (await refused(client.label(labels, by))).reason is Reason.FIELD_INVALID
        assert store.counts().labelled == 0
        assert await client.label({one.id: "a", two.id: "b"}, "ana") == 2
        assert await client.label({one.id: "a", two.id: "c"}, "ana") == 1
        assert await client.label({}, "ana") == 0
        assert store.get(one.id).record.labelled_at == later


async def test_nothing_leaves_a_head_but_records_unless_it_is_allowed(tmp_path: Path) -> None:
    async with head_with(tmp_path) as (store, client):
        kept = add(store, 1)
        for kind in ("picture", "thumbnail", "features"):
            error = await refused(client.content(kept.id, kind))
            assert (error.reason, error.metadata["kind"]) == (Reason.CONTENT_NOT_ALLOWED, kind)
    async with head_with(tmp_path, sample_sharing="thumbnail") as (_, client):
        media_type, data = await client.content(kept.id, "thumbnail")
        assert media_type == "image/jpeg"
        assert Image.open(io.BytesIO(data)).size == (9, 8)
        assert (await refused(client.content(kept.id, "picture"))).reason is Reason.CONTENT_NOT_ALLOWED


async def test_contents_of_several_chunks_arrive_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    large = encoded(Image.fromarray(noise), "PNG")
    assert len(large) > 2 * samples_servicer.CHUNK_BYTES
    async with head_with(tmp_path, sample_sharing=ALL) as (store, client):
        kept = store.add(sample(1), large, b"f" * (samples_servicer.CHUNK_BYTES + 1))
        assert isinstance(kept, Added)
        assert await client.content(kept.record.id) == ("image/png", large)
        media_type, features = await client.content(kept.record.id, "features")
        assert (media_type, len(features)) == ("application/vnd.safetensors", samples_servicer.CHUNK_BYTES + 1)
        assert Image.open(io.BytesIO((await client.content(kept.record.id, "thumbnail"))[1])).size == (160, 120)
        bare = store.add(sample(2))
        assert isinstance(bare, Added)
        for kind in ("picture", "thumbnail", "features"):
            error = await refused(client.content(bare.record.id, kind))
            assert error.reason is Reason.ARTIFACT_NOT_FOUND
        assert (await refused(client.content(UNKNOWN))).reason is Reason.SAMPLE_NOT_FOUND
        assert (await refused(client.content(kept.record.id, "all"))).reason is Reason.FIELD_INVALID  # type: ignore[arg-type]


async def test_counts_say_what_was_dropped_and_what_may_leave(tmp_path: Path) -> None:
    async with head_with(tmp_path, sample_sharing="picture,features") as (store, client):
        add(store, 1, camera="a")
        labelled = add(store, 2, camera="b")
        store.label(labelled.id, "bad", "ana", NOW)
        store.add(sample(3), picture(spread(1)))
        store.add(sample(4), b"nonsense")
        (counts,) = await client.counts()
        assert (counts.head, counts.samples, counts.labelled, counts.duplicates) == ("mec-1", 2, 1, 1)
        assert counts.content_bytes == store.counts().content_bytes
        assert (counts.by_camera, counts.by_label) == ({"a": 1, "b": 1}, {"bad": 1})
        assert (counts.dropped, counts.allowed) == ({"IMAGE_UNDECODABLE": 1}, ("features", "picture"))


async def test_a_head_that_keeps_none_says_so(tmp_path: Path) -> None:
    async with head_with(tmp_path, samples=False, sample_sharing=ALL) as (_, client):
        for call in (client.list(), client.get(UNKNOWN), client.label({UNKNOWN: "a"}, "ana"), client.counts()):
            assert (await refused(call)).reason is Reason.UNIMPLEMENTED
        assert (await refused(client.content(UNKNOWN))).reason is Reason.UNIMPLEMENTED


async def test_requests_that_are_wrong_are_refused_by_name(tmp_path: Path) -> None:
    label = pb.LabelChoice(id=UNKNOWN, label="a")
    requests: list[tuple[str, Any, str]] = [
        ("ListSamples", pb.ListSamplesRequest(page_size=1001), "page_size"),
        ("ListSamples", pb.ListSamplesRequest(page_token="x"), "page_token"),
        ("ListSamples", asked(kinds=[0]), "filter.kinds"),
        ("ListSamples", asked(kinds=[9]), "filter.kinds"),
        ("ListSamples", asked(since=Timestamp(seconds=1 << 60)), "filter.since"),
        ("LabelSample", pb.LabelSampleRequest(by="a", labels=[label, pb.LabelChoice(id=UNKNOWN)]), "labels"),
        ("LabelSample", pb.LabelSampleRequest(by="a", labels=[label] * 10_001), "labels"),
        ("LabelSample", pb.LabelSampleRequest(labels=[label]), "by"),
    ]
    async with serving(tmp_path) as address, open_channel(address) as channel:
        stub = samples_pb2_grpc.SampleServiceStub(channel)
        for method, request, field in requests:
            with pytest.raises(MeshError) as error:
                async with mesh_errors():
                    await getattr(stub, method)(request)
            assert (error.value.reason, error.value.fields[0][0]) == (Reason.FIELD_INVALID, field), method
        with pytest.raises(MeshError, match="kind"):
            async with mesh_errors():
                _ = [chunk async for chunk in stub.GetContent(pb.GetContentRequest(id=UNKNOWN))]
        async with mesh_errors():
            assert not (await stub.ListSamples(pb.ListSamplesRequest())).samples


async def test_a_disk_that_hangs_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(Beside, "list", lambda *_, **__: goes_on.wait(20.0))
    try:
        async with head_with(tmp_path, servicer={"disk_s": 0.01}) as (_, client):
            answers = await asyncio.gather(*(refused(client.list()) for _ in range(4)))
            assert {error.reason for error in answers} == {Reason.DEADLINE_EXPIRED}
            hung = [one for one in threading.enumerate() if one.name.startswith("samples-served")]
            assert len(hung) == samples_servicer.THREADS
            assert all(one.daemon for one in hung)  # nobody waits for them when the process ends
    finally:
        goes_on.set()


async def test_a_client_that_reads_nothing_holds_nothing_for_long(tmp_path: Path) -> None:
    large = b"f" * (24 << 20)
    with SampleStore(tmp_path / "samples", ROOMY) as store:
        kept = store.add(sample(1), None, large)
    assert isinstance(kept, Added)
    request = pb.GetContentRequest(id=kept.record.id, kind=pb.CONTENT_KIND_FEATURES)
    async with (
        serving(tmp_path, sample_sharing=ALL, servicer={"idle_s": 0.3}) as address,
        open_channel(address) as channel,
        open_channel(address) as other,
    ):
        stub = samples_pb2_grpc.SampleServiceStub(channel)
        calls = [stub.GetContent(request) for _ in range(samples_servicer.CONTENTS_AT_ONCE)]
        for call in calls:
            await call.read()
        chunks = [chunk async for chunk in samples_pb2_grpc.SampleServiceStub(other).GetContent(request, timeout=20.0)]
        assert b"".join(chunk.data for chunk in chunks) == large
        for call in calls:
            call.cancel()
