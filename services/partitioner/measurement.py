"""One call's work on one profile, step by step, kept in the registry after each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from services.partitioner.config import PartitionerSettings
from services.partitioner.exit_work import ExitTrial, try_exits
from services.partitioner.timing_work import (
    Timed,
    Version,
    cut_version,
    survey_version,
    time_cut,
    time_model,
)
from splitmesh.client.node_profiler import NodeProfiler
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError
from splitmesh.kernel.jobs import Progress, run_job
from splitmesh.model.manifest import CALIBRATION, MANIFEST, WHOLE
from splitmesh.model.points import Pace, Point, Times, known_points, per_sample
from splitmesh.model.profile import CANNOT_BE_CUT, MAX_POINTS, REPEATS, assemble, next_cut
from splitmesh.model.profile_data import Profile, ProfileKey
from splitmesh.model.survey import Survey, Tensors
from splitmesh.runtime.timing import Timing, host_text

MAX_PIECE_BUDGET_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Target:
    """A node that was found."""

    key: ProfileKey
    address: str
    """Empty: this process's host."""


@dataclass(frozen=True, slots=True)
class Means:
    """What measuring needs."""

    registry: RegistryClient
    nodes: NodeProfiler
    settings: PartitionerSettings


class Measurement:
    """One call's work on one profile."""

    def __init__(
        self,
        means: Means,
        info: VersionInfo,
        version: Version,
        target: Target,
        budget_s: float,
        known: Profile | None,
        facts: Profile | None,
        report: Progress,
    ) -> None:
        self._means = means
        self._info = info
        self._version = version
        self._target = target
        self._budget_s = budget_s
        self._known = known
        self._facts = facts
        self._report = report
        self._until = time.monotonic() + budget_s
        self._points: dict[Tensors, Point] = {} if known is None else known_points(known)
        self._refused = set[Tensors]()
        self._host = host_text() if known is None else known.host
        key = target.key
        piece_s = min(MAX_PIECE_BUDGET_S, budget_s / (3 * MAX_POINTS + 1))
        self._how = Timed(key.batch, key.threads, key.backend, REPEATS, piece_s)

    @classmethod
    async def begin(
        cls,
        means: Means,
        info: VersionInfo,
        target: Target,
        budget_s: float,
        known: Profile | None,
        stored: list[Profile],
        on_progress: Progress | None,
    ) -> Measurement:
        """Fetches what is to be measured; sizes may be taken over from another node's profile of the same samples."""
        report = on_progress or _silent
        report("fetching the model", 0.0)
        fetch = means.registry.fetch
        calibration = await fetch(info, CALIBRATION) if CALIBRATION in info.artifacts else None
        version = Version(await fetch(info, WHOLE), await fetch(info, MANIFEST), calibration)
        surveyed = [one for one in (known, *stored) if one is not None]
        facts = next((one for one in surveyed if one.calibration == "real"), None)
        if facts is None and calibration is None:
            facts = next(iter(surveyed), None)
        return cls(means, info, version, target, budget_s, known, facts, report)

    async def run(self) -> Profile:
        """Survey, whole, cuts until the budget is over, exits."""
        settings = self._means.settings
        self._report("measuring sizes on the wire", 0.02)
        found = await self._job(survey_version, self._version, self._facts, self._budget_s, settings.profile_threads)
        if self._known is not None:
            pace = Pace(
                Times(self._known.whole_ms, self._known.whole_p90_ms, self._known.whole_p99_ms or 0.0), continued=True
            )
            self._refused = {cut.tensors for cut in found.cuts} - {cut.tensors for cut in self._known.cuts}
        else:
            self._report("timing the whole model", 0.1)
            pace = Pace(await self._time_whole())
        profile, earlier = await self._keep(found, pace.whole), self._points
        # In threads, as `assemble`: seconds for a graph of thousands of operators.
        while (tensors := await asyncio.to_thread(next_cut, found, self._points, self._refused)) is not None:
            begun = time.monotonic()
            done = 0.15 + 0.75 * len(self._points) / min(MAX_POINTS, len(found.cuts))
            self._report(f"timing the cut at {', '.join(tensors)}", done)
            try:
                pace.add(tensors, await self._time_cut(tensors), await self._time_whole())
                self._points = pace.points(earlier)
            except MeshError as error:
                if error.reason not in CANNOT_BE_CUT:
                    raise
                self._refused.add(tensors)
            profile = await self._keep(found, pace.whole)
            now = time.monotonic()
            if now + (now - begun) > self._until:
                break
        if all(cut.escalation is None for cut in profile.cuts) and self._version.calibration is not None:
            self._report("trying exits", 0.92)
            trial = ExitTrial(settings.max_disagreement, settings.delta, settings.holdout_share)
            tried = await self._job(try_exits, self._version, profile, trial, settings.profile_threads, self._budget_s)
            if tried != profile:
                profile = tried
                await self._put(profile)
        self._report("done", 1.0)
        return profile

    async def _time_whole(self) -> Times:
        if self._target.address:
            timing, self._host = await self._remote(self._version.whole)
        else:
            timing = await self._job(time_model, self._version.whole, self._how)
        return per_sample(timing, self._how.batch)

    async def _time_cut(self, tensors: Tensors) -> Point:
        if not self._target.address:
            return await self._job(time_cut, self._version, tensors, self._how)
        threads = self._means.settings.profile_threads
        made = await self._job(cut_version, self._version, tensors, threads, self._how.budget_s)
        (head, _), (tail, _) = await self._remote(made.head), await self._remote(made.tail)
        return Point(per_sample(head, self._how.batch), per_sample(tail, self._how.batch), made.agreement)

    def _remote(self, piece: bytes) -> Awaitable[tuple[Timing, str]]:
        how = self._how
        return self._means.nodes.time_piece(
            self._target.address,
            piece,
            batch=how.batch,
            threads=how.threads,
            backend=how.backend,
            repeats=how.repeats,
            budget_s=how.budget_s,
        )

    async def _keep(self, found: Survey, whole: Times) -> Profile:
        profile = await asyncio.to_thread(
            assemble,
            found,
            self._target.key,
            whole,
            self._points,
            refused=self._refused,
            host=self._host,
            known=self._facts,
        )
        await self._put(profile)
        return profile

    async def _put(self, profile: Profile) -> None:
        await self._means.registry.put_profile(self._info.model, self._info.version, profile)

    async def _job(self, function: Callable[..., T], *args: object) -> T:
        settings = self._means.settings
        return await run_job(
            function,
            *args,
            deadline_s=self._budget_s + settings.profile_margin_s,
            max_memory_bytes=settings.max_job_memory_bytes,
        )


def _silent(step: str, share: float) -> None:
    """Nobody listens."""
