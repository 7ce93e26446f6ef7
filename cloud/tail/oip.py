"""The tail as clients of the Open Inference Protocol see it: whole models of the registry, computed in batches.

A model is loaded when it is first asked for. Samples of one request wait one by one and may be computed with those of others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from cloud.tail.config import TailSettings
from cloud.tail.followed import Followed
from cloud.tail.forward import INLINE_BYTES
from cloud.tail.segments import WHOLE, Loaded, Segments
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.batching import Computed
from splitmesh.kernel.signals import Attr, Span
from splitmesh.kernel.telemetry import AttrValue, Telemetry, trace_id_of
from splitmesh.model.manifest import Manifest
from splitmesh.oip.backend import Batch, Inferred, Listed, Served, Spent
from splitmesh.oip.describe import takes_batches
from splitmesh.oip.feeds import feeds_of, pictures_of, sample_bytes
from splitmesh.oip.parameters import Value
from splitmesh.oip.request import Call
from splitmesh.oip.together import all_or_none
from splitmesh.tensor.spec import Array, TensorLimits

log = logging.getLogger(__name__)

DEFAULT_DEADLINE_MS = 10_000
ANSWERED_BY = "CLOUD_WHOLE"
MAX_FOLLOWED = 64
"""Aliases watched at once."""
MAX_FACTS = 256
"""Versions whose manifests are kept in memory."""
MAX_DIGITS = 9
"""Of a version's number; longer ones are none."""
PRIORITY_LEVELS = 10
"""As the protocol counts them: 1 is the most urgent, this the least, which is also that of a request that names none."""


class TailBackend:
    """Implements :class:`splitmesh.oip.backend.Backend`, and is a part of the app."""

    def __init__(
        self,
        segments: Segments,
        cache: ModelCache,
        registry: RegistryClient,
        settings: TailSettings,
        telemetry: Telemetry,
    ) -> None:
        self._segments = segments
        self._cache = cache
        self._registry = registry
        self._settings = settings
        self._telemetry = telemetry
        self._limits = TensorLimits(max_size_bytes=settings.max_frame_bytes)
        self._followed = Followed(registry, cache, self._load, most=MAX_FOLLOWED)
        self._facts: dict[tuple[str, int], Served] = {}

    async def start(self) -> None:
        """Nothing is loaded before a client asks."""
        await self._followed.start()

    async def stop(self) -> None:
        """Follow nothing any more."""
        await self._followed.stop()

    async def ready(self) -> bool:
        """A tail loads what it is asked for, so it always is."""
        return True

    async def served(self, model: str, version: str) -> Served:
        """Any version of the registry, by number or alias; loads it.

        Raises MeshError FIELD_INVALID, MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND, MODEL_INCOMPLETE for a version
        that does not carry its whole model, and what keeps it from being loaded.
        """
        if not model:
            raise field_error("model_name", "is empty")
        if version.isascii() and version.isdigit():
            number = int(version) if len(version) <= MAX_DIGITS else 0
            if not number:
                raise MeshError(Reason.VERSION_NOT_FOUND, f"model {model!r} has no version {version}")
        else:
            number = (await self._followed.version(model, version or self._settings.oip_alias)).version
        return await self._ready(model, number)

    async def infer(self, served: Served, call: Call) -> Inferred:
        """All samples' answers; QUEUE_FULL when there is no room for them all, DEADLINE_EXPIRED."""
        attributes: dict[Attr, AttrValue] = {
            Attr.MODEL: served.model,
            Attr.VERSION: served.version,
            Attr.NODE: self._settings.node,
        }
        with self._telemetry.span(
            Span.TAIL_REQUEST, traceparent=call.options.traceparent, attributes=attributes
        ) as span:
            async with self._segments.use(served.model, served.version, WHOLE) as loaded:
                done, input_ns = await self._computed(served, call, loaded)
            begun, ended = min(one.started_ns for one in done), max(one.ended_ns for one in done)
            self._telemetry.record(Span.TAIL_QUEUE, min(one.enqueued_ns for one in done), begun, parent=span)
            batch = {Attr.BATCH_ID: done[0].batch_id, Attr.BATCH_SIZE: done[0].batch_size}
            self._telemetry.record(Span.TAIL_COMPUTE, begun, ended, parent=span, attributes=batch)
            return _inferred(served, call, done, input_ns, trace_id_of(span))

    async def index(self) -> Sequence[Listed]:
        """Every model of the registry, without one those that clients asked for; ready are those in memory."""
        alias = self._settings.oip_alias
        try:
            models = {model.name: model.aliases.get(alias, 0) for model in await self._registry.list_models()}
        except MeshError as error:
            log.warning("without the registry only models in use are listed: %s", error)
            models = {name: info.version for name, info in sorted(self._followed.models().items())}
        loaded = {(one.model, one.version) for one in self._segments.loaded() if one.whole}
        return [_listed(name, version, alias, ready=(name, version) in loaded) for name, version in models.items()]

    async def load(self, model: str) -> None:
        """Load what the alias stands for."""
        await self.served(model, "")

    async def unload(self, model: str) -> None:
        """Let the model go, and its alias; the next request loads it again. QUEUE_FULL while requests use it."""
        followed = await self._followed.forget(model)
        unloaded = await self._segments.unload(model, WHOLE)
        for key in [key for key in self._facts if key[0] == model]:
            del self._facts[key]
        if not followed and not unloaded:
            raise MeshError(Reason.MODEL_NOT_FOUND, f"{model!r} is not loaded")

    async def _load(self, info: VersionInfo) -> None:
        await self._ready(info.model, info.version)

    async def _ready(self, model: str, version: int) -> Served:
        """The version, in memory."""
        async with self._segments.use(model, version, WHOLE) as loaded:
            known = self._facts.get((model, version))
            if known is None:
                manifest = await self._cache.manifest(await self._cache.version(model, version))
                known = self._facts[model, version] = self._served(manifest, loaded)
                while len(self._facts) > MAX_FACTS:
                    del self._facts[next(iter(self._facts))]
            return known

    def _served(self, manifest: Manifest, loaded: Loaded) -> Served:
        settings = self._settings
        most = 0
        if takes_batches(manifest):
            most = settings.oip_max_batch if loaded.batchable else 1
        return Served(
            model=loaded.model,
            version=loaded.version,
            manifest=manifest,
            max_batch=most,
            backend=loaded.session.providers[0],
            max_queue=settings.max_queue,
            max_delay_us=round(settings.max_batch_delay_ms * 1000),
            default_timeout_us=DEFAULT_DEADLINE_MS * 1000,
            priority_levels=PRIORITY_LEVELS,
            facts={"node": settings.node, "alias": settings.oip_alias, "computed_together": str(settings.max_batch)},
        )

    async def _computed(self, served: Served, call: Call, loaded: Loaded) -> tuple[list[Computed], int]:
        """Every sample's outputs, and the nanoseconds it took to prepare them."""
        deadline_s = (call.options.deadline_ms or DEFAULT_DEADLINE_MS) / 1000
        size = sample_bytes(served.manifest, call)
        with ExitStack() as stack:
            # Refused before anything is decoded, which may cost as much as computing it.
            places = [
                stack.enter_context(loaded.batcher.place(size, deadline_s, _priority(call.options.priority)))
                for _ in range(call.samples)
            ]
            begun_ns = time.perf_counter_ns()
            feeds = await self._feeds(served, call, size)
            input_ns = time.perf_counter_ns() - begun_ns
            rows = [{name: array[row : row + 1] for name, array in feeds.items()} for row in range(call.samples)]
            done = await all_or_none([place.computed(row) for place, row in zip(places, rows, strict=True)])
        return done, input_ns

    async def _feeds(self, served: Served, call: Call, size: int) -> dict[str, Array]:
        make = partial(
            feeds_of, call, served.manifest, served.model, max_pixels=self._settings.max_pixels, limits=self._limits
        )
        if pictures_of(call, served.manifest, served.model) or size * call.samples > INLINE_BYTES:
            return await asyncio.to_thread(make)
        return make()


def _listed(model: str, version: int, alias: str, *, ready: bool) -> Listed:
    if not version:
        return Listed(model, "", ready=False, reason=f"has no alias {alias!r}")
    reason = "" if ready else "not loaded; the first request or RepositoryModelLoad loads it"
    return Listed(model, str(version), ready=ready, reason=reason)


def _priority(level: int) -> int:
    """0 to 9, the most urgent last, of a level as the protocol counts them."""
    return PRIORITY_LEVELS - min(level or PRIORITY_LEVELS, PRIORITY_LEVELS)


def _inferred(served: Served, call: Call, done: Sequence[Computed], input_ns: int, trace_id: str) -> Inferred:
    manifest = served.manifest
    queue_ns = max(one.started_ns - one.enqueued_ns for one in done)
    infer_ns = max(one.ended_ns - one.started_ns for one in done)
    parameters: dict[str, Value] = {
        "answered_by": ",".join([ANSWERED_BY] * len(done)),
        "model_version": str(served.version),
        "trace_id": trace_id,
    }
    if call.options.timings:
        parameters |= {
            "decode_ms": input_ns / 1e6,
            "tail_queue_ms": queue_ns / 1e6,
            "tail_ms": infer_ns / 1e6,
            "batch_size": max(one.batch_size for one in done),
        }
    return Inferred(
        outputs={
            info.name: done[0].outputs[info.name]
            if len(done) == 1
            else np.concatenate([one.outputs[info.name] for one in done])
            for info in manifest.whole.outputs
        },
        labels={manifest.class_output: manifest.labels} if manifest.labels else {},
        parameters=parameters,
        spent=Spent(max(0, queue_ns - input_ns), input_ns, infer_ns),
        batches=[Batch(one.batch_id, one.batch_size, one.ended_ns - one.started_ns) for one in done],
    )
