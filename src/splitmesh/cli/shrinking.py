"""``splitmesh compress`` and ``tolerance``: small on the wire, and how sure an exit must be."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import Progress

from splitmesh.cli.connect import channels, find_version
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.client.compression import CompressionClient, CompressionInfo, CompressionReport
from splitmesh.client.registry import RegistryClient
from splitmesh.client.routing import RoutingClient, ToleranceInfo

VersionArgument = Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS in the registry.")]


def compress(
    model: VersionArgument,
    quantise: Annotated[bool, typer.Option(help="8 bits at the cut.")] = True,
    exit_: Annotated[bool, typer.Option("--exit/--no-exit", help="Attach an exit.")] = True,
    json: JsonOption = False,
) -> None:
    """Quantise the cut of a split version and attach an exit fitted on its own answers; makes a new version."""

    async def ask() -> tuple[int, CompressionReport]:
        async with channels() as opened:
            version = await find_version(RegistryClient(opened), model)
            with Progress(transient=True, disable=json) as progress:
                task = progress.add_task("compressing", total=1.0)

                def follow(state: CompressionInfo) -> None:
                    progress.update(task, completed=state.progress, description=state.step or state.state.value)

                return await CompressionClient(opened).compress(
                    version.model, version.version, quantise_cut=quantise, attach_exit=exit_, on_state=follow
                )

    number, report = run(ask())
    if json:
        show_json(report)
        return
    rows: list[list[object]] = [
        ["bytes on the wire, before", report.wire_bytes_before],
        ["bytes on the wire, after", report.wire_bytes_after],
        ["head + tail agree with the whole", _share(report.tail_agreement)],
        ["the exit alone agrees with the whole", _share(report.exit_agreement)],
        ["held-out samples", report.holdout_samples],
    ]
    show_table(f"version {number}", ["measure", "value"], rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def tolerance(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    max_disagreement: Annotated[float, typer.Option(help="Tolerated share of exit answers unlike the whole's.")],
    delta: Annotated[float, typer.Option(help="Probability that the bound is wrong; 0: the router's default.")] = 0.0,
    json: JsonOption = False,
) -> None:
    """State how often the exit may disagree with the full model; heads get the new threshold at once."""

    async def ask() -> ToleranceInfo:
        async with channels() as opened:
            return await RoutingClient(opened).set_tolerance(model, max_disagreement, delta=delta)

    info = run(ask())
    if json:
        show_json(info)
    else:
        print(f"{model}: at most {info.max_disagreement:.2%} disagreement, with confidence {1 - info.delta:.0%}")
