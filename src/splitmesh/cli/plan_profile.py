"""A plan of one profile, with no service: what the partitioner does for registered versions."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from splitmesh.client.partition import PlanInfo, PlanRow
from splitmesh.errors import MeshError
from splitmesh.model.known_facts import with_manifest_facts
from splitmesh.model.lineage import program_version
from splitmesh.model.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from splitmesh.model.plan import Constraints, Link, Option, Workload, make_plan
from splitmesh.model.plan_chain import Tier, plan_chain
from splitmesh.model.plan_options import AS_SENT
from splitmesh.model.plan_record import Plan, PlannedTier, PlanRecord
from splitmesh.model.profile_data import Profile

if TYPE_CHECKING:
    from onnx import ModelProto

    from splitmesh.cli.planning import Question


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """An ONNX file and what is known of it."""

    path: Path
    measured: Profile
    beside: Manifest | None
    """What the manifest beside it says of its cuts; None: there is none."""


def plan_profile(planned: PlannedFile, asked: Question) -> PlanInfo:
    """Every option ranked. Raises as ``make_plan`` and ``plan_chain``."""
    profile = planned.measured
    if planned.beside is not None:
        profile = with_manifest_facts(profile, planned.beside)
    workload = Workload({AS_SENT: asked.picture_bytes} if asked.picture_bytes else {}, escalation=asked.escalation)
    link = Link(asked.uplink_mbps, asked.rtt_ms)
    constraints = Constraints(
        picture_stays_on_site=asked.picture_stays_on_site,
        max_head_bytes=asked.max_head_bytes or None,
        uplink_budget_bytes_per_s=asked.uplink_budget_bytes_per_s or None,
        frames_per_s=asked.frames_per_s or None,
        max_leakage=asked.max_leakage,
        kept_on_edge=asked.kept_on_edge,
        unsupported_on_edge=frozenset(asked.unsupported_on_edge),
    )
    slow, fast = asked.edge_slowdown, asked.cloud_speedup
    if asked.between:
        middle = [Tier(entry.name, profile, entry.slowdown, entry.max_model_bytes or None) for entry in asked.between]
        tiers = [Tier("edge", profile, slow), *middle, Tier("cloud", profile, 1 / fast if fast else 0.0)]
        links = [link, *(Link(entry.uplink_mbps, entry.rtt_ms) for entry in asked.between)]
        made = plan_chain(tiers, links, workload, constraints, asked.objective)
    else:
        made = make_plan(
            profile,
            link,
            workload,
            constraints,
            edge_slowdown=slow,
            cloud_speedup=fast,
            objective=asked.objective,
        )
    options = tuple(_row(option) for option in made.options)
    return PlanInfo(options, made.why, made.certificate, _record(planned, asked, made))


def _record(planned: PlannedFile, asked: Question, made: Plan) -> PlanRecord:
    """For the version that the file is, or will be: the same bytes."""
    middle = [
        PlannedTier.of(entry.name, planned.measured, entry.slowdown, entry.max_model_bytes or None)
        for entry in asked.between
    ]
    return PlanRecord.of(
        made,
        tiers=[
            PlannedTier.of("edge", planned.measured, asked.edge_slowdown),
            *middle,
            PlannedTier.of("cloud", planned.measured, 1 / asked.cloud_speedup),
        ],
        model=planned.path.name,
        whole_sha256=hashlib.sha256(planned.path.read_bytes()).hexdigest(),
        plan_time=datetime.now(UTC),
        code_version=program_version(),
    )


def _row(option: Option) -> PlanRow:
    return PlanRow(
        kind=option.kind.value,
        cut=option.cut,
        codec=option.codec,
        latency_ms=option.latency_ms,
        stages=asdict(option.stages),
        uplink_bytes=option.uplink_bytes,
        throughput_fps=option.throughput_fps,
        feasible=option.feasible,
        refused_because=option.refused_because or "",
        agreement=option.agreement,
        head_bytes=option.head_bytes,
        measured=option.measured,
        tiers=option.tiers,
    )


def manifest_beside(path: Path, model: ModelProto) -> Manifest | None:
    """The manifest in the file's folder, where there is one that describes this model; any other is left alone."""
    beside = path.parent / MANIFEST
    if not beside.is_file() or beside.stat().st_size > MAX_MANIFEST_BYTES:
        return None
    try:
        manifest = Manifest.from_json(beside.read_bytes())
    except MeshError:
        # Many a folder holds a manifest.json of something else.
        return None
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {info.name for info in model.graph.input} - weights
    whole = manifest.whole
    same = (
        whole.artifact == path.name
        and {info.name for info in whole.inputs} == inputs
        and {info.name for info in whole.outputs} == {info.name for info in model.graph.output}
    )
    return manifest if same else None
