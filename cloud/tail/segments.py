"""The segments in memory: fetched, verified, loaded and warmed once, however many heads ask at the same time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from cloud.tail.config import TailSettings
from cloud.tail.warm import open_warm
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.batching import Batcher
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.kernel.slots import ComputeSlots
from splitmesh.model.hop_codec import hop_codec
from splitmesh.model.manifest import Hop, Manifest
from splitmesh.runtime import Session
from splitmesh.runtime.timing import LiveTimings
from splitmesh.tensor import Codec
from splitmesh.tensor.spec import TensorSpec

log = logging.getLogger(__name__)

Key = tuple[str, int, int]
"""Model, version, number of the segment."""

WHOLE = -1
"""Instead of a segment's number: the version's whole model."""


@dataclass(slots=True)
class Loaded:
    """A segment, or a whole model, in memory."""

    model: str
    version: int
    segment: int
    """Its number, counted from the head, which is 0; ``WHOLE`` for the whole model."""
    session: Session
    batcher: Batcher
    wire: tuple[TensorSpec, ...]
    """What a frame must carry, in this order; of a whole model its inputs."""
    onward: tuple[TensorSpec, ...]
    """What the next segment takes; empty where this one is the last."""
    live: LiveTimings
    """What the session's runs take."""
    codecs: Mapping[str, Codec]
    """Those of this version that frames may be packed with, by name, beside the ones for anything."""
    batchable: bool
    """Frames may be computed together."""
    streams: int = 0

    @property
    def whole(self) -> bool:
        """It is the whole model and no segment of it."""
        return self.segment == WHOLE

    @property
    def name(self) -> str:
        """For logs."""
        what = "the whole" if self.whole else f"segment {self.segment}"
        return f"{what} of {self.model} version {self.version}"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a segment stands in its version."""

    artifact: str
    taken: tuple[TensorSpec, ...]
    onward: tuple[TensorSpec, ...]
    hop: Hop | None
    """The one that leads into it; None before a whole model."""


class Segments:
    """Loaded segments by model, version and number."""

    def __init__(self, cache: ModelCache, settings: TailSettings) -> None:
        self._cache = cache
        self._settings = settings
        self._slots = ComputeSlots(
            settings.slots(),
            max_frames=settings.max_queue_total,
            max_bytes=settings.max_queue_bytes,
        )
        self._loaded: dict[Key, Loaded] = {}
        self._loading: dict[Key, asyncio.Task[Loaded]] = {}
        """Nobody who waits for one takes it along when leaving: a session that is being opened cannot be stopped."""
        self._stopping = set[asyncio.Task[None]]()
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Nothing is loaded before a head asks."""

    async def stop(self) -> None:
        """Unload everything."""
        for task in self._loading.values():
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        await self._let_go(list(self._loaded))
        await asyncio.gather(*self._stopping)
        await self._slots.stop()

    def backlog_ms(self) -> float:
        """How long a frame would wait before compute if it came now: this node's estimate, over all segments."""
        return self._slots.wait_s() * 1000

    def loaded(self) -> list[Loaded]:
        """What is in memory."""
        return list(self._loaded.values())

    @asynccontextmanager
    async def use(self, model: str, version: int, segment: int) -> AsyncIterator[Loaded]:
        """The segment, or the whole model for ``WHOLE``, loaded when needed and not unloaded inside the block.

        Each has a batcher of its own. Raises MeshError MODEL_INCOMPLETE when the version has no such part, FIELD_INVALID
        for a segment that it does not have, QUEUE_FULL when everything in memory is in use, NOT_READY when loading takes
        too long or the node lacks a next one, and what the registry raises.
        """
        key = (model, version, segment)
        while (loaded := self._loaded.pop(key, None)) is None:
            await self._wait_loaded(key)
        self._loaded[key] = loaded  # newest last
        loaded.streams += 1
        try:
            yield loaded
        finally:
            loaded.streams -= 1

    async def unload(self, model: str, segment: int) -> bool:
        """Let every version of a model's segment go; whether there was one. QUEUE_FULL while a stream uses one."""
        keys = [key for key in self._loaded if (key[0], key[2]) == (model, segment)]
        if any(self._loaded[key].streams for key in keys):
            raise MeshError(Reason.QUEUE_FULL, f"{model!r} is in use", retry_after_s=1.0)
        await self._let_go(keys)
        return bool(keys)

    async def _wait_loaded(self, key: Key) -> None:
        """Until the segment is in memory, as long as one waits for a load; it goes on when that was not enough."""
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(*key))
            task.add_done_callback(partial(self._arrived, key))
        try:
            async with asyncio.timeout(self._settings.load_deadline_s):
                await asyncio.shield(task)
        except TimeoutError as error:
            raise self._too_slow(*key[:2]) from error

    def _arrived(self, key: Key, task: asyncio.Task[Loaded]) -> None:
        del self._loading[key]
        if not task.cancelled() and task.exception() is None:
            self._loaded[key] = task.result()

    def _too_slow(self, model: str, version: int) -> MeshError:
        seconds = self._settings.load_deadline_s
        return MeshError(Reason.NOT_READY, f"{model} version {version} was not loaded in {seconds} s")

    async def _load(self, model: str, version: int, segment: int) -> Loaded:
        # One load at a time: two at once would only fight for the same cores and memory.
        async with self._lock:
            return await self._open(model, version, segment)

    async def _open(self, model: str, version: int, segment: int) -> Loaded:
        try:
            async with asyncio.timeout(self._settings.load_deadline_s):
                info = await self._cache.version(model, version)
                place = self._place(info, await self._cache.manifest(info), segment)
                content = await self._cache.part(info, place.artifact)
                codecs = await self._codecs(info, place.hop)
                # Only now: nothing makes way for what does not exist or cannot be fetched.
                await self._make_room()
        except TimeoutError as error:
            raise self._too_slow(model, version) from error
        warm = await asyncio.to_thread(open_warm, content, self._settings)
        live = LiveTimings()
        batcher = Batcher(
            warm.session.run,
            slots=self._slots,
            max_batch=self._settings.max_batch,
            max_delay_s=self._settings.max_batch_delay_ms / 1000,
            max_queue=self._settings.max_queue,
            times=warm.times,
            on_run=live.record,
            alone=not warm.batchable,
        )
        loaded = Loaded(
            model, version, segment, warm.session, batcher, place.taken, place.onward, live, codecs, warm.batchable
        )
        log.info("loaded %s", loaded.name)
        return loaded

    async def _codecs(self, info: VersionInfo, hop: Hop | None) -> dict[str, Codec]:
        """What the hop into a segment is coded with, where it has tables of its own."""
        if hop is None or hop.coding is None:
            return {}
        content = await self._cache.part(info, hop.coding.artifact)
        codec = await asyncio.to_thread(hop_codec, hop, hop.coding, content)
        return {codec.name: codec}

    def _place(self, info: VersionInfo, manifest: Manifest, segment: int) -> _Place:
        """Which file of the version, what it takes, and what it passes on."""
        if segment == WHOLE:
            whole = manifest.whole
            if whole.artifact not in info.artifacts:
                raise MeshError(
                    Reason.MODEL_INCOMPLETE,
                    f"{info.model} version {info.version} does not carry its whole model ({whole.artifact})",
                    metadata={"missing": whole.artifact},
                )
            return _Place(whole.artifact, tuple(tensor.spec() for tensor in whole.inputs), (), None)
        if manifest.split is None:
            raise MeshError(
                Reason.MODEL_INCOMPLETE, f"{info.model} version {info.version} is not split: it has no tail"
            )
        split = manifest.split
        last = len(split.segments()) - 1
        if not 1 <= segment <= last:
            raise field_error("segment", f"is {segment}; this version has segments 1..{last} behind its head")
        if segment < last and not self._settings.next_service:
            raise MeshError(
                Reason.NOT_READY,
                f"segment {segment} of {last} is not the last, and this node knows no next one: set "
                f"{ENV_PREFIX}NEXT_SERVICE",
            )
        hops = split.hops()
        wires = [tuple(tensor.spec() for tensor in hop.wire) for hop in hops]
        onward = wires[segment] if segment < last else ()
        return _Place(split.segments()[segment].artifact, wires[segment - 1], onward, hops[segment - 1])

    async def _make_room(self) -> None:
        while len(self._loaded) >= self._settings.max_loaded_segments:
            idle = next((key for key, loaded in self._loaded.items() if not loaded.streams), None)
            if idle is None:
                raise MeshError(
                    Reason.QUEUE_FULL,
                    f"all {len(self._loaded)} segments in memory are in use",
                    retry_after_s=5.0,
                )
            await self._let_go([idle])

    async def _let_go(self, keys: Sequence[Key]) -> None:
        # Out of reach at once: while one stops, nobody may begin to use another. And all stop, also when who asked for it
        # goes away meanwhile.
        stopping = asyncio.create_task(_stop([self._loaded.pop(key) for key in keys]))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        await asyncio.shield(stopping)


async def _stop(gone: Sequence[Loaded]) -> None:
    for loaded in gone:
        await loaded.batcher.stop()
        loaded.session.close()
        log.info("unloaded %s", loaded.name)
