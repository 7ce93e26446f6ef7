"""``splitmesh plan``: how to run a model over a link. Also works on an ONNX file alone, with no service running."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from splitmesh.cli.connect import channels, find_version, is_file
from splitmesh.cli.output import JsonOption, refuse, run, show_json, show_table
from splitmesh.client.partition import PartitionClient, PlanInfo, PlanRow
from splitmesh.client.registry import RegistryClient
from splitmesh.errors import MeshError

FileOrVersion = Annotated[str, typer.Argument(help="An ONNX file, or NAME, NAME:VERSION, NAME@ALIAS in the registry.")]

SHOWN_OPTIONS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a plan is asked for; see ``PartitionClient.plan``."""

    uplink_mbps: float
    rtt_ms: float
    edge_slowdown: float
    cloud_speedup: float
    picture_stays_on_site: bool
    max_head_bytes: int
    escalation: float | None
    picture_bytes: int
    budget_s: float


def plan(
    model: FileOrVersion,
    uplink_mbps: Annotated[float, typer.Option(help="Rate from edge to cloud, Mbit/s.")],
    rtt_ms: Annotated[float, typer.Option(help="Round trip of an empty message, ms.")],
    edge_slowdown: Annotated[float, typer.Option(help="Time of the edge host over time of the profiling host.")] = 1.0,
    cloud_speedup: Annotated[float, typer.Option(help="Time of the profiling host over time of the cloud.")] = 1.0,
    picture_stays_on_site: Annotated[bool, typer.Option(help="Pictures may not leave the site.")] = False,
    max_head_bytes: Annotated[int, typer.Option(min=0, help="Largest head the edge can hold; 0: any.")] = 0,
    escalation: Annotated[
        float | None, typer.Option(min=0, max=1, help="Expected share of hard samples; adds the cascade.")
    ] = None,
    picture_bytes: Annotated[int, typer.Option(min=0, help="Size of a picture as the camera sends it.")] = 0,
    budget_s: Annotated[float, typer.Option(min=0.1, help="Most seconds to spend on timing.")] = 20.0,
    all_options: Annotated[bool, typer.Option("--all", help="Show every option.")] = False,
    json: JsonOption = False,
) -> None:
    """Rank edge only, cloud only, every cut and the cascade for a link; "do not split" is an answer."""
    question = Question(
        uplink_mbps=uplink_mbps,
        rtt_ms=rtt_ms,
        edge_slowdown=edge_slowdown,
        cloud_speedup=cloud_speedup,
        picture_stays_on_site=picture_stays_on_site,
        max_head_bytes=max_head_bytes,
        escalation=escalation,
        picture_bytes=picture_bytes,
        budget_s=budget_s,
    )

    async def ask() -> PlanInfo:
        async with channels() as opened:
            version = await find_version(RegistryClient(opened), model)
            return await PartitionClient(opened).plan(version.model, version.version, **asdict(question))

    found = plan_file(Path(model), question, show_progress=not json) if is_file(model) else run(ask())
    if json:
        show_json(found)
        return
    shown = found.options if all_options else found.options[:SHOWN_OPTIONS]
    refused = any(option.refused_because for option in shown)
    columns = [
        "#",
        "how",
        "ms",
        "edge",
        "encode",
        "link",
        "rtt",
        "cloud",
        "bytes",
        "fps",
        *(["refused"] if refused else []),
    ]
    show_table(
        f"{len(found.options)} options", columns, [_row(rank, option, refused) for rank, option in enumerate(shown, 1)]
    )
    print(found.why)


def _row(rank: int, option: PlanRow, refused: bool) -> list[object]:
    stages = [round(option.stages.get(f"{stage}_ms", 0.0), 1) for stage in ("edge", "encode", "link", "rtt", "cloud")]
    place = f" at {' + '.join(option.cut)}" if option.cut else ""
    codec = f", {option.codec}" if option.codec else ""
    how = option.kind.lower().replace("_", " ") + place + codec
    row: list[object] = [rank, how, round(option.latency_ms, 1), *stages, round(option.uplink_bytes)]
    return [*row, round(option.throughput_fps), *([option.refused_because] if refused else [])]


def plan_file(path: Path, question: Question, *, show_progress: bool) -> PlanInfo:
    """The plan of an ONNX file, timed on this machine with random input."""
    from splitmesh.model.load import load_file
    from splitmesh.model.plan import make_plan
    from splitmesh.model.plan_options import Constraints, Link, Workload
    from splitmesh.model.profile import profile_cuts

    try:
        load_file(path)
        with Progress(transient=True, disable=not show_progress) as progress:
            task = progress.add_task("timing", total=None)
            profile = profile_cuts(
                path.read_bytes(),
                budget_s=question.budget_s,
                on_progress=lambda done, total, step: progress.update(
                    task, completed=done, total=total, description=step
                ),
            )
        made = make_plan(
            profile,
            Link(question.uplink_mbps, question.rtt_ms),
            Workload(
                {"camera picture": question.picture_bytes} if question.picture_bytes else {},
                escalation=question.escalation,
            ),
            Constraints(
                picture_stays_on_site=question.picture_stays_on_site, max_head_bytes=question.max_head_bytes or None
            ),
            edge_slowdown=question.edge_slowdown,
            cloud_speedup=question.cloud_speedup,
        )
    except MeshError as error:
        refuse(error)
    rows = tuple(
        PlanRow(
            kind=option.kind.value,
            cut=option.cut,
            codec=option.codec,
            latency_ms=option.latency_ms,
            stages=asdict(option.stages),
            uplink_bytes=option.uplink_bytes,
            throughput_fps=option.throughput_fps,
            feasible=option.feasible,
            refused_because=option.refused_because or "",
        )
        for option in made.options
    )
    return PlanInfo(rows, made.why)
