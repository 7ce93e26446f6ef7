"""A version brought into memory: fetched, verified, loaded, warmed, and accepted by a tail, telling how far it is.

Knows the cache, sessions and links. Which version is to be brought, and what answers meanwhile, is ``slot.py``'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.fitted import fetch_fitted
from edge.head.load import OpenedHead, open_head
from edge.head.memory import HostMemory, Room
from edge.head.policies import Policies
from edge.head.serving.progress import Phase, Progress
from edge.head.serving.rehearse import rehearse
from edge.head.ways import Way, Ways, estimator_for
from splitmesh.client.cache import ModelCache
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.registry import VersionInfo
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import Channels
from splitmesh.model.alternatives import ALTERNATIVES, AlternativeSet
from splitmesh.model.hop_codec import hop_codec
from splitmesh.model.manifest import DEFERRAL, MANIFEST, UNUSUAL, Manifest
from splitmesh.model.rates import RateChooser
from splitmesh.tensor.entropy import RangeCodec

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Between two words in the log about a tail that is waited for."""


@dataclass(slots=True)
class Loaded:
    """One version in memory, in all its ways, by the router's policies."""

    info: VersionInfo
    ways: Ways
    _policies: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, policies: Policies) -> None:
        """Begin to choose among its ways and to follow its policies; once."""
        self.ways.start()
        self._policies = [
            asyncio.create_task(policies.follow(active)) for active in self.ways.all if active.manifest.exit is not None
        ]

    def infos(self) -> list[VersionInfo]:
        """Of everything whose parts it needs, itself first."""
        return [self.info, *(active.info for active in self.ways.all if active.info.version != self.info.version)]

    @property
    def memory_bytes(self) -> int:
        """That it takes; an estimate."""
        return sum(active.memory_bytes for active in self.ways.all)

    async def retire(self) -> None:
        """Unload when the last frame that began with it is answered."""
        for task in self._policies:
            task.cancel()
        await asyncio.gather(*self._policies, return_exceptions=True)
        await self.ways.retire()


class Bringer:
    """Of one model.

    Args:
        model: by name.
        settings: of the head.
        channels: know the tails.
        cache: has the parts, or fetches them.
        policies: of the model.
        priority: how urgent the model's frames are by now.
        workers: how many of this host's workers the model can have by now.
        memory: what may be taken of it.
    """

    def __init__(
        self,
        model: str,
        settings: HeadSettings,
        channels: Channels,
        cache: ModelCache,
        policies: Policies,
        priority: Callable[[], int],
        workers: Callable[[], float],
        memory: HostMemory,
    ) -> None:
        self._model = model
        self._settings = settings
        self._channels = channels
        self._cache = cache
        self._policies = policies
        self._priority = priority
        self._workers = workers
        self._memory = memory

    async def bring(
        self, version: VersionInfo, progress: Progress, *, wait_s: float, note: str, beside: ActiveModel | None = None
    ) -> Loaded:
        """The version, ready for frames and not started.

        Args:
            version: which.
            progress: is told of every phase.
            wait_s: how long a tail's acceptance is waited for; 0 for a head that has to answer with the cable cut, infinite
                where it may not answer before.
            note: name under which the cache keeps its alternatives' parts.
            beside: what answers frames meanwhile, and is not to be disturbed by measuring; None: nothing does.

        Raises what the cache, opening a session and a frame that is made up raise.
        """
        progress.begin_again()
        if ALTERNATIVES in version.artifacts:
            await self._fetch(version, [ALTERNATIVES], progress)
            planned = AlternativeSet.from_json(await self._cache.part(version, ALTERNATIVES))
            ways = await self._several(version, planned, progress, note=note, beside=beside)
        else:
            estimator = estimator_for(None)
            ways = Ways.only(await self._one(version, estimator, progress, beside=beside), estimator)
        try:
            await self.wait_for_tail(ways.all, progress, wait_s)
        except BaseException:
            await ways.retire()
            raise
        return Loaded(version, ways)

    async def hold(self, version: VersionInfo, note: str) -> None:
        """Its parts stay in the cache from now on, whatever else is fetched meanwhile."""
        with suppress(MeshError):  # a full disk: what is there may do, and is not driven out by anything
            await self._cache.remember(version, note)

    async def wait_for_tail(self, loaded: Iterable[ActiveModel], progress: Progress, wait_s: float) -> None:
        """Until a tail has accepted, at most so long."""
        # Tails load every way's segments at the same time: waiting for the first is waiting for all.
        active = next((one for one in loaded if one.link is not None), None)
        if active is None or active.link is None or not wait_s or active.link.available:
            return
        progress.enter(Phase.WAITING_FOR_TAIL)
        if math.isfinite(wait_s):
            if not await active.link.wait_accepted(wait_s):
                log.warning("no tail accepts %s version %d; switching all the same", self._model, active.info.version)
            return
        while not await active.link.wait_accepted(LOOK_S):
            log.warning("%s version %d waits for a tail to accept it", self._model, active.info.version)

    async def _several(
        self,
        version: VersionInfo,
        planned: AlternativeSet,
        progress: Progress,
        *,
        note: str,
        beside: ActiveModel | None,
    ) -> Ways:
        estimator = estimator_for(planned)
        loaded: list[Way] = []
        try:
            for entry in planned.alternatives:
                info = version
                if entry.version:
                    info = await self._cache.version(version.model, entry.version)
                    # Under a name, so that the cache never drops its parts: a restart may have no registry.
                    await self._cache.remember(info, f"{note}.{len(loaded)}")
                active = await self._one(info, estimator, progress, beside=beside)
                # What this host takes is known better now than when the list was made.
                update = {} if active.idle_ms is None else {"edge_ms": active.idle_ms}
                loaded.append(Way(active, entry.model_copy(update=update)))
        except BaseException:
            await asyncio.gather(*(way.active.retire() for way in loaded))
            raise
        return Ways(loaded, estimator, workers=self._workers)

    async def _one(
        self, version: VersionInfo, estimator: LinkEstimator, progress: Progress, *, beside: ActiveModel | None
    ) -> ActiveModel:
        """Fetched, warmed, with the policy last heard and streams to the tails."""
        room = self._memory.room(self._model)
        try:
            return await self._ready(version, estimator, progress, room, beside=beside)
        except BaseException:
            room.give_back()
            raise

    async def _ready(
        self,
        version: VersionInfo,
        estimator: LinkEstimator,
        progress: Progress,
        room: Room,
        *,
        beside: ActiveModel | None,
    ) -> ActiveModel:
        await self._fetch(version, [MANIFEST], progress)
        manifest = await self._cache.manifest(version)
        # It will not take less than its files do: what cannot fit is not even fetched.
        room.need(sum(version.artifact(name).size_bytes for name in computed_parts(manifest)))
        await self._fetch(version, needed_parts(version, manifest), progress)
        progress.enter(Phase.VERIFYING)
        coder = await self._coder(version, manifest)
        fitted = await fetch_fitted(self._cache, version, manifest)
        progress.enter(Phase.LOADING)
        opened = await self._open(version, manifest, beside)
        try:
            room.need(opened.memory_bytes)
        except BaseException:
            opened.session.close()
            raise
        priority = self._priority()
        link, rates = None, None
        if coder is not None and manifest.split is not None and manifest.split.coding is not None:
            sizes = [rate.wire_bytes for rate in manifest.split.coding.rates]
            rates = RateChooser(sizes, self._settings.link_budget_ms)
        if manifest.split is not None:
            link = SegmentLink(
                self._channels,
                version.model,
                version.version,
                self._settings.node,
                service=self._settings.tail_service,
                estimator=estimator,
                priority=priority,
                wire=[tensor.spec() for tensor in manifest.split.wire],
                policy=self._settings.link_policy(),
            )
        fresh = ActiveModel(
            version,
            manifest,
            opened.session,
            link,
            idle_ms=opened.idle_ms,
            live=opened.live,
            coder=coder,
            rates=rates,
            threads=opened.threads,
            company=opened.company,
            priority=priority,
            fitted=fitted,
            choice=opened.choice,
            memory_bytes=opened.memory_bytes,
            room=room,
        )
        try:
            await self._policies.recall(fresh)
            progress.enter(Phase.WARMING)
            # In a thread, like all that computes: frames of the version before must not wait for it.
            await asyncio.to_thread(rehearse, fresh, self._settings.codec)
            if fresh.link is not None:
                await fresh.link.start()
        except BaseException:
            await fresh.retire()
            raise
        return fresh

    async def _fetch(self, version: VersionInfo, names: list[str], progress: Progress) -> None:
        """Parts that are not here; what is here is verified when it is read."""
        missing = await self._cache.missing(version, names)
        sizes = {name: version.artifact(name).size_bytes for name in names}
        progress.fetches(version.version, sizes, {name: size for name, size in sizes.items() if name not in missing})
        for name in missing:
            progress.enter(Phase.DOWNLOADING)

            def told(done: int, _total: int, name: str = name) -> None:
                progress.fetched(version.version, name, done)

            await self._cache.part(version, name, on_progress=told)
            progress.fetched(version.version, name, sizes[name])

    async def _open(self, version: VersionInfo, manifest: Manifest, beside: ActiveModel | None) -> OpenedHead:
        """Opened in a thread, which cannot be stopped: what nobody waits for any more is closed when it is there."""
        threads = self._settings.segment_threads or (0 if beside is None else beside.threads)
        like = None if beside is None else beside.choice
        opening = asyncio.ensure_future(
            open_head(self._cache, version, manifest, self._settings, threads=threads, like=like)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    async def _coder(self, version: VersionInfo, manifest: Manifest) -> RangeCodec | None:
        """What codes the features, where the version brings tables for it."""
        if manifest.split is None or manifest.split.coding is None:
            return None
        content = await self._cache.part(version, manifest.split.coding.artifact)
        # In a thread: frames of the version before must not wait for it.
        return await asyncio.to_thread(hop_codec, manifest.split, manifest.split.coding, content)


def computed_parts(manifest: Manifest) -> list[str]:
    """The artefacts that a head opens: the whole model, the head, or its pieces."""
    segment = manifest.whole if manifest.split is None else manifest.split.head
    return list(dict.fromkeys(piece.artifact for piece in manifest.stages or (segment,)))


def needed_parts(version: VersionInfo, manifest: Manifest) -> list[str]:
    """The artefacts that a head reads of a version, beside the manifest."""
    names = computed_parts(manifest)
    if manifest.split is not None and manifest.split.coding is not None:
        names.append(manifest.split.coding.artifact)
    if manifest.exit is not None:
        names += [name for name in (DEFERRAL, UNUSUAL) if name in version.artifacts]
    return list(dict.fromkeys(names))


def _close(opening: asyncio.Future[OpenedHead]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().session.close()


def is_number_of(active: VersionInfo, wanted: VersionInfo) -> bool:
    """Whether it is that version; says so where the registry has given the number anew."""
    if wanted.version == active.version and not wanted.same_as(active):
        log.error(
            "%s version %d in the registry is not the one that is loaded here: it was set back to a backup and has given the "
            "number anew; what is loaded goes on, register the version again under another number",
            wanted.model, wanted.version,
        )  # fmt: skip
    return wanted.version == active.version
