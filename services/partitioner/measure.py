"""Makes profiles of registered versions on a node: the partitioner's own, or a head or tail that is asked to time pieces.

After each timed cut the profile so far is put into the registry, so that a call that is cut short loses one point at most
and the next one goes on. Profiles of nodes in production are corrected by what their segments take there. What to time
and what it means is `splitmesh.model.profile`'s.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from weakref import WeakValueDictionary

from services.partitioner.measurement import Means, Measurement, Target
from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.client.node_profiler import NodeInfo
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, field_error
from splitmesh.kernel.jobs import JobSlots, Progress
from splitmesh.model.live import MIN_LIVE_RUNS, Side, corrected
from splitmesh.model.manifest import CALIBRATION, MANIFEST, WHOLE, Manifest
from splitmesh.model.profile_data import Profile, ProfileKey
from splitmesh.runtime.ort import CPU

log = logging.getLogger(__name__)

MAX_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Where:
    """On what a version is to be profiled; empty and 0: as the node computes."""

    node: str = ""
    """Empty: the partitioner's own."""
    batch: int = 1
    threads: int = 0
    backend: str = ""


OWN_NODE = Where()
"""The partitioner's."""


class Measurer:
    """Profiles versions, one at a time."""

    def __init__(self, means: Means, slots: JobSlots) -> None:
        self._means = means
        self._slots = slots
        self._measuring: WeakValueDictionary[tuple[str, ProfileKey], asyncio.Lock] = WeakValueDictionary()

    async def profile(
        self,
        info: VersionInfo,
        where: Where,
        budget_s: float,
        *,
        renew: bool = True,
        restart: bool = False,
        on_progress: Progress | None = None,
    ) -> Profile:
        """The version's profile, measured for about ``budget_s`` seconds unless it is complete.

        Args:
            info: the version.
            where: on what.
            budget_s: each call times one cut at least, if any is left.
            renew: False: a profile that is known is returned, complete or not.
            restart: forget what was measured.
            on_progress: told what begins.

        Raises NODE_NOT_FOUND, QUEUE_FULL, DEADLINE_EXPIRED, and what the registry, the node and profiling raise.
        """
        target = await self._target(where)
        digest = info.artifacts[WHOLE].sha256 if WHOLE in info.artifacts else ""
        lock = self._measuring.setdefault((digest, target.key), asyncio.Lock())
        # Callers at the same time share one measurement: a second one waits and takes what the first one made.
        waited = lock.locked()
        async with lock:
            stored = (
                [] if restart and not waited else await self._means.registry.list_profiles(info.model, info.version)
            )
            known = next((one for one in stored if one.key == target.key), None)
            better = CALIBRATION in info.artifacts and known is not None and known.calibration == "random"
            if known is not None and not better and (known.complete or waited or not renew):
                return known
            async with self._slots:
                measurement = await Measurement.begin(self._means, info, target, budget_s, known, stored, on_progress)
                return await measurement.run()

    async def known(self, info: VersionInfo, node: str) -> Profile | None:
        """The newest profile of a node, for batches of 1 where there is one, corrected by its production; or None."""
        stored = await self._means.registry.list_profiles(info.model, info.version, node)
        profile = next((one for one in stored if one.key.batch == 1), next(iter(stored), None))
        return None if profile is None else await self._refreshed(info, profile)

    async def _target(self, where: Where) -> Target:
        if not 1 <= where.batch <= MAX_BATCH:
            raise field_error("batch", f"is {where.batch}, expected 1..{MAX_BATCH}")
        if where.threads < 0:
            raise field_error("threads", f"is {where.threads}, expected at least 0")
        node, address = self._means.settings.node, ""
        threads, backend = self._means.settings.profile_threads, CPU
        if where.node:
            found = await self._means.nodes.find(where.node)
            node, address, threads, backend = found.node, found.address, found.threads, found.backend
        key = ProfileKey(
            node=node, backend=where.backend or backend, threads=where.threads or threads, batch=where.batch
        )
        return Target(key, address)

    async def _refreshed(self, info: VersionInfo, profile: Profile) -> Profile:
        """By the segment of this model that ran most often on the node, if any ran often enough."""
        try:
            nodes = [one for one in await self._means.nodes.nodes() if one.node == profile.key.node]
            found = [one for node in nodes for one in await self._live(info, node, profile.key)]
            if not found:
                return profile
            runs, live_ms, side, cut = max(found, key=lambda entry: entry[0])
            better = corrected(profile, side, cut, live_ms, runs)
            if better is None:
                return profile
            await self._means.registry.put_profile(info.model, info.version, better)
        except MeshError as error:
            log.warning("the profile of %s on %s is used as it was measured: %s", info.model, profile.key.node, error)
            return profile
        return better

    async def _live(
        self, info: VersionInfo, node: NodeInfo, key: ProfileKey
    ) -> list[tuple[int, float, Side, frozenset[str]]]:
        """Runs, milliseconds per sample, and what ran, of every segment of this whole model that ran as profiled."""
        found = []
        for segment in node.segments:
            if (segment.backend, segment.threads) != (key.backend, key.threads):
                continue
            live = next((one for one in segment.live if one.batch == key.batch and one.runs >= MIN_LIVE_RUNS), None)
            if live is not None and (piece := await self._piece(info, segment)) is not None:
                found.append((int(live.runs), live.median_ms / key.batch, *piece))
        return found

    async def _piece(self, info: VersionInfo, segment: segment_pb2.LoadedSegment) -> tuple[Side, frozenset[str]] | None:
        """Which part of the whole model a loaded segment is; None for another model, and for the middle of a chain."""
        other = await self._means.registry.get_version(segment.model, segment.version)
        if other.artifacts.get(WHOLE) != info.artifacts.get(WHOLE):
            return None
        split = Manifest.from_json(await self._means.registry.fetch(other, MANIFEST)).split
        if split is None:
            return "whole", frozenset()
        hops, last = split.hops(), len(split.segments()) - 1
        if segment.segment == 0:
            return "head", frozenset(tensor.name for tensor in hops[0].cut)
        if segment.segment == last:
            return "tail", frozenset(tensor.name for tensor in hops[-1].cut)
        return None
