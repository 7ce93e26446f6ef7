"""What a kind of work looks like to the agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from splitmesh.api.fleet.v1 import fleet_pb2

Tell = Callable[[fleet_pb2.TaskProgress], None]
"""Hears how far a task is; the newest word counts."""


class Runner(Protocol):
    """Does tasks of one kind."""

    at_once: bool
    """A task begins although as many run as may: it takes nothing of this host by itself."""

    async def run(self, task: fleet_pb2.Task, tell: Tell) -> Mapping[str, str]:
        """Its result by name. May be cancelled, and begun again for the same attempt after the agent was killed.

        Raises MeshError for a task that failed; one with CANCELLED was taken out of its hands.
        """
        ...


def progress(phase: str, share: float, message: str = "", **figures: float) -> fleet_pb2.TaskProgress:
    """A word on how far a task is; ``share`` is of the whole task."""
    return fleet_pb2.TaskProgress(phase=phase, share=min(1.0, max(0.0, share)), message=message, figures=figures)
