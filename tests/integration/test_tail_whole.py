"""What the tail loads and takes beside segments and full headers: a version's whole model, and lean frames."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud.tail import segments as segments_module
from cloud.tail.config import TailSettings
from cloud.tail.feeds import stated
from cloud.tail.segments import WHOLE, Loaded, Segments
from cloud.tail.warm import Warm, open_warm
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from tests.support.held_tail import described, held_compute
from tests.support.models import CUT, HARD, SIDE, features
from tests.support.wire import assert_alive, frame_error, frame_messages, packed, run_stream, scores, send
from tests.support.worlds import CHAIN, MODEL, WHOLE_ONLY, World, world

GREY = 1


@pytest.fixture
async def cloud(tmp_path: Path, registered: Path) -> AsyncIterator[World]:
    async with world(tmp_path, registered) as made:
        yield made


@asynccontextmanager
async def segments_of(cloud: World, **settings_: float) -> AsyncIterator[Segments]:
    settings = TailSettings(data_dir=cloud.folder / "mine", max_loaded_segments=2, **settings_)
    made = Segments(ModelCache(settings.data_dir, cloud.registry), settings)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.mark.parametrize("model", [WHOLE_ONLY, MODEL, CHAIN])
async def test_the_whole_of_a_version_is_loaded_whether_it_is_split_or_not(cloud: World, model: str) -> None:
    async with segments_of(cloud) as segments, segments.use(model, 1, WHOLE) as whole:
        assert whole.whole
        assert [(spec.name, spec.shape) for spec in whole.wire] == [("image", (-1, 1, SIDE, SIDE))]
        assert (whole.onward, dict(whole.codecs)) == ((), {})
        picture = np.full((1, 1, SIDE, SIDE), HARD, dtype=np.float32)
        done = await whole.batcher.submit({"image": picture}, 5.0)
        assert np.argmax(done.outputs["logits"]) == GREY


async def test_the_whole_and_the_tail_of_a_version_are_loaded_side_by_side_each_with_a_queue_of_its_own(
    cloud: World,
) -> None:
    async with (
        segments_of(cloud) as segments,
        segments.use(MODEL, 1, WHOLE) as whole,
        segments.use(MODEL, 1, 1) as tail,
        segments.use(MODEL, 1, WHOLE) as again,
    ):
        assert again is whole
        assert whole.batcher is not tail.batcher
        assert [one.name for one in segments.loaded()] == [
            f"segment 1 of {MODEL} version 1",
            f"the whole of {MODEL} version 1",
        ]


async def test_a_load_that_takes_longer_than_one_waits_goes_on_and_whoever_asks_next_joins_it(
    cloud: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, go_on = list[bytes](), threading.Event()

    def slowly(content: bytes, settings: TailSettings) -> Warm:
        opened.append(content)
        assert go_on.wait(20)
        return open_warm(content, settings)

    monkeypatch.setattr(segments_module, "open_warm", slowly)
    async with segments_of(cloud, load_deadline_s=0.5) as segments:
        for _ in range(2):
            with pytest.raises(MeshError) as caught:
                async with segments.use(MODEL, 1, WHOLE):
                    pass
            assert caught.value.reason is Reason.NOT_READY
        go_on.set()
        async with segments.use(MODEL, 1, WHOLE) as whole:
            assert whole.whole
        assert len(opened) == 1


async def test_a_version_without_its_whole_model_says_so(cloud: World, monkeypatch: pytest.MonkeyPatch) -> None:
    find = ModelCache.version

    async def without_whole(self: ModelCache, model: str, number: int) -> VersionInfo:
        info = await find(self, model, number)
        return replace(info, artifacts={name: ref for name, ref in info.artifacts.items() if name != "model.onnx"})

    monkeypatch.setattr(ModelCache, "version", without_whole)
    async with segments_of(cloud) as segments:
        with pytest.raises(MeshError, match="does not carry its whole model") as caught:
            async with segments.use(MODEL, 1, WHOLE):
                pass
    assert caught.value.reason is Reason.MODEL_INCOMPLETE
    assert caught.value.metadata == {"missing": "model.onnx"}


async def test_nothing_makes_way_for_a_version_or_segment_that_does_not_exist(cloud: World) -> None:
    async with segments_of(cloud) as segments:
        for version in (1, 2):
            async with segments.use(MODEL, version, WHOLE):
                pass
        for model, version, segment in ((MODEL, 77, WHOLE), (MODEL, 1, 9), ("nobody", 1, 1), (WHOLE_ONLY, 1, 1)):
            with pytest.raises(MeshError):
                async with segments.use(model, version, segment):
                    pass
        assert {one.version for one in segments.loaded()} == {1, 2}


async def test_what_is_being_unloaded_is_out_of_reach_at_once_and_unloaded_also_when_nobody_waits(cloud: World) -> None:
    async with segments_of(cloud) as segments:
        gone = []
        for version in (1, 2):
            async with segments.use(MODEL, version, WHOLE) as loaded:
                gone.append(loaded)
        with held_compute("image") as gate:
            picture = np.full((1, 1, SIDE, SIDE), HARD, dtype=np.float32)
            computing = asyncio.create_task(gone[0].batcher.submit({"image": picture}, 5.0))
            assert await asyncio.to_thread(gate.reached.wait, 5.0)
            first, second = (asyncio.create_task(segments.unload(MODEL, WHOLE)) for _ in range(2))
            await asyncio.sleep(0)
            assert segments.loaded() == []
            first.cancel()
            assert (await asyncio.gather(first, second, return_exceptions=True))[1] is False
        await computing
        async with segments.use(MODEL, 2, WHOLE) as fresh:
            assert fresh is not gone[1]
    for loaded in gone:
        with pytest.raises(MeshError, match="closed"):
            loaded.session.run({"image": picture})


# lean frames


@pytest.mark.parametrize("codec", ["identity", "zstd"])
async def test_a_frame_that_leaves_its_tensors_to_the_version_is_answered(cloud: World, codec: str) -> None:
    tail = await cloud.start("tail")
    async with run_stream(tail.address, MODEL) as raw:
        (message,) = frame_messages(packed(HARD, codec=codec), 3)
        message.frame.header.ClearField("tensors")
        await raw.write(message)
        response = await raw.read()
        assert response.result.frame_id == 3
        assert np.argmax(scores(response)) == GREY
        await assert_alive(raw)
    (segment,) = (await described(tail.address)).segments
    assert (segment.whole, segment.segment, segment.computed) == (False, 1, 2)


async def test_a_lean_frame_of_another_size_is_refused_alone(cloud: World) -> None:
    tail = await cloud.start("tail")
    async with run_stream(tail.address, MODEL) as raw:
        messages = frame_messages(packed(codec="identity", **{CUT: features(HARD, side=8)}), 4)
        messages[0].frame.header.ClearField("tensors")
        await send(raw, messages)
        frame_id, error = frame_error(await raw.read())
        assert (frame_id, error.reason) == (4, Reason.PAYLOAD_CORRUPT)
        await assert_alive(raw)


async def test_where_the_cut_has_open_dimensions_a_lean_frame_is_told_to_state_them(cloud: World) -> None:
    async with segments_of(cloud) as segments, segments.use(MODEL, 1, 1) as loaded:
        (spec,) = loaded.wire
        opened: Loaded = replace(loaded, wire=(replace(spec, shape=(-1, 2, -1, -1)),))
        frame = packed(HARD)
        assert stated(frame, opened) is frame
        lean = replace(frame, header=replace(frame.header, tensors=()))
        with pytest.raises(MeshError, match="has open dimensions") as caught:
            stated(lean, opened)
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH
