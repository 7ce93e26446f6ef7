"""Hosts, deployments and tasks as people read them: rows of tables and lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from splitmesh.cli.models_shown import time_text
from splitmesh.client.fleet_deployments import DeploymentInfo, DeploymentNode, DeploymentState, Evidence
from splitmesh.client.fleet_nodes import NodeInfo, NodeState, Phase, ServingInfo
from splitmesh.client.fleet_tasks import TaskInfo, TaskState

NODES = (
    *("node", "site", "line", "groups", "state", "seen", "cores", "memory", "back end", "serves"),
    *("spooled", "warning"),
)
DEPLOYMENTS = ("deployment", "model", "state", "hosts", "wave", "target", "asked for (UTC)", "by", "message")
DEPLOYMENT_NODES = ("node", "wave", "version", "from", "agent", "why")
TASKS = ("task", "kind", "what", "node", "state", "progress", "try", "asked for (UTC)", "why")
GIB = 2**30


def node_rows(nodes: Sequence[NodeInfo], now: datetime) -> list[list[object]]:
    """A row for each host."""
    return [
        [
            node.node,
            node.site,
            node.line,
            ", ".join(sorted(node.camera_groups)),
            node.state.value.lower(),
            "now" if node.state is NodeState.ONLINE else ago(node.seen_time, now),
            node.capabilities.cores,
            gib(node.capabilities.memory_bytes),
            _backends(node),
            "\n".join(serving_line(one) for one in node.serving),
            node.metrics.spooled_records,
            node.warning,
        ]
        for node in nodes
    ]


def node_lines(node: NodeInfo) -> list[str]:
    """All of one host that is not a table of its own."""
    can, metrics = node.capabilities, node.metrics
    labels = ", ".join(f"{key}={value}" for key, value in sorted(node.labels.items()))
    lines = [
        f"{node.node}: {node.state.value.lower()}, heard of {time_text(node.seen_time)}, first {time_text(node.create_time)}",
        f"tenant {node.tenant}, site {node.site or '-'}, line {node.line or '-'}, cameras {', '.join(node.camera_groups) or '-'}",
        f"labels: {labels or '-'}",
        f"agent {node.agent_version}, boot {node.boot_id}",
        f"{can.cpu_model or can.architecture}, {can.cores} cores, {gib(can.memory_bytes)}, {can.os}",
        f"instructions: {' '.join(can.cpu_flags) or '-'}",
        *(f"{gpu.name}, {gib(gpu.memory_bytes)}, driver {gpu.driver}" for gpu in can.gpus),
        f"processor {metrics.cpu_share:.0%}, memory {gib(metrics.memory_bytes)} used, disk {gib(metrics.disk_free_bytes)} free",
        f"spooled {metrics.spooled_records:,} records, dropped {metrics.dropped_records:,} since it was set up",
    ]
    if node.policy is not None:
        shares = [
            f"{one.model} priority {one.priority}, cpu {one.cpu_weight or 1:g}, "
            f"memory {gib(one.memory_bytes) if one.memory_bytes else 'any'}"
            for one in node.policy.shares
        ]
        held = "in force" if metrics.policy_generation >= node.policy.generation else "on its way"
        most = f"; at most {gib(node.policy.memory_bytes)} together" if node.policy.memory_bytes else ""
        lines.append(f"policy {node.policy.generation} ({held}): {'; '.join(shares) or 'defaults'}{most}")
    return [*lines, *([f"warning: {node.warning}"] if node.warning else [])]


def backend_rows(node: NodeInfo) -> list[list[object]]:
    """What computes segments on a host, and what is installed there and cannot."""
    return [
        [one.name, one.version, ", ".join(one.precisions), one.unusable or "usable"]
        for one in node.capabilities.backends
    ]


def choice_rows(node: NodeInfo) -> list[list[object]]:
    """What was measured on a host for what it serves, chosen ones first."""
    rows: list[list[object]] = []
    for serving in node.serving:
        wanted = serving.wanted
        if wanted is None or wanted.backend is None:
            continue
        chosen = wanted.backend
        others = [one for one in wanted.candidates if one != chosen]
        for one in [chosen, *sorted(others, key=lambda other: -other.frames_per_s)]:
            verdict = "chosen" if one is chosen else one.refused or "slower"
            rows.append(
                [
                    *(f"{serving.model}:{wanted.version}", one.backend, one.precision, one.threads),
                    *(one.p50_ms, one.p99_ms, one.frames_per_s, f"{one.error:.1e}", verdict),
                ]
            )
    return rows


CHOICES = ("model", "back end", "numbers", "threads", "p50 ms", "p99 ms", "frames/s", "error", "verdict")


def serving_line(serving: ServingInfo) -> str:
    """One model on one host: the version that answers, and what is on its way."""
    text = f"{serving.model}:{serving.active_version or '-'}"
    wanted, tried = serving.wanted, serving.candidate
    if wanted is not None and (wanted.version != serving.active_version or wanted.phase is Phase.FAILED):
        text += f" -> {wanted.version} {wanted}{f' ({wanted.reason})' if wanted.reason else ''}"
    elif serving.active_version:
        text += " serving"
    if tried is not None:
        text += f", {tried.version} tried: {tried}"
    return text


def deployment_rows(found: Sequence[DeploymentInfo]) -> list[list[object]]:
    """A row for each deployment."""
    return [
        [
            *(one.id, f"{one.model}:{one.version}", state_text(one), counts_text(one), wave_text(one), str(one.target)),
            *(time_text(one.create_time), one.created_by, one.message),
        ]
        for one in found
    ]


def deployment_node_rows(nodes: Sequence[DeploymentNode]) -> list[list[object]]:
    """A row for each host of a deployment."""
    return [
        [
            *(one.node, one.wave, progress_text(one), one.from_version or "-"),
            *("online" if one.online else "offline", one.progress.message or one.progress.reason),
        ]
        for one in nodes
    ]


def progress_text(node: DeploymentNode) -> str:
    """How far a host is with the version."""
    if node.rolled_back:
        return f"back at {node.from_version}" if node.from_version else "withdrawn"
    return str(node.progress)


def state_text(deployment: DeploymentInfo) -> str:
    """Where a deployment stands."""
    text = deployment.state.value.lower().replace("_", " ")
    if deployment.state is DeploymentState.PAUSED and deployment.resumes is not None:
        text += f" ({deployment.resumes.value.lower()})"
    return text


def counts_text(deployment: DeploymentInfo) -> str:
    """Its hosts in a few words, such as ``3 of 5 serving, 1 failed``."""
    counts = deployment.counts
    text = f"{counts.serving} of {counts.total} serving"
    others = {
        "under way": counts.under_way,
        "failed": counts.failed,
        "offline": counts.offline,
        "rolled back": counts.rolled_back,
    }
    return ", ".join([text, *(f"{count} {name}" for name, count in others.items() if count)])


def wave_text(deployment: DeploymentInfo) -> str:
    """Which wave of how many."""
    return f"{deployment.wave}/{deployment.waves}" if deployment.waves else "-"


def evidence_text(evidence: Evidence) -> str:
    """What a trial has shown so far, and what is missing."""
    text = (
        f"{evidence.pairs:,} pairs: wrong {evidence.serving_loss:.2%} before, {evidence.candidate_loss:.2%} now; "
        f"not worse {evidence.not_worse:.3g}, worse {evidence.worse:.3g}, either needs {evidence.needed:.3g}"
    )
    if evidence.candidate_failed:
        text += f"; {evidence.candidate_failed:,} failed"
    return text


def task_rows(tasks: Sequence[TaskInfo]) -> list[list[object]]:
    """A row for each task."""
    return [
        [
            *(one.id, one.kind.value.lower(), one.what, one.node or str(one.target), one.state.value.lower()),
            *(task_progress(one), f"{one.attempt}/{one.max_attempts}", time_text(one.create_time), task_note(one)),
        ]
        for one in tasks
    ]


def task_progress(task: TaskInfo) -> str:
    """How far it is."""
    return f"{task.share:.0%} {task.phase}".strip() if task.state is TaskState.RUNNING else ""


def task_note(task: TaskInfo) -> str:
    """What came of it, or why it waits or failed."""
    if task.state is TaskState.DONE:
        return ", ".join(f"{name} {value}" for name, value in sorted(task.result.items()))
    reason = f"{task.reason}: " if task.reason else ""
    return f"{reason}{task.message or task.note}"


def ago(at: datetime, now: datetime) -> str:
    """``12 s ago``, ``5 min ago``, ``3 h ago``; a date when it is longer than two days."""
    past_s = (now - at).total_seconds()
    if past_s < 0 or at == datetime.fromtimestamp(0, UTC):
        return "never" if past_s >= 0 else "now"
    for limit, unit, word in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if past_s < limit:
            return f"{past_s / unit:.0f} {word} ago"
    return f"{at:%Y-%m-%d}"


def gib(size: int) -> str:
    """Bytes as GiB, or as MiB where they are few."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def _backends(node: NodeInfo) -> str:
    """Those that answer now; where none does, those that could."""
    used = {one.wanted.backend for one in node.serving if one.wanted is not None and one.wanted.backend is not None}
    if used:
        return ", ".join(sorted({f"{one.backend} {one.precision}" for one in used}))
    return ", ".join(one.name for one in node.capabilities.backends if not one.unusable)
