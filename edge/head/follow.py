"""Follows the registry's alias and keeps the newest loaded version active.

What is heard is kept on disk: a head that restarts with the cable cut answers with the last version, by the last policy
(``policies.py``).
A new version is verified, loaded, warmed and accepted by a tail before frames go to it; one that is refused changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.fitted import fetch_fitted
from edge.head.load import open_head
from edge.head.policies import Policies, Told
from edge.head.ways import Way, Ways, estimator_for
from splitmesh.client.cache import ModelCache
from splitmesh.client.link_estimate import LinkEstimator
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.routing import RoutingClient
from splitmesh.client.segment import SegmentLink
from splitmesh.client.trust import is_refusal
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.model.alternatives import ALTERNATIVES, AlternativeSet
from splitmesh.model.hop_codec import hop_codec
from splitmesh.model.manifest import Manifest
from splitmesh.model.rates import RateChooser
from splitmesh.tensor.entropy import RangeCodec

log = logging.getLogger(__name__)

RETRY_S = 1.0
PAUSE_S = 30.0
"""Before another try at what only an operator can mend (a full disk, a version that no trusted key signed)."""


class ModelFollower:
    """One model of this head."""

    def __init__(
        self,
        model: str,
        settings: HeadSettings,
        channels: Channels,
        registry: RegistryClient,
        on_active: Callable[[], Awaitable[None]],
        on_audit_share: Told,
    ) -> None:
        self._model = model
        self._on_active = on_active
        self._settings = settings
        self._channels = channels
        self._registry = registry
        self._policies = Policies(
            settings.data_dir / "policies", RoutingClient(channels), settings.node, on_audit_share
        )
        self._cache = ModelCache(settings.data_dir, self._registry, max_bytes=settings.max_cache_bytes)
        self._note = f"{model}@{settings.alias}"
        self._wanted: VersionInfo | None = None
        self._kept: int | None = None  # the version that a restart would begin with
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._policy_tasks: list[asyncio.Task[None]] = []
        self._retiring: set[asyncio.Task[None]] = set()
        self.ways: Ways | None = None
        """The version to answer with, in one way or several; None until one is loaded."""

    async def start(self) -> None:
        """Begin to follow; returns when the version on disk, if any, is active."""
        known = await self._cache.recall(self._note)
        if known is not None:
            try:
                await self._activate(known, wait_for_tail=False)
                self._kept = known.version
            except MeshError as error:
                log.warning("the version on disk cannot be used: %s", error)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._apply())]

    async def stop(self) -> None:
        """Stop following and unload."""
        tasks = [*self._tasks, *self._policy_tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self.ways is not None:
            await self.ways.retire()
            self.ways = None

    async def _watch(self) -> None:
        while True:
            try:
                async for version in self._registry.watch_alias(self._model, self._settings.alias):
                    if version is not None:
                        self._wanted = version
                        self._changed.set()
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.error("%s cannot be followed; again in %.0f s: %s", self._note, PAUSE_S, error, exc_info=unforeseen)
            await asyncio.sleep(PAUSE_S)

    async def _apply(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            wanted = self._wanted
            if wanted is None:
                continue
            try:
                if self.ways is None or not _is_number_of(self.ways.all[0].info, wanted):
                    await self._activate(wanted, wait_for_tail=True)
            except Exception as error:
                # Whatever it is (a full disk, an artefact that nobody foresaw): the head goes on with what it has.
                unforeseen = not isinstance(error, MeshError)
                log.warning(
                    "%s version %d cannot be used yet: %s", wanted.model, wanted.version, error, exc_info=unforeseen
                )
                pause_s = PAUSE_S if is_refusal(error) else RETRY_S
                asyncio.get_running_loop().call_later(pause_s, self._changed.set)
            else:
                await self._keep(wanted)

    async def _keep(self, version: VersionInfo) -> None:
        if version.version == self._kept:
            return
        try:
            await self._cache.remember(version, self._note)
        except MeshError as error:
            log.warning(
                "%s version %d is active but a restart would not know it; again in %.0f s: %s",
                version.model, version.version, PAUSE_S, error,
            )  # fmt: skip
            asyncio.get_running_loop().call_later(PAUSE_S, self._changed.set)
        else:
            self._kept = version.version

    async def _activate(self, version: VersionInfo, *, wait_for_tail: bool) -> None:
        """Load, connect, switch; the old version goes when its last frame is answered.

        A head that restarts with what it knew does not wait for a tail: it has to answer with the cable cut.
        """
        if ALTERNATIVES in version.artifacts:
            planned = AlternativeSet.from_json(await self._cache.part(version, ALTERNATIVES))
            fresh = await self._load_ways(version, planned, wait_for_tail=wait_for_tail)
        else:
            estimator = estimator_for(None)
            fresh = Ways.only(await self._load(version, estimator, wait_for_tail=wait_for_tail), estimator)
        old, self.ways = self.ways, fresh
        fresh.start()
        log.info("%s version %d is active", version.model, version.version)
        await self._on_active()
        for task in self._policy_tasks:
            task.cancel()
        self._policy_tasks = [
            asyncio.create_task(self._policies.follow(active))
            for active in fresh.all
            if active.manifest.exit is not None
        ]
        if old is not None:
            retiring = asyncio.create_task(old.retire())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def _load_ways(self, version: VersionInfo, planned: AlternativeSet, *, wait_for_tail: bool) -> Ways:
        estimator = estimator_for(planned)
        loaded: list[Way] = []
        try:
            for entry in planned.alternatives:
                info = version
                if entry.version:
                    info = await self._cache.version(version.model, entry.version)
                    # Under a name, so that the cache never drops its parts: a restart may have no registry.
                    await self._cache.remember(info, f"{self._note}.{len(loaded)}")
                # Tails load every way's segments at the same time: waiting for the first is waiting for all.
                wait = wait_for_tail and not loaded
                active = await self._load(info, estimator, wait_for_tail=wait)
                # What this host takes is known better now than when the list was made.
                update = {} if active.idle_ms is None else {"edge_ms": active.idle_ms}
                loaded.append(Way(active, entry.model_copy(update=update)))
        except BaseException:
            await asyncio.gather(*(way.active.retire() for way in loaded))
            raise
        return Ways(loaded, estimator, workers=self._settings.workers)

    async def _load(self, version: VersionInfo, estimator: LinkEstimator, *, wait_for_tail: bool) -> ActiveModel:
        """Fetched, warmed, connected, with the policy last heard."""
        manifest = await self._cache.manifest(version)
        coder = await self._coder(version, manifest)
        fitted = await fetch_fitted(self._cache, version, manifest)
        opened = await open_head(self._cache, version, manifest, self._settings, threads=self._threads())
        priority = self._settings.priority_of(self._model)
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
        )
        try:
            await self._prepare(fresh, wait_for_tail=wait_for_tail)
        except BaseException:
            await fresh.retire()
            raise
        return fresh

    def _threads(self) -> int:
        """Threads inside an operator of the next head; 0: to be measured, which is not done beside this model's frames."""
        if self._settings.segment_threads or self.ways is None:
            return self._settings.segment_threads
        return self.ways.current.threads

    async def _coder(self, version: VersionInfo, manifest: Manifest) -> RangeCodec | None:
        """What codes the features, where the version brings tables for it."""
        if manifest.split is None or manifest.split.coding is None:
            return None
        content = await self._cache.part(version, manifest.split.coding.artifact)
        # In a thread: frames of the version before must not wait for it.
        return await asyncio.to_thread(hop_codec, manifest.split, manifest.split.coding, content)

    async def _prepare(self, fresh: ActiveModel, *, wait_for_tail: bool) -> None:
        """The last known policy, and streams to the tails."""
        await self._policies.recall(fresh)
        if fresh.link is None:
            return
        await fresh.link.start()
        if wait_for_tail and not await fresh.link.wait_accepted(self._settings.switch_wait_s):
            log.warning("no tail accepts %s version %d; switching all the same", self._model, fresh.info.version)


def _is_number_of(active: VersionInfo, wanted: VersionInfo) -> bool:
    if wanted.version == active.version and not wanted.same_as(active):
        log.error(
            "%s version %d in the registry is not the one that is loaded here: it was set back to a backup and has given the "
            "number anew; what is loaded goes on, register the version again under another number",
            wanted.model, wanted.version,
        )  # fmt: skip
    return wanted.version == active.version


class Models:
    """All models of this head."""

    def __init__(self, followers: dict[str, ModelFollower]) -> None:
        self._followers = followers
        self._first = next(iter(followers))

    def ways(self, model: str) -> Ways:
        """The version to answer with; MODEL_NOT_FOUND, or NOT_READY while none is loaded."""
        follower = self._followers.get(model or self._first)
        if follower is None:
            raise MeshError(Reason.MODEL_NOT_FOUND, f"this head serves {', '.join(self._followers)}, not {model!r}")
        if follower.ways is None:
            raise MeshError(
                Reason.NOT_READY, f"no version of {model or self._first!r} is loaded yet", retry_after_s=RETRY_S
            )
        return follower.ways

    def loaded(self) -> list[ActiveModel]:
        """Every version in memory that answers, in all its ways."""
        loaded = [follower.ways for follower in self._followers.values() if follower.ways is not None]
        return [active for ways in loaded for active in ways.all]
