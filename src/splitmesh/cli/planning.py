"""``splitmesh plan``: how to run a model over a link. Also works on an ONNX file alone, with no service running."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from splitmesh.cli.connect import channels, find_version, is_file, registry_of
from splitmesh.cli.output import JsonOption, refuse, run, show_json, show_table
from splitmesh.cli.plan_files import as_json, write_plan
from splitmesh.client.partition import MiddleTier, PartitionClient, PlanInfo, PlanRow
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_options import placement_name

FileOrVersion = Annotated[str, typer.Argument(help="An ONNX file, or NAME, NAME:VERSION, NAME@ALIAS in the registry.")]

SHOWN_CUTS = 5
"""Of each kind that cuts: the best ones, each with its best codec; --all shows the others."""
SWEPT_MBPS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Where a plan is asked for once more to draw it, when its options depend on the rate."""

_TIER_FIELDS = {
    "slowdown": "slowdown",
    "uplink": "uplink_mbps",
    "rtt": "rtt_ms",
    "node": "node",
    "memory": "max_model_bytes",
}


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
    edge_node: str
    cloud_node: str
    objective: Objective
    frames_per_s: float
    uplink_budget_bytes_per_s: float
    max_leakage: float | None
    kept_on_edge: tuple[str, ...]
    unsupported_on_edge: tuple[str, ...]
    between: tuple[MiddleTier, ...]
    budget_s: float


Ask = Callable[[Question], Awaitable[PlanInfo]]


def plan(
    model: FileOrVersion,
    uplink_mbps: Annotated[float, typer.Option(help="Rate from edge to cloud (or to the next --tier), Mbit/s.")],
    rtt_ms: Annotated[float, typer.Option(help="Round trip of an empty message on it, ms.")],
    edge_slowdown: Annotated[float, typer.Option(help="Time of the edge host over time of the profiling host.")] = 1.0,
    cloud_speedup: Annotated[float, typer.Option(help="Time of the profiling host over time of the cloud.")] = 1.0,
    edge_node: Annotated[str, typer.Option(help="Node whose own profile is the edge's, instead of a slowdown.")] = "",
    cloud_node: Annotated[str, typer.Option(help="Node whose own profile is the cloud's.")] = "",
    tier: Annotated[
        list[str] | None,
        typer.Option(
            help='A tier between, nearest first: "MEC:uplink=100,rtt=5[,slowdown=2][,node=N][,memory=BYTES]".'
        ),
    ] = None,
    objective: Annotated[
        Objective, typer.Option(case_sensitive=False, help="Rank by latency or by frames per second.")
    ] = Objective.LATENCY,
    picture_stays_on_site: Annotated[bool, typer.Option(help="Pictures may not leave the site.")] = False,
    keep_on_edge: Annotated[
        list[str] | None, typer.Option(help="A tensor that may not cross; may be repeated.")
    ] = None,
    unsupported_on_edge: Annotated[
        list[str] | None, typer.Option(help="A type of operator that the edge cannot run; may be repeated.")
    ] = None,
    max_leakage: Annotated[
        float | None, typer.Option(min=0, max=1, help="Highest similarity (SSIM) of a reconstructed picture.")
    ] = None,
    max_head_bytes: Annotated[int, typer.Option(min=0, help="Largest head the edge can hold; 0: any.")] = 0,
    frames_per_s: Annotated[float, typer.Option(min=0, help="What the line delivers; 0: not known.")] = 0.0,
    uplink_budget: Annotated[
        float, typer.Option(min=0, help="Most bytes per second on the uplink; needs --frames-per-s; 0: any.")
    ] = 0.0,
    escalation: Annotated[
        float | None, typer.Option(min=0, max=1, help="Expected share of hard samples; adds the cascade.")
    ] = None,
    picture_bytes: Annotated[int, typer.Option(min=0, help="Size of a picture as the camera sends it.")] = 0,
    budget_s: Annotated[float, typer.Option(min=0.1, help="Most seconds to spend on timing.")] = 20.0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw latency against bandwidth: a .png, .svg or .html file.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it for `splitmesh split --plan`.")] = None,
    all_options: Annotated[bool, typer.Option("--all", help="Show every option.")] = False,
    json: JsonOption = False,
) -> None:
    """Rank edge only, cloud only, every cut and the cascade for a link; "do not split" is an answer."""

    async def work() -> PlanInfo:
        if plot is not None:
            from splitmesh.cli.plotting import require_plot_file

            require_plot_file(plot)
        question = Question(
            uplink_mbps=uplink_mbps,
            rtt_ms=rtt_ms,
            edge_slowdown=edge_slowdown,
            cloud_speedup=cloud_speedup,
            picture_stays_on_site=picture_stays_on_site,
            max_head_bytes=max_head_bytes,
            escalation=escalation,
            picture_bytes=picture_bytes,
            edge_node=edge_node,
            cloud_node=cloud_node,
            objective=objective,
            frames_per_s=frames_per_s,
            uplink_budget_bytes_per_s=uplink_budget,
            max_leakage=max_leakage,
            kept_on_edge=tuple(keep_on_edge or ()),
            unsupported_on_edge=tuple(unsupported_on_edge or ()),
            between=tuple(parse_tier(text) for text in tier or ()),
            budget_s=budget_s,
        )
        if is_file(model):
            return await _answer(model, question, await _ask_file(Path(model), question, not json), plot)
        async with channels() as opened:
            version = await find_version(registry_of(opened), model)
            client = PartitionClient(opened)

            def ask(asked: Question) -> Awaitable[PlanInfo]:
                # not asdict: it would take the tiers apart
                return client.plan(
                    version.model,
                    version.version,
                    **{entry.name: getattr(asked, entry.name) for entry in fields(asked)},
                )

            return await _answer(f"{version.model}:{version.version}", question, ask, plot)

    found = run(work())
    if out is not None:
        try:
            write_plan(out, found)
        except MeshError as error:
            refuse(error)
    elif found.no_record:
        print(f"note: the plan cannot be kept: {found.no_record}", file=sys.stderr)
    if json:
        show_json(as_json(found))
        return
    ranked = list(enumerate(found.options, 1))
    shown = ranked if all_options else notable(ranked)
    refused = any(option.refused_because for _, option in shown)
    columns = ["#", "how", "ms", "edge", "encode", "link", "rtt", "cloud", "bytes", "fps", "agree"]
    rows = [_row(rank, option, refused) for rank, option in shown]
    show_table(f"{len(found.options)} options", [*columns, *(["refused"] if refused else [])], rows)
    print(found.why)
    if plot is not None:
        print(f"drawn to {plot}")
    if out is not None:
        print(f"written to {out}")


def parse_tier(text: str) -> MiddleTier:
    """``MEC:uplink=100,rtt=5,slowdown=2,node=mec-1,memory=100000000``; MeshError FIELD_INVALID for anything else."""
    name, colon, rest = text.partition(":")
    values: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or key not in _TIER_FIELDS:
            raise field_error("tier", f"{text!r}: {part!r} is not one of {', '.join(f'{k}=' for k in _TIER_FIELDS)}")
        try:
            values[_TIER_FIELDS[key]] = value if key == "node" else int(value) if key == "memory" else float(value)
        except ValueError as error:
            raise field_error("tier", f"{text!r}: {value!r} is no number") from error
    if not name.strip() or not {"uplink_mbps", "rtt_ms"} <= values.keys():
        raise field_error("tier", f"{text!r} has no name, uplink= or rtt=; for example MEC:uplink=100,rtt=5")
    return MiddleTier(name=name.strip(), **values)


def notable(ranked: Sequence[tuple[int, PlanRow]]) -> list[tuple[int, PlanRow]]:
    """Every option that does not cut, and of each kind the best cuts with their best codec."""
    shown, seen = [], dict[str, set[tuple[str, ...]]]()
    for rank, option in ranked:
        cuts = seen.setdefault(option.kind, set())
        if not option.cut or option.tiers or (len(cuts) < SHOWN_CUTS and option.cut not in cuts):
            shown.append((rank, option))
            cuts.add(option.cut)
    return shown


def _row(rank: int, option: PlanRow, refused: bool) -> list[object]:
    stages = [round(option.stages.get(f"{stage}_ms", 0.0), 1) for stage in ("edge", "encode", "link", "rtt", "cloud")]
    place = f" at {' + '.join(option.cut)}" if option.cut else ""
    codec = f", {option.codec}" if option.codec else ""
    how = placement_name(option.tiers) if option.tiers else option.kind.lower().replace("_", " ") + place
    agrees = "?" if option.agreement is None else f"{option.agreement:.1%}"
    row: list[object] = [rank, how + codec, round(option.latency_ms, 1), *stages, round(option.uplink_bytes)]
    rate: object = round(option.throughput_fps) if option.throughput_fps != float("inf") else "any"
    return [*row, rate, agrees, *([option.refused_because] if refused else [])]


async def _answer(title: str, question: Question, ask: Ask, plot: Path | None) -> PlanInfo:
    """The plan, drawn where that is wanted."""
    found = await ask(question)
    if plot is None:
        return found
    from splitmesh.cli.plan_plot import PricedRow, draw_plan
    from splitmesh.cli.plotting import save_figure

    plans = [(question.uplink_mbps, found)]
    if question.between or question.frames_per_s:
        for rate in SWEPT_MBPS:
            try:
                plans.append((rate, await ask(replace(question, uplink_mbps=rate))))
            except MeshError as error:
                if error.reason is not Reason.PLAN_INFEASIBLE:
                    raise
    rows = {
        (row.kind, row.codec, row.cut, tuple((share.computes, share.cut) for share in row.tiers)): PricedRow(
            row, rate, question.rtt_ms
        )
        for rate, made in reversed(plans)
        for row in made.options
        if row.feasible
    }
    figure = draw_plan(
        list(rows.values()),
        title=f"{Path(title).name}: round trip {question.rtt_ms:g} ms",
        uplink_mbps=question.uplink_mbps,
        objective=question.objective,
        frames_per_s=question.frames_per_s,
    )
    await asyncio.to_thread(save_figure, figure, plot, title=f"plan of {Path(title).name}")
    return found


async def _ask_file(path: Path, question: Question, show_progress: bool) -> Ask:
    """Plans of an ONNX file, timed on this machine with random input."""
    from splitmesh.cli.plan_profile import PlannedFile, manifest_beside, plan_profile
    from splitmesh.model.load import load_file
    from splitmesh.model.profile import profile_cuts

    if question.edge_node or question.cloud_node or any(entry.node for entry in question.between):
        raise field_error("node", "nodes have profiles of registered versions, not of files; push the model first")
    model = load_file(path)
    beside = manifest_beside(path, model)
    with Progress(transient=True, disable=not show_progress) as progress:
        task = progress.add_task("timing", total=None)
        profile = await asyncio.to_thread(
            profile_cuts,
            path.read_bytes(),
            budget_s=question.budget_s,
            on_progress=lambda done, total, step: progress.update(task, completed=done, total=total, description=step),
        )
    noise = "Bytes are those of random input, which says little about pictures"
    planned = PlannedFile(path, profile, beside)
    if beside is not None:
        noise += "; leakage and the version's own coded cut come from the manifest beside the file"

    async def ask(asked: Question) -> PlanInfo:
        found = await asyncio.to_thread(plan_profile, planned, asked)
        return replace(found, why=f"{found.why} {noise}.")

    return ask
