"""A real head keeps what was hard, and shows it to those who label, while it goes on answering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from safetensors.numpy import load

from splitmesh.client import AnsweredBy
from splitmesh.client.samples import SampleClient, SampleInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from tests.support.models import CUT, HARD, LABELS, picture
from tests.support.worlds import WAIT_S, World, answered_by, world


@pytest.fixture
async def edge(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


async def kept_by(made: World, count: int) -> tuple[SampleClient, Sequence[SampleInfo]]:
    """Of the head, once it keeps so many; asks again and again."""
    channels = Channels(StaticDiscovery({"head": [made.addresses["head"]]}))
    made.stack.push_async_callback(channels.close)
    client = SampleClient(channels)
    async with asyncio.timeout(WAIT_S):
        while True:
            found = await client.list()
            if len(found) >= count:
                return client, found


async def test_a_hard_frame_is_kept_with_both_answers_and_can_be_labelled(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", site="lyon", sample_sharing="picture,features", sample_features=True)
    mesh = await edge.ready_mesh()
    answer = await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)
    client, found = await kept_by(edge, 1)
    record = found[0].record
    assert record.kind in ("hard", "disputed")
    assert (record.site, record.node, record.model, record.version) == ("lyon", "head-1", answer.model, answer.version)
    assert record.tail_label == answer.label.name
    assert record.exit_label in LABELS
    assert (record.kind == "disputed") == (record.exit_label != record.tail_label)
    assert await client.content(record.id) == ("image/png", picture(HARD))
    assert list(load((await client.content(record.id, "features"))[1])) == [CUT]
    assert await client.label({record.id: LABELS[0]}, "ana") == 1
    assert (await client.get(record.id))[0].record.label == LABELS[0]
    assert (await mesh.infer(picture(HARD))).label.name == answer.label.name


async def test_a_frame_that_the_exit_answered_for_the_tail_is_kept_as_a_fallback(edge: World) -> None:
    await edge.start("head", switch_wait_s=0.01)
    mesh = await edge.ready_mesh()
    answer = await answered_by(mesh, HARD, AnsweredBy.EDGE_FALLBACK)
    client, found = await kept_by(edge, 1)
    record = found[-1].record
    assert (record.kind, record.why, record.tail_label) == ("fallback", answer.fallback_reason, None)
    assert record.exit_label == answer.label.name
    with pytest.raises(MeshError) as error:
        await client.content(record.id)
    assert error.value.reason is Reason.CONTENT_NOT_ALLOWED


async def test_what_waits_is_written_when_the_head_stops_and_there_when_it_starts_again(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head")
    mesh = await edge.ready_mesh()
    answer = await mesh.infer(picture(HARD))
    await edge.stop("head")
    del edge.addresses["head"]
    await edge.start("head")
    _, found = await kept_by(edge, 1)
    assert [one.record.trace_id for one in found] == [answer.trace_id]


async def test_a_head_may_keep_nothing(edge: World) -> None:
    await edge.start("tail")
    await edge.start("head", samples=False)
    mesh = await edge.ready_mesh()
    await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)
    await edge.stop("head")
    assert not (edge.folder / "head" / "samples").exists()


async def test_a_broken_folder_keeps_no_head_from_answering(
    edge: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "samples").write_text("in the way")
    await edge.start("tail")
    await edge.start("head")
    mesh = await edge.ready_mesh()
    assert (await answered_by(mesh, HARD, AnsweredBy.CLOUD_TAIL)).labels
    await edge.stop("head")
    assert "no samples are kept" in caplog.text
    caplog.clear()
