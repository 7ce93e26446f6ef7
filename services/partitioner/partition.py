"""The partitioner's three verbs over the registry: profile a version, plan it, split it.

Heavy work goes to a child process. Knows no gRPC. What a cut is, what it costs and which option wins is
`splitmesh.model`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from services.partitioner.config import PartitionerSettings
from services.partitioner.measure import OWN_NODE, Measurer, Where
from services.partitioner.planning import PlanTask, plan_over, planned_tiers
from services.partitioner.work import split_version
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.repeated import create_repeatable
from splitmesh.compress.report import Report
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import JobSlots, Progress, run_job
from splitmesh.model.known_facts import with_manifest_facts
from splitmesh.model.lineage import Lineage, program_version
from splitmesh.model.manifest import CALIBRATION, MANIFEST, PLAN, REPORT, WHOLE, Manifest, SplitInfo
from splitmesh.model.plan_record import Cuts, Plan, PlanRecord
from splitmesh.model.profile_data import Profile

DEFAULT_BUDGET_S = 20.0
MAX_BUDGET_S = 300.0
MAX_CUT_TENSORS = 64
MAX_CUTS = 15
CREATED_BY = "partitioner"


class Partitioner:
    """Profiles, plans and splits registered versions."""

    def __init__(
        self,
        registry: RegistryClient,
        measurer: Measurer,
        slots: JobSlots,
        settings: PartitionerSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._registry = registry
        self._measurer = measurer
        self._slots = slots
        self._settings = settings
        self._now = now

    async def profile(
        self,
        model: str,
        version: int,
        budget_s: float,
        where: Where = OWN_NODE,
        *,
        renew: bool = True,
        restart: bool = False,
        on_progress: Progress | None = None,
    ) -> Profile:
        """The version's profile on a node, measured unless it is complete; see :meth:`Measurer.profile`.

        Raises FIELD_INVALID for a budget outside 0..300 s (0: 20 s), and as that.
        """
        budget_s = _budget(budget_s)
        info = await self._version(model, version)
        return await self._measurer.profile(
            info, where, budget_s, renew=renew, restart=restart, on_progress=on_progress
        )

    async def known_profile(self, info: VersionInfo, node: str) -> Profile | None:
        """What is known of a version on a node, corrected by production; None: nothing."""
        return await self._measurer.known(info, node)

    async def plan(self, model: str, version: int, task: PlanTask, budget_s: float) -> tuple[Plan, PlanRecord]:
        """Every option ranked, the version's own coded cut among them, and the plan as a version keeps it.

        Raises as `profile`; PLAN_INFEASIBLE, FIELD_INVALID.
        """
        info = await self._version(model, version)
        manifest = Manifest.from_json(await self._registry.fetch(info, MANIFEST))
        timed_ms = await self.timed_ms(info)
        measured: dict[str, Profile] = {}

        async def profile_of(node: str) -> Profile:
            known = await self.known_profile(info, node) if node else None
            profile = known or await self.profile(model, version, budget_s, Where(node), renew=False)
            measured[node] = profile
            return with_manifest_facts(profile, manifest, timed_ms)

        plan = await plan_over(task, profile_of, self._settings.max_disagreement)
        record = PlanRecord.of(
            plan,
            tiers=planned_tiers(task, measured),
            model=f"{info.model}:{info.version}",
            whole_sha256=info.artifact(WHOLE).sha256,
            plan_time=self._now(),
            code_version=program_version(),
        )
        return plan, record

    async def timed_ms(self, info: VersionInfo) -> dict[str, float]:
        """What the recipe that made a version timed, by piece; empty where there is no (readable) report."""
        if REPORT not in info.artifacts:
            return {}
        try:
            return Report.from_json(await self._registry.fetch(info, REPORT)).latency_ms
        except MeshError as error:
            # Older recipes wrote other reports; a plan without these times counts the coding alone.
            if error.reason is not Reason.MODEL_CORRUPT:
                raise
            return {}

    async def split(
        self, model: str, version: int, cuts: Sequence[Sequence[str]], plan: str = ""
    ) -> tuple[int, Cuts, float]:
        """The split version, its cuts, and the largest difference between its segments, one after the other, and the whole.

        One cut gives head and tail, several a chain; they are named from the input to the output, or follow from the plan.
        Repeating a split gives the version made first. Raises CUT_INVALID, SPLIT_NOT_EQUAL, MODEL_SHAPE_UNKNOWN, what
        the registry raises, QUEUE_FULL, DEADLINE_EXPIRED; FIELD_INVALID for a plan that cannot be read, is of another model
        or has no such cut.
        """
        record = PlanRecord.from_json(plan) if plan else None
        if record is None or cuts:
            _require_cuts(cuts)
        info = await self._version(model, version)
        parts: dict[str, bytes] = {}
        if record is not None:
            if record.whole_sha256 != info.artifact(WHOLE).sha256:
                raise field_error(
                    "plan", f"was made for {record.model}, another whole model than that of {model}:{version}"
                )
            record, cuts = record.follow(cuts)
            _require_cuts(cuts)
            parts[PLAN] = record.to_json().encode()
        async with self._slots:
            whole, manifest, calibration = await self._fetch(info)
            parts |= await run_job(
                split_version,
                whole,
                manifest,
                calibration,
                tuple(tuple(cut) for cut in cuts),
                deadline_s=self._settings.split_deadline_s,
                max_memory_bytes=self._settings.max_job_memory_bytes,
            )
        if calibration is not None:
            parts[CALIBRATION] = calibration
        made = await create_repeatable(
            self._registry,
            model,
            parts,
            parent=version,
            created_by=CREATED_BY,
            description=f"version {version} cut at {'; then at '.join(map(', '.join, cuts))}"[:1000],
            request_id=_request_id(model, version, cuts, parts.get(PLAN)),
            lineage=lineage_of(info, _split_of(model, parts[MANIFEST]), record),
        )
        # Read back: a repeated request returns the version made first, with its own verification.
        split = _split_of(model, await self._registry.fetch(made, MANIFEST))
        return made.version, split.cuts, split.verification.max_abs_error

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


def _split_of(model: str, manifest: bytes) -> SplitInfo:
    split = Manifest.from_json(manifest).split
    if split is None:
        raise MeshError(Reason.MODEL_CORRUPT, f"the split version of {model!r} is not split")
    return split


def lineage_of(info: VersionInfo, split: SplitInfo, record: PlanRecord | None) -> Lineage:
    """Of a split of a version; its calibration samples go on with it, and so does where they came from."""
    choice = None if record is None else record.choice
    return Lineage(
        datasets=info.lineage.datasets_as("calibration") if CALIBRATION in info.artifacts else (),
        code_version=program_version(),
        metrics={
            "max_abs_error": split.verification.max_abs_error,
            **({} if choice is None else {"planned_ms": choice.latency_ms}),
        },
    )


def _require_cuts(cuts: Sequence[Sequence[str]]) -> None:
    if not 1 <= len(cuts) <= MAX_CUTS:
        raise MeshError(Reason.CUT_INVALID, f"{len(cuts)} cuts named; a chain has 1..{MAX_CUTS}")
    for cut in cuts:
        if not 1 <= len(cut) <= MAX_CUT_TENSORS:
            raise MeshError(Reason.CUT_INVALID, f"{len(cut)} tensors named; a cut has 1..{MAX_CUT_TENSORS}")


def _request_id(model: str, version: int, cuts: Sequence[Sequence[str]], plan: bytes | None) -> str:
    """The same for the same cuts by the same plan, in whatever order the tensors of each are named."""
    first, *further = (sorted(cut) for cut in cuts)
    by = [] if plan is None else [hashlib.sha256(plan).hexdigest()]
    key = json.dumps([model, version, first, *further, *by])
    return f"split-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
