"""One mesh of real processes for all end-to-end tests: registry, router, tail, relay, head; traces come to the test."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from splitmesh.client import AnsweredBy
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher
from splitmesh.testing.otlp import TraceReceiver
from tests.support.models import EASY, HARD
from tests.support.worlds import MODEL, ROOT, answered_by, serving

SERVICES = ("registry", "router", "tail", "head")


@dataclass(frozen=True)
class Factory:
    """A running mesh and where its spans go."""

    mesh: LocalMesh
    traces: TraceReceiver

    async def settle(self) -> None:
        """Wait until the exit answers easy pictures and the tail hard ones."""
        await serving(self.mesh.address("head"))
        async with self.mesh.gateway(deadline_ms=3000) as gateway:
            await answered_by(gateway, EASY, AnsweredBy.EDGE_EXIT)
            await answered_by(gateway, HARD, AnsweredBy.CLOUD_TAIL)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory, registered: Path) -> AsyncIterator[Factory]:
    folder = tmp_path_factory.mktemp("factory")
    shutil.copytree(registered, folder / "registry")
    settings = {"head": {"models": MODEL, "switch_wait_s": "5"}, "tail": {"max_batch_delay_ms": "5"}}
    async with (
        TraceReceiver() as traces,
        LocalMesh(
            ProcessLauncher(ROOT, folder / "run"),
            folder,
            otlp_endpoint=traces.endpoint,
            settings=settings,
            services=SERVICES,
        ) as mesh,
    ):
        yield Factory(mesh, traces)


@pytest_asyncio.fixture(loop_scope="session")
async def factory(running: Factory) -> Factory:
    """The mesh, with everything up and settled."""
    await running.settle()
    return running
