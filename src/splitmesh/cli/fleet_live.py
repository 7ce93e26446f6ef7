"""A deployment or a task while it is under way: in place on a terminal, line by line in a pipe, as JSON lines for programs.

Knows how it is shown. Does not know who asked for it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape

from splitmesh.cli.fleet_shown import (
    DEPLOYMENT_NODES,
    counts_text,
    deployment_node_rows,
    evidence_text,
    progress_text,
    state_text,
    task_note,
    task_progress,
    wave_text,
)
from splitmesh.cli.output import make_table, show_line
from splitmesh.client.fleet_deployments import DeploymentInfo, DeploymentNews, DeploymentNode, DeploymentState
from splitmesh.client.fleet_nodes import Phase
from splitmesh.client.fleet_tasks import TaskInfo
from splitmesh.errors import MeshError

SHOWN_NODES = 30
"""On a terminal; of more those under way and failed come first."""
TOLD_NODES = 100
"""A pipe hears of each host's phases in deployments of at most so many."""


async def follow_deployment(news: AsyncGenerator[DeploymentNews], shown: DeploymentShown) -> DeploymentInfo | None:
    """The deployment when it has ended or waits for somebody; each change is shown. None: there was no news."""
    last: DeploymentInfo | None = None
    async with aclosing(news):
        async for one in news:
            shown.show(one)
            last = one.deployment
            if last.state is DeploymentState.PAUSED:
                break
    return last


async def follow_task(states: AsyncGenerator[TaskInfo], *, json: bool) -> TaskInfo | None:
    """The task when it has ended; each change is shown."""
    last: TaskInfo | None = None
    told = ""
    async with aclosing(states):
        async for task in states:
            last = task
            if json:
                show_line(task)
                continue
            parts = (
                task.state.value.lower(),
                f"on {task.node}" if task.node else "",
                task_progress(task),
                task_note(task),
            )
            text = f"{task.id}: {', '.join(part for part in parts if part)}"
            if text != told:
                told = text
                print(text, flush=True)
    return last


def trouble(error: MeshError) -> None:
    """Says that the fleet is away; what is under way goes on there."""
    text = f"splitmesh: the fleet does not answer, trying again: {error.reason.value}: {error.message}"
    print(text, file=sys.stderr, flush=True)


class DeploymentShown:
    """Shows a deployment, in the way that suits standard output; ``with`` it."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._live = Live(auto_refresh=False) if sys.stdout.isatty() and not json else None
        self._nodes: dict[str, DeploymentNode] = {}
        self._told: dict[str, str] = {}
        self._summary = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, news: DeploymentNews) -> None:
        """One more piece of news."""
        self._nodes |= {node.node: node for node in news.nodes}
        if self._json:
            show_line(news)
        elif self._live is not None:
            self._live.update(self._picture(news.deployment), refresh=True)
        else:
            self._tell(news)

    def _picture(self, deployment: DeploymentInfo) -> Group:
        nodes = sorted(self._nodes.values(), key=_by_interest)
        table = make_table("", DEPLOYMENT_NODES, deployment_node_rows(nodes[:SHOWN_NODES]))
        left = len(nodes) - SHOWN_NODES
        more = [f"and {left:,} hosts more"] if left > 0 else []
        return Group(*(escape(line) for line in summary(deployment)), table, *more)

    def _tell(self, news: DeploymentNews) -> None:
        text = "; ".join(summary(news.deployment))
        if text != self._summary:
            self._summary = text
            print(text, flush=True)
        if news.deployment.counts.total > TOLD_NODES:
            return
        for node in news.nodes:
            why = node.progress.message or node.progress.reason
            line = f"  {node.node}: {progress_text(node)}{f' ({why})' if why else ''}"
            if self._told.get(node.node) != line:
                self._told[node.node] = line
                print(line, flush=True)


def summary(deployment: DeploymentInfo) -> list[str]:
    """What it is and where it stands, in a line or two."""
    name = f"{deployment.model}:{deployment.version}"
    lines = [
        f"{deployment.id} {name} {state_text(deployment)}, wave {wave_text(deployment)}, {counts_text(deployment)}"
    ]
    if deployment.evidence is not None:
        lines.append(evidence_text(deployment.evidence))
    if deployment.message:
        lines.append(deployment.message)
    return lines


def _by_interest(node: DeploymentNode) -> tuple[int, int, str]:
    phase = node.progress.phase
    rank = 0 if phase is Phase.FAILED else 1 if phase not in (None, Phase.SERVING) else 2 if phase is None else 3
    return rank, node.wave, node.node
