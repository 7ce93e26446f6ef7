"""The partitioner's three verbs over the registry: profile a version, plan it, split it.

Heavy work goes to a child process. Knows no gRPC. What a cut is, what it costs and which option wins is
`splitmesh.model`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from services.partitioner.config import PartitionerSettings
from services.partitioner.profiles import ProfileCache, StoredProfile
from services.partitioner.work import ExitTrial, profile_version, split_version
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import JobSlots, run_job
from splitmesh.model.manifest import CALIBRATION, MANIFEST, WHOLE, Manifest
from splitmesh.model.plan import Constraints, Link, Plan, Workload, make_plan

DEFAULT_BUDGET_S = 20.0
MAX_BUDGET_S = 300.0
MAX_CUT_TENSORS = 64
CREATED_BY = "partitioner"


@dataclass(frozen=True, slots=True)
class PlanTask:
    """What a plan is asked for."""

    link: Link
    workload: Workload
    """Without picture sizes."""
    constraints: Constraints
    edge_slowdown: float
    cloud_speedup: float
    picture_bytes: int
    """0: what the profile measured."""


class Partitioner:
    """Profiles, plans and splits registered versions."""

    def __init__(
        self, registry: RegistryClient, profiles: ProfileCache, slots: JobSlots, settings: PartitionerSettings
    ) -> None:
        self._registry = registry
        self._profiles = profiles
        self._slots = slots
        self._settings = settings
        self._measuring: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()

    async def profile(self, model: str, version: int, budget_s: float, *, renew: bool = True) -> StoredProfile:
        """The version's profile, measured unless it is known.

        With ``renew`` a profile made under a smaller budget is measured again. Raises FIELD_INVALID for a budget
        outside 0..300 s (0: 20 s), what the registry raises, QUEUE_FULL, DEADLINE_EXPIRED and what profiling raises.
        """
        budget_s = _budget(budget_s)
        info = await self._version(model, version)
        lock = self._measuring.setdefault((model, version), asyncio.Lock())
        # A second caller waits and then finds the first one's result.
        async with lock:
            known = await asyncio.to_thread(self._profiles.get, model, version)
            if known is not None and (not renew or known.budget_s >= budget_s):
                return known
            stored = await self._measure(info, budget_s)
            await asyncio.to_thread(self._profiles.put, model, version, stored)
            return stored

    async def plan(self, model: str, version: int, task: PlanTask, budget_s: float) -> Plan:
        """Every option ranked. Raises as `profile`; PLAN_INFEASIBLE, FIELD_INVALID."""
        stored = await self.profile(model, version, budget_s, renew=False)
        told, measured = {"as sent": task.picture_bytes}, {stored.picture.codec: stored.picture.size_bytes}
        return make_plan(
            stored.profile,
            task.link,
            replace(task.workload, picture_bytes=told if task.picture_bytes else measured),
            task.constraints,
            edge_slowdown=task.edge_slowdown,
            cloud_speedup=task.cloud_speedup,
        )

    async def split(self, model: str, version: int, cut: Sequence[str]) -> tuple[int, float]:
        """The split version and the largest difference between head + tail and the whole.

        Repeating a split gives the version made first. Raises CUT_INVALID, SPLIT_NOT_EQUAL, MODEL_SHAPE_UNKNOWN, what
        the registry raises, QUEUE_FULL, DEADLINE_EXPIRED.
        """
        if not 1 <= len(cut) <= MAX_CUT_TENSORS:
            raise MeshError(Reason.CUT_INVALID, f"{len(cut)} tensors named; a cut has 1..{MAX_CUT_TENSORS}")
        info = await self._version(model, version)
        async with self._slots:
            whole, manifest, calibration = await self._fetch(info)
            artifacts = await run_job(
                split_version,
                whole,
                manifest,
                calibration,
                tuple(cut),
                deadline_s=self._settings.split_deadline_s,
                max_memory_bytes=self._settings.max_job_memory_bytes,
            )
        if calibration is not None:
            artifacts[CALIBRATION] = calibration
        made = await self._registry.create_version(
            model,
            artifacts,
            parent=version,
            created_by=CREATED_BY,
            description=f"version {version} cut at {', '.join(cut)}"[:1000],
            request_id=_request_id(model, version, cut),
        )
        # Read back: a repeated request returns the version made first, with its own verification.
        split = Manifest.from_json(await self._registry.fetch(made, MANIFEST)).split
        if split is None:
            raise MeshError(Reason.MODEL_CORRUPT, f"version {made.version} of {model!r} is not split")
        return made.version, split.verification.max_abs_error

    async def _measure(self, info: VersionInfo, budget_s: float) -> StoredProfile:
        async with self._slots:
            whole, manifest, calibration = await self._fetch(info)
            return await run_job(
                profile_version,
                whole,
                manifest,
                calibration,
                budget_s,
                self._settings.profile_threads,
                ExitTrial(self._settings.max_disagreement, self._settings.delta, self._settings.holdout_share),
                deadline_s=budget_s + self._settings.profile_margin_s,
                max_memory_bytes=self._settings.max_job_memory_bytes,
            )

    async def _version(self, model: str, version: int) -> VersionInfo:
        if version < 1:
            raise field_error("version", "is 0; versions count from 1")
        return await self._registry.get_version(model, version)

    async def _fetch(self, info: VersionInfo) -> tuple[bytes, bytes, bytes | None]:
        """Model, manifest and calibration samples, where the version has some."""
        whole = await self._registry.fetch(info, WHOLE)
        manifest = await self._registry.fetch(info, MANIFEST)
        calibration = await self._registry.fetch(info, CALIBRATION) if CALIBRATION in info.artifacts else None
        return whole, manifest, calibration


def _budget(budget_s: float) -> float:
    if not (math.isfinite(budget_s) and 0 <= budget_s <= MAX_BUDGET_S):
        raise field_error("budget_s", f"is {budget_s}, expected 0..{MAX_BUDGET_S:g} seconds")
    return budget_s or DEFAULT_BUDGET_S


def _request_id(model: str, version: int, cut: Sequence[str]) -> str:
    """The same for the same cut, in whatever order its tensors are named."""
    key = json.dumps([model, version, sorted(cut)])
    return f"split-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
