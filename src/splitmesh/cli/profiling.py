"""``splitmesh profile``: where time and bytes go along a model, on a node of the mesh or, for a file, on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from splitmesh.cli.connect import channels, find_version, is_file, registry_of
from splitmesh.cli.output import JsonOption, refuse, run, show_table
from splitmesh.cli.plotting import new_figure, require_plot_file, save_figure
from splitmesh.client.partition import PartitionClient
from splitmesh.errors import MeshError, field_error
from splitmesh.model.profile_data import FLOAT_CODEC, QUANTISED_CODEC, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Told = Callable[[str, float], None]


def profile(
    model: Annotated[str, typer.Argument(help="An ONNX file, or NAME, NAME:VERSION, NAME@ALIAS in the registry.")],
    node: Annotated[str, typer.Option(help="Head or tail to time on, by name; the partitioner's own if empty.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Samples per run.")] = 1,
    threads: Annotated[int, typer.Option(min=0, max=256, help="Inside one operator; 0: as the node computes.")] = 0,
    backend: Annotated[str, typer.Option(help="Execution provider; empty: as the node computes.")] = "",
    budget_s: Annotated[float, typer.Option(min=0.1, max=300, help="Most seconds; the next call goes on.")] = 20.0,
    restart: Annotated[bool, typer.Option(help="Forget what was measured before.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png, .svg or .html file.")] = None,
    json: JsonOption = False,
) -> None:
    """Time heads and tails of a model as real sessions, and measure what each cut puts on the wire."""
    try:
        if plot is not None:
            require_plot_file(plot)
        if is_file(model) and node:
            raise field_error("node", "is for registered models: a file is timed on this machine")
    except MeshError as error:
        refuse(error)

    async def ask(told: Told) -> Profile:
        async with channels() as opened:
            version = await find_version(registry_of(opened), model)
            return await PartitionClient(opened).profile(
                version.model,
                version.version,
                node=node,
                batch=batch,
                threads=threads,
                backend=backend,
                budget_s=budget_s,
                restart=restart,
                on_progress=told,
            )

    with progress_bar(enabled=not json) as told:
        if is_file(model):
            made = profile_file(
                Path(model), told, batch=batch, threads=threads or 1, backend=backend, budget_s=budget_s
            )
        else:
            made = run(ask(told))
    if plot is not None:
        try:
            save_figure(draw(made, model), plot, title=f"profile of {model}")
        except MeshError as error:
            refuse(error)
    if json:
        print(made.to_json(), end="")
        return
    show(made)


@contextmanager
def progress_bar(*, enabled: bool) -> Iterator[Told]:
    """A bar on standard error, told steps and shares."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not enabled, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=1.0)

        def told(step: str, share: float) -> None:
            bar.update(task, description=step, completed=share)

        yield told


def profile_file(path: Path, told: Told, *, batch: int, threads: int, backend: str, budget_s: float) -> Profile:
    """The profile of an ONNX file, timed on this machine with random input."""
    from splitmesh.model.load import load_file
    from splitmesh.model.profile import profile_cuts

    try:
        load_file(path)
        return profile_cuts(
            path.read_bytes(),
            batch=batch,
            threads=threads,
            backend=backend,
            budget_s=budget_s,
            on_progress=lambda done, total, step: told(step, done / total),
        )
    except MeshError as error:
        refuse(error)


def show(made: Profile) -> None:
    """Tables for people."""
    key = made.key
    measured = sum(cut.measured for cut in made.cuts)
    exits = any(cut.escalation is not None for cut in made.cuts)
    agreements = any(cut.agreement for cut in made.cuts)
    columns = ["cut", "work before", "head ms", "tail ms", "timed", "raw bytes", FLOAT_CODEC, QUANTISED_CODEC]
    columns += ["agrees as uint8"] * agreements + ["hard"] * exits
    rows = [
        [
            " + ".join(cut.tensors),
            f"{cut.position:.1%}",
            round(cut.head_ms, 3),
            round(cut.tail_ms, 3),
            "yes" if cut.measured else "",
            cut.raw_bytes,
            *(cut.wire_bytes.get(codec, "") for codec in (FLOAT_CODEC, QUANTISED_CODEC)),
            *([_share(cut.agreement.get(QUANTISED_CODEC))] if agreements else []),
            *([_share(cut.escalation)] if exits else []),
        ]
        for cut in made.cuts
    ]
    show_table(
        f"{key.node}: {key.backend}, {key.threads} thread{'s' * (key.threads > 1)}, batch {key.batch}", columns, rows
    )
    if made.pictures:
        pictures = [
            [codec, one.wire_bytes, round(one.encode_ms, 3), round(one.decode_ms, 3), _share(one.agreement)]
            for codec, one in made.pictures.items()
        ]
        show_table("", ["picture as", "bytes", "encode ms", "decode ms", "agrees"], pictures)
    print(f"the whole model: {made.whole_ms:.3f} ms per sample, {made.whole_bytes:,} bytes; {made.host}")
    inputs = "calibration samples" if made.calibration == "real" else "noise, so sizes on the wire say little"
    print(f"{measured} of {len(made.cuts)} cuts timed, the others interpolated; sizes from {inputs}")
    live = max((cut.live_runs for cut in made.cuts), default=0)
    if live:
        print(f"corrected by {live:,} runs in production")
    if not made.complete:
        print("the budget ended before every wanted cut was timed: the same command goes on from here")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def draw(made: Profile, title: str) -> Figure:
    """Times of heads and tails, and bytes of the cuts and of the picture, along the model's work."""
    figure = new_figure(9, 7)
    times, sizes = figure.subplots(2, 1, sharex=True)
    _draw_times(times, made)
    _draw_sizes(sizes, made)
    key = made.key
    threads = f"{key.threads} thread" + "s" * (key.threads > 1)
    figure.suptitle(
        f"{Path(title).name} on {key.node} ({key.backend}, {threads}, batch {key.batch})", fontsize="medium"
    )
    return figure


def _draw_times(axes: Axes, made: Profile) -> None:
    cuts = made.cuts
    positions = [cut.position for cut in cuts]
    timed = [cut for cut in cuts if cut.measured]
    for name, colour, values, points in (
        ("head, up to the cut", "tab:blue", [cut.head_ms for cut in cuts], [cut.head_ms for cut in timed]),
        ("tail, from the cut on", "tab:orange", [cut.tail_ms for cut in cuts], [cut.tail_ms for cut in timed]),
    ):
        axes.plot(positions, values, color=colour, label=name)
        axes.plot([cut.position for cut in timed], points, "o", color=colour, markersize=4)
    axes.axhline(made.whole_ms, color="tab:grey", linestyle="--", label="whole model")
    axes.set_ylabel("ms per sample (dots: timed)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="best", fontsize="small")


def _draw_sizes(axes: Axes, made: Profile) -> None:
    positions = [cut.position for cut in made.cuts]
    style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 0.5}
    axes.plot(positions, [cut.raw_bytes for cut in made.cuts], color="tab:grey", label="raw", **style)
    for codec, colour in ((FLOAT_CODEC, "tab:purple"), (QUANTISED_CODEC, "tab:green")):
        axes.plot(
            positions,
            [cut.wire_bytes.get(codec, float("nan")) for cut in made.cuts],
            color=colour,
            label=codec,
            **style,
        )
    for index, (codec, picture) in enumerate(made.pictures.items()):
        axes.axhline(picture.wire_bytes, color=f"C{index + 6}", linestyle="--", label=f"picture, {codec}")
    axes.set_yscale("log")
    axes.set_ylabel("bytes per sample")
    axes.set_xlabel("share of the model's arithmetic before the cut")
    axes.set_xlim(-0.01, 1.01)
    axes.legend(loc="best", fontsize="small")
