"""``splitmesh compress`` and ``compressions``: recipes on this machine or at the compressor, and what is under way there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from splitmesh.cli.compress_here import Asked, Made, compress_file, compress_version
from splitmesh.cli.compress_shown import (
    following,
    page_of,
    progress_bar,
    require_page,
    show_made,
    show_state,
    write_page,
)
from splitmesh.cli.connect import channels, find_version, is_file, registry_of
from splitmesh.cli.output import JsonOption, refuse, run, show_json, show_table
from splitmesh.cli.planning import FileOrVersion
from splitmesh.client.compression import CompressionClient, CompressionInfo, CompressionState
from splitmesh.compress.recipe import Budget, Recipe, make_recipe, parse_step
from splitmesh.errors import MeshError

app = typer.Typer(no_args_is_help=True, help="Compressions at the compressor: each goes on when its caller is gone.")

DEFAULT_RECIPE = ("int8-cut", "exits")
CANCELLED = 130
"""Exit code after Ctrl-C."""

IdArgument = Annotated[str, typer.Argument(help="As `compressions list` shows it.")]
PageOption = Annotated[Path | None, typer.Option("--report", help="Write the report as one HTML page, with pictures.")]


def compress(
    model: FileOrVersion,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="A step such as 'bottleneck:channels=4'; may be repeated. Without: int8-cut, exits."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(exists=True, help="Pictures on this machine: class folders, labels.csv, COCO. They do not leave."),
    ] = None,
    report: PageOption = None,
    max_disagreement: Annotated[
        float | None, typer.Option(min=0, max=1, help="Budget: share of samples where another class is named.")
    ] = None,
    max_accuracy_loss: Annotated[
        float | None, typer.Option(min=0, max=1, help="Budget: accuracy lost, 0.01 for one point; needs labels.")
    ] = None,
    max_output_error: Annotated[
        float | None, typer.Option(min=0, help="Budget of a model without classes: relative error of its outputs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --calibration: folder for the result; not registered.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the division of the samples and of all training.")] = 0,
    holdout_share: Annotated[float, typer.Option(help="Of the samples, only measured on.")] = 0.3,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on behind the last finished step of an earlier call, or anew.")
    ] = True,
    threads: Annotated[int, typer.Option(min=1, help="With --calibration: of sessions and training.")] = 1,
    work: Annotated[
        Path | None,
        typer.Option(help="With --calibration: folder for finished steps; kept. Without: a cache, removed."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --calibration: at most so many samples.")] = None,
    samples_split: Annotated[
        str, typer.Option(help="With --calibration: only rows of labels.csv with this entry in its column split.")
    ] = "",
    labels: Annotated[Path | None, typer.Option(exists=True, help="For a file: class names.")] = None,
    preprocess: Annotated[
        Path | None, typer.Option(exists=True, help="For a file: width, height, mode, mean, std.")
    ] = None,
    calibration_folder: Annotated[
        str, typer.Option(help="Without --calibration: a folder of pictures that the compressor can read.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Make a version small, small on the wire and sure at the edge, by recipe; over its budget nothing is registered.

    Steps, in this order: prune or distil, fp16 or int8, split, int8-cut or bottleneck, exits, leakage.
    """
    file = is_file(model)
    if calibration is None and (file or out or work or limit or samples_split or not resume):
        what = "an ONNX file" if file else "--out, --work, --limit, --samples-split and --fresh"
        raise typer.BadParameter(f"--calibration is needed for {what}")
    if calibration is not None and calibration_folder:
        raise typer.BadParameter("--calibration-folder is the compressor's; with --calibration the recipe runs here")
    if not file and (labels or preprocess):
        raise typer.BadParameter("--labels and --preprocess are for ONNX files; a version has its own")
    if file and out is None and report is None:
        raise typer.BadParameter("--out or --report is needed for an ONNX file")
    try:
        if report is not None:
            require_page(report)
        steps = [parse_step(step) for step in recipe or DEFAULT_RECIPE]
        budget = Budget(
            max_disagreement=max_disagreement, max_accuracy_loss=max_accuracy_loss, max_output_error=max_output_error
        )
        plan = make_recipe(steps, budget=budget, seed=seed, holdout_share=holdout_share)
    except MeshError as error:
        refuse(error)
    if calibration is None:
        made, page = _at_the_service(model, plan, calibration_folder, report is not None, json)
    else:
        asked = Asked(
            model, plan, calibration, out, work, labels, preprocess, limit, samples_split, threads, not resume
        )
        made, page = _here(asked, file, json), ""
    if report is not None:
        write_page(report, page or page_of(made))
    show_made(made, report, json)
    if made.error is not None:
        refuse(made.error)


def _here(asked: Asked, file: bool, json: bool) -> Made:
    try:
        with progress_bar(json) as progress:
            return run((compress_file if file else compress_version)(asked, progress))
    except KeyboardInterrupt:
        print("splitmesh: stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(CANCELLED) from None


def _at_the_service(model: str, plan: Recipe, folder: str, html: bool, json: bool) -> tuple[Made, str]:
    known: list[str] = []

    async def ask() -> tuple[Made, str]:
        async with channels() as opened:
            version = await find_version(registry_of(opened), model)
            client = CompressionClient(opened)
            started = await client.start(version.model, version.version, plan, calibration_folder=folder)
            known.append(started.compression_id)
            with progress_bar(json) as progress:
                ended = await client.follow(started.compression_id, following(progress))
            return await _fetched(client, ended, html)

    try:
        return run(ask())
    except KeyboardInterrupt:
        for number in known:
            print(f"splitmesh: it goes on at the compressor: splitmesh compressions watch {number}", file=sys.stderr)
        raise typer.Exit(CANCELLED) from None


async def _fetched(client: CompressionClient, ended: CompressionInfo, html: bool) -> tuple[Made, str]:
    if ended.state not in (CompressionState.SUCCEEDED, CompressionState.REJECTED):
        raise ended.error or RuntimeError(f"{ended.compression_id} ended as {ended.state.value} without an error")
    found = await client.report(ended.compression_id, html=html)
    return Made(found.report, version=found.version, error=ended.error), found.html


@app.command("list")
def list_(
    model: Annotated[str, typer.Argument(help="Only this model's.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    json: JsonOption = False,
) -> None:
    """List compressions, the newest first."""

    async def ask() -> list[CompressionInfo]:
        async with channels() as opened:
            return await CompressionClient(opened).list(model, limit=limit)

    found = run(ask())
    if json:
        show_json(found)
        return
    rows: list[list[object]] = [
        [
            each.compression_id,
            each.state.value,
            f"{each.model}:{each.version}",
            ", ".join(each.recipe),
            f"{each.progress:.0%} {each.step}".strip(),
            each.result_version or "",
            f"{each.create_time:%Y-%m-%d %H:%M:%S}",
        ]
        for each in found
    ]
    show_table("", ["compression", "state", "of", "recipe", "progress", "version", "asked for (UTC)"], rows)


@app.command()
def watch(compression: IdArgument, json: JsonOption = False) -> None:
    """Follow one until it has ended."""

    async def ask() -> CompressionInfo:
        async with channels() as opened:
            with progress_bar(json) as progress:
                return await CompressionClient(opened).follow(compression, following(progress))

    try:
        ended = run(ask())
    except KeyboardInterrupt:
        raise typer.Exit(CANCELLED) from None
    show_state(ended, json)
    if ended.error is not None:
        refuse(ended.error)


@app.command()
def cancel(compression: IdArgument, json: JsonOption = False) -> None:
    """Stop one; steps that are done stay done."""

    async def ask() -> CompressionInfo:
        async with channels() as opened:
            return await CompressionClient(opened).cancel(compression)

    show_state(run(ask()), json)


@app.command()
def resume(compression: IdArgument, json: JsonOption = False) -> None:
    """Go on with one that failed or was cancelled, behind its last finished step."""

    async def ask() -> CompressionInfo:
        async with channels() as opened:
            return await CompressionClient(opened).resume(compression)

    show_state(run(ask()), json)


@app.command()
def report(compression: IdArgument, page: PageOption = None, json: JsonOption = False) -> None:
    """Show what one did, also when it was rejected for its budget."""

    async def ask() -> tuple[Made, str]:
        if page is not None:
            require_page(page)
        async with channels() as opened:
            found = await CompressionClient(opened).report(compression, html=page is not None)
            return Made(found.report, version=found.version), found.html

    made, html = run(ask())
    if page is not None:
        write_page(page, html)
    show_made(made, page, json)
