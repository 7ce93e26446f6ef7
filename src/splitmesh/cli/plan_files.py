"""Plans as files: what ``splitmesh plan`` writes and ``splitmesh split --plan`` reads, and as people read a version's."""

from __future__ import annotations

import json
from pathlib import Path

from splitmesh.client.partition import PlanInfo
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import PLAN
from splitmesh.model.plan_options import Link
from splitmesh.model.plan_record import MAX_PLAN_BYTES, PlanRecord

RECORD = "record"
"""Where a plan printed as JSON holds what is kept of it."""

MAX_PRINTED_BYTES = 64 << 20


def as_json(found: PlanInfo) -> dict[str, object]:
    """What ``plan --json`` prints: every option, and the record, with which the output is a plan file too."""
    record = None if found.record is None else found.record.model_dump(mode="json")
    return {"options": found.options, "why": found.why, "certificate": found.certificate, RECORD: record}


def write_plan(path: Path, found: PlanInfo) -> None:
    """The record alone; MeshError FIELD_INVALID when there is none, or it cannot be written."""
    if found.record is None:
        raise field_error("out", f"the plan cannot be kept: {found.no_record}")
    try:
        path.write_text(found.record.to_json())
    except OSError as error:
        raise field_error("out", f"{path} cannot be written: {error.strerror}") from error


def read_plan(path: Path) -> PlanRecord:
    """Of ``plan --out`` or of ``plan --json``; MeshError FIELD_INVALID says what is wrong with it."""
    try:
        if path.stat().st_size > MAX_PRINTED_BYTES:
            raise field_error("plan", f"{path} has more than {MAX_PRINTED_BYTES} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise field_error("plan", f"{path} cannot be read: {error.strerror}") from error
    return PlanRecord.from_json(_record_in(content))


def _record_in(content: bytes) -> bytes:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return content  # refused as what it is
    printed = isinstance(found, dict) and isinstance(found.get(RECORD), dict)
    return json.dumps(found[RECORD]).encode() if printed else content


async def fetch_plan(registry: RegistryClient, version: VersionInfo) -> PlanRecord | str | None:
    """A version's, to be looked at and not used, so nothing is verified; why it cannot be read; None where it has none."""
    ref = version.artifacts.get(PLAN)
    if ref is None:
        return None
    if ref.size_bytes > MAX_PLAN_BYTES:
        return f"has {ref.size_bytes} bytes, more than {MAX_PLAN_BYTES}"
    try:
        return PlanRecord.from_json(await registry.pull_artifact(ref))
    except MeshError as error:
        if error.reason is not Reason.FIELD_INVALID:
            raise
        return error.message


def plan_value(found: PlanRecord | str | None) -> object:
    """For JSON."""
    return found.model_dump(mode="json") if isinstance(found, PlanRecord) else found and {"unreadable": found}


def plan_lines(record: PlanRecord | str | None, whole_sha256: str) -> list[str]:
    """For people, a line each."""
    if not isinstance(record, PlanRecord):
        return [f"{PLAN} cannot be read: {record}"] if record else []
    lines = [
        f"plan of {record.model} for {record.plan.objective.value.lower()}, made at"
        f" {record.plan_time:%Y-%m-%d %H:%M:%S} by {record.code_version}, of {record.options_ranked} options",
        *(
            f"  {tier.name}: {tier.profile.node}, {tier.profile.backend}, times x {tier.slowdown:g},"
            f" profile {tier.profile_sha256[:12]}"
            + (f"; then {_link(record.plan.links[index])}" if index < len(record.plan.links) else "")
            for index, tier in enumerate(record.tiers)
        ),
    ]
    if record.choice is not None:
        stages = record.choice.stages
        lines.append(
            f"  chosen: {record.choice.name}, {record.choice.latency_ms:.2f} ms expected (edge {stages.edge_ms:.2f},"
            f" encode {stages.encode_ms:.2f}, link {stages.link_ms:.2f}, rtt {stages.rtt_ms:.2f},"
            f" cloud {stages.cloud_ms:.2f}), {record.choice.uplink_bytes:.0f} bytes sent"
        )
    lines.append(f"  {record.plan.why}")
    if record.whole_sha256 != whole_sha256:
        lines.append(f"  made for another whole model, {record.whole_sha256[:12]}: this one was changed since")
    return lines


def _link(link: Link) -> str:
    return f"{link.uplink_mbps:g} Mbit/s, {link.rtt_ms:g} ms"
