"""A real head that answers with a whole model at the edge: the processes, and the requests it is asked with."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.serving.nets import NETS, SIDE, build
from edge.head.app import SERVICE
from examples.solder_joints.demo import ROOT, head_ready
from splitmesh.cli.model_parts import version_parts
from splitmesh.kernel.channels import open_channel
from splitmesh.model.preprocess import Preprocess
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher, ServiceProcess

READY_TIMEOUT_S = 60.0
CONNECTIONS_IN_A_ROW = 30
SERVICES = ("registry", "router", "tail", "head")
PREPROCESS = Preprocess(width=SIDE, height=SIDE, mean=(0.5,), std=(0.25,))


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    address: str
    pid: int


class _Launcher(ProcessLauncher):
    """Remembers the process of each service."""

    def __init__(self, root: Path, work_dir: Path) -> None:
        super().__init__(root, work_dir)
        self.processes: dict[str, ServiceProcess] = {}

    async def launch(self, service: str, settings: Mapping[str, str]) -> ServiceProcess:
        self.processes[service] = await super().launch(service, settings)
        return self.processes[service]


@asynccontextmanager
async def serving_head(
    net: str, *, settings: Mapping[str, str] | None = None, otlp_endpoint: str = ""
) -> AsyncIterator[Served]:
    """A head in a mesh of processes, with the net as its only model, not split; one thread inside an operator."""
    work_dir = Path(tempfile.mkdtemp(prefix="splitmesh-bench-"))
    model_file, labels_file = work_dir / "model.onnx", work_dir / "labels.json"
    model_file.write_bytes(build(net))
    labels_file.write_text(json.dumps([label(index) for index in range(NETS[net].classes)]))
    preprocess_file = work_dir / "preprocess.json"
    preprocess_file.write_text(PREPROCESS.model_dump_json())
    launcher = _Launcher(ROOT, work_dir)
    head = {"models": net, "segment_threads": "1", **(settings or {})}
    try:
        async with LocalMesh(
            launcher, work_dir, settings={"head": head}, services=SERVICES, otlp_endpoint=otlp_endpoint
        ) as mesh:
            registry = mesh.registry()
            parts = version_parts(model_file, labels_file, preprocess_file, None)
            version = await registry.create_version(net, parts, created_by="push")
            await registry.set_alias(net, "production", version.version)
            await head_ready(mesh)
            if head.get("processes", "1") != "1":
                await _every_process_ready(mesh.address("head"))
            yield Served(mesh.address("head"), launcher.processes["head"].process.pid)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


async def _every_process_ready(address: str) -> None:
    """Until so many new connections in a row, which are spread over the processes, find one that serves."""
    request, well = health_pb2.HealthCheckRequest(service=SERVICE), 0
    async with asyncio.timeout(READY_TIMEOUT_S):
        while well < CONNECTIONS_IN_A_ROW:
            async with open_channel(address) as channel:
                state = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=READY_TIMEOUT_S)
            well = well + 1 if state.status == health_pb2.HealthCheckResponse.SERVING else 0


def label(index: int) -> str:
    """Of a class."""
    return f"class {index}"
