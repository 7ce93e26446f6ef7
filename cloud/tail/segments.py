"""The segments in memory: fetched, verified, loaded and warmed once, however many heads ask at the same time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from cloud.tail.config import TailSettings
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.batching import Batcher
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.model.hop_codec import hop_codec
from splitmesh.model.manifest import Hop, SplitInfo
from splitmesh.runtime import Session, open_session
from splitmesh.runtime.timing import LiveTimings
from splitmesh.tensor import DTYPES, Codec
from splitmesh.tensor.spec import Array, TensorSpec

log = logging.getLogger(__name__)

Key = tuple[str, int, int]
"""Model, version, number of the segment."""


@dataclass(slots=True)
class Loaded:
    """A segment in memory."""

    model: str
    version: int
    segment: int
    """Its number, counted from the head, which is 0."""
    session: Session
    batcher: Batcher
    wire: tuple[TensorSpec, ...]
    """What a frame must carry, in this order."""
    onward: tuple[TensorSpec, ...]
    """What the next segment takes; empty where this one is the last."""
    live: LiveTimings
    """What the session's runs take."""
    codecs: Mapping[str, Codec]
    """Those of this version that frames may be packed with, by name, beside the ones for anything."""
    streams: int = 0


class Segments:
    """Loaded segments by model, version and number."""

    def __init__(self, cache: ModelCache, settings: TailSettings) -> None:
        self._cache = cache
        self._settings = settings
        self._loaded: dict[Key, Loaded] = {}
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Nothing is loaded before a head asks."""

    async def stop(self) -> None:
        """Unload everything."""
        for loaded in self._loaded.values():
            await loaded.batcher.stop()
            loaded.session.close()
        self._loaded.clear()

    def loaded(self) -> list[Loaded]:
        """What is in memory."""
        return list(self._loaded.values())

    @asynccontextmanager
    async def use(self, model: str, version: int, segment: int) -> AsyncIterator[Loaded]:
        """The segment, loaded when needed and not unloaded inside the block."""
        key = (model, version, segment)
        loaded = self._loaded.pop(key, None)
        if loaded is None:
            # One load at a time: two at once would only fight for the same cores and memory.
            async with self._lock:
                loaded = self._loaded.pop(key, None) or await self._load(*key)
        self._loaded[key] = loaded  # newest last
        loaded.streams += 1
        try:
            yield loaded
        finally:
            loaded.streams -= 1

    async def _load(self, model: str, version: int, segment: int) -> Loaded:
        await self._make_room()
        try:
            async with asyncio.timeout(self._settings.load_deadline_s):
                info = await self._cache.version(model, version)
                manifest = await self._cache.manifest(info)
                if manifest.split is None:
                    raise MeshError(Reason.MODEL_INCOMPLETE, f"{model} version {version} is not split: it has no tail")
                taken, onward = self._place(manifest.split, segment)
                content = await self._cache.part(info, manifest.split.segments()[segment].artifact)
                codecs = await self._codecs(info, manifest.split.hops()[segment - 1])
                session, batchable = await asyncio.to_thread(_open_warm, content, self._settings)
        except TimeoutError as error:
            raise MeshError(
                Reason.NOT_READY, f"{model} version {version} was not loaded in {self._settings.load_deadline_s} s"
            ) from error
        live = LiveTimings()
        batcher = Batcher(
            session.run,
            max_batch=self._settings.max_batch,
            max_delay_s=self._settings.max_batch_delay_ms / 1000,
            max_queue=self._settings.max_queue,
            on_run=live.record,
            alone=not batchable,
        )
        batcher.start()
        log.info("loaded segment %d of %s version %d", segment, model, version)
        return Loaded(model, version, segment, session, batcher, taken, onward, live, codecs)

    async def _codecs(self, info: VersionInfo, hop: Hop) -> dict[str, Codec]:
        """What the hop into a segment is coded with, where it has tables of its own."""
        if hop.coding is None:
            return {}
        content = await self._cache.part(info, hop.coding.artifact)
        codec = await asyncio.to_thread(hop_codec, hop, hop.coding, content)
        return {codec.name: codec}

    def _place(self, split: SplitInfo, segment: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """What a segment takes, and what it passes on."""
        last = len(split.segments()) - 1
        if not 1 <= segment <= last:
            raise field_error("segment", f"is {segment}; this version has segments 1..{last} behind its head")
        if segment < last and not self._settings.next_service:
            raise MeshError(
                Reason.NOT_READY,
                f"segment {segment} of {last} is not the last, and this node knows no next one: set "
                f"{ENV_PREFIX}NEXT_SERVICE",
            )
        wires = [tuple(tensor.spec() for tensor in hop.wire) for hop in split.hops()]
        return wires[segment - 1], wires[segment] if segment < last else ()

    async def _make_room(self) -> None:
        while len(self._loaded) >= self._settings.max_loaded_segments:
            idle = next((key for key, loaded in self._loaded.items() if not loaded.streams), None)
            if idle is None:
                raise MeshError(
                    Reason.QUEUE_FULL,
                    f"all {len(self._loaded)} segments in memory are in use",
                    retry_after_s=5.0,
                )
            loaded = self._loaded.pop(idle)
            await loaded.batcher.stop()
            loaded.session.close()
            log.info("unloaded segment %d of %s version %d", loaded.segment, loaded.model, loaded.version)


def _open_warm(content: bytes, settings: TailSettings) -> tuple[Session, bool]:
    """A segment that has run, so that no frame pays for the first run; and whether frames may be computed together.

    It runs on noise, for one sample and for the largest batch. A detector that lists what it finds in all samples of a
    batch must get them one by one: nothing would say which row is whose. It shows in the number of rows.
    """
    session = open_session(content, threads=settings.compute_threads, max_run_s=settings.max_run_s)
    try:
        return session, _runs_in_batches(session, settings.max_batch)
    except BaseException:
        session.close()
        raise


def _runs_in_batches(session: Session, most: int) -> bool:
    batchable = all(spec.shape[:1] == (-1,) for spec in (*session.inputs, *session.outputs))
    for batch in {1, most if batchable else 1}:
        shapes = [
            tuple(batch if axis == 0 and dim == -1 else max(dim, 1) for axis, dim in enumerate(spec.shape))
            for spec in session.inputs
        ]
        if any(-1 in spec.shape[1:] for spec in session.inputs) or math.prod(map(math.prod, shapes)) == 0:
            return batchable
        feeds = {spec.name: _noise(spec, shape) for spec, shape in zip(session.inputs, shapes, strict=True)}
        outputs = session.run(feeds)
        batchable = batchable and all(array.shape[:1] == (batch,) for array in outputs.values())
    return batchable


def _noise(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    dtype, random = DTYPES[spec.dtype], np.random.default_rng(0)
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    if spec.dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    # Other integers may be places in something.
    return np.zeros(shape, dtype)
