"""What every benchmark shares: the command line, the table, the JSON, and a mesh with a split model in it.

A benchmark reports what it saw; ``met`` is a reading, never an assertion. Ratios are taken in one run against a named
baseline.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.solder_joints.demo import MODEL, ROOT, SHIPPED_MODEL, head_ready
from examples.solder_joints.frames import rendered_frames
from splitmesh.cli.model_parts import version_parts
from splitmesh.client.compression import CompressionClient
from splitmesh.client.partition import PartitionClient
from splitmesh.client.routing import Goals, RoutingClient
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import CALIBRATION
from splitmesh.model.preprocess import Preprocess
from splitmesh.testing.links import LinkProfile
from splitmesh.testing.mesh import WITHOUT_FLEET, LocalMesh, ProcessLauncher

CUT = "waist"
"""The shipped model's narrow tensor; benchmarks cut there so that they measure the mesh and not the planner."""


WIDTH = 160
"""Of a table that goes to a file."""


@dataclass
class Result:
    """What a benchmark found."""

    name: str
    n: int
    baseline: str
    goal: str
    measured: str
    met: bool | None
    """None: there is no goal to meet."""
    rows: list[dict[str, object]] = field(default_factory=list)


def arguments(about: str | None) -> argparse.Namespace:
    """The command line every benchmark has."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under a minute")
    return parser.parse_args()


def publish(result: Result) -> None:
    """Print the table and write the JSON."""
    table = Table(title=f"{result.name}, n = {result.n}", title_justify="left")
    columns: Sequence[str] = list(result.rows[0]) if result.rows else []
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == columns[0] else "right")
    for row in result.rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(table)
    verdict = {True: "met", False: "NOT met", None: "no goal"}[result.met]
    console.print(f"baseline: {result.baseline}\ngoal: {result.goal}\nmeasured: {result.measured} ({verdict})")
    path = ROOT / "build" / "bench" / f"{result.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(result), indent=2) + "\n")
    console.print(f"written to {path}")


@asynccontextmanager
async def deployed_mesh(
    link: LinkProfile,
    *,
    frames: int,
    max_disagreement: float = 0.02,
    calibration: int = 1000,
    tails: int = 1,
    settings: Mapping[str, Mapping[str, str]] | None = None,
    services: Collection[str] = WITHOUT_FLEET,
    cable: bool = False,
) -> AsyncIterator[tuple[LocalMesh, list[bytes]]]:
    """Separate processes with the shipped model cut at its waist, an exit attached and a policy in force.

    ``tails``, ``settings``, ``services`` and ``cable`` are :class:`LocalMesh`'s.
    """
    work_dir = Path(tempfile.mkdtemp(prefix="splitmesh-bench-"))
    preprocess = Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())
    pictures = rendered_frames(frames, calibration, preprocess, lambda _: None)
    parts = version_parts(
        SHIPPED_MODEL / "model.onnx", SHIPPED_MODEL / "labels.json", SHIPPED_MODEL / "preprocess.json", None
    )
    parts[CALIBRATION] = pack_calibration(pictures.calibration)
    try:
        async with LocalMesh(
            ProcessLauncher(ROOT, work_dir),
            work_dir,
            link=link,
            tails=tails,
            settings=settings,
            services=services,
            cable=cable,
        ) as mesh:
            registry = mesh.registry()
            pushed = await registry.create_version(MODEL, parts, created_by="push")
            split = await PartitionClient(mesh.channels).split(MODEL, pushed.version, [CUT])
            version, _ = await CompressionClient(mesh.channels).compress(MODEL, split.version, ["int8-cut", "exits"])
            await RoutingClient(mesh.channels).set_goals(MODEL, Goals(max_disagreement))
            await registry.set_alias(MODEL, "production", version)
            await head_ready(mesh)
            yield mesh, pictures.frames
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
