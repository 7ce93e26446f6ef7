"""``splitmesh infer`` and ``splitmesh stream``: what a camera gateway does, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.numpy import load

from splitmesh.cli.connect import gateway
from splitmesh.cli.output import JsonOption, run, show_json, show_line, show_table
from splitmesh.cli.sources import frames, paced
from splitmesh.cli.summary import StreamSummary, live
from splitmesh.client import Answer, Routing
from splitmesh.client.stream import MAX_WINDOW, Drop, Order
from splitmesh.errors import field_error
from splitmesh.tensor.spec import Array

HeadOption = Annotated[
    str,
    typer.Option(
        "--head",
        help="Address of the edge head, or of several, separated by commas: the nearest that is well is used. Without it: "
        "SPLITMESH_HEAD; those that Consul knows with SPLITMESH_DISCOVERY=consul; this machine's.",
        show_default=False,
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="Model to ask; empty: the head's first.")]
DeadlineOption = Annotated[
    int, typer.Option("--deadline-ms", min=1, help="Time within which an answer is useful, at the head, milliseconds.")
]
OtlpOption = Annotated[str, typer.Option("--otlp", help="host:port that takes this command's own spans.")]

SHOWN_LABELS = 3


def infer(
    image: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False, help="A picture.")] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A safetensors file with every input of the model instead."),
    ] = None,
    head: HeadOption = "",
    model: ModelOption = "",
    camera: Annotated[str, typer.Option(help="Camera id for traces and counts.")] = "cli",
    deadline_ms: DeadlineOption = 5000,
    otlp: OtlpOption = "",
    json: JsonOption = False,
) -> None:
    """Answer one picture, or the inputs in a file."""

    async def ask() -> Answer:
        frame = _frame(image, inputs)
        async with gateway(head, model=model, deadline_ms=deadline_ms, otlp_endpoint=otlp) as mesh:
            return await mesh.infer(frame, camera=camera)

    answer = run(ask())
    if json:
        show_json(answer)
        return
    rows = [[label.name or label.index, label.score] for label in answer.labels[:SHOWN_LABELS]]
    if rows:
        show_table("", ["class", "probability"], rows)
    for name, array in answer.outputs.items():
        print(f"{name}: {array.dtype} {list(array.shape)}")
    if answer.routing is not None:
        print(described(answer.routing))
    fallback = f" ({answer.fallback_reason})" if answer.fallback_reason else ""
    print(f"{answer.answered_by}{fallback}, {answer.model} version {answer.version}, trace {answer.trace_id}")
    rate = "" if answer.rate is None else f" (rate {answer.rate})"
    print(f"{answer.timings.total_ms:.1f} ms, {answer.uplink_bytes} bytes on the uplink{rate}")


def described(routing: Routing) -> str:
    """How it was decided whether the edge answers, in one line."""
    ease = "undefined" if routing.ease is None else f"{routing.ease:.3f}"
    by = f"policy {routing.policy_revision}" if routing.policy_revision else "no policy yet"
    facts = [f"{routing.why}: {routing.score} {ease} against {routing.threshold:.3f}", f"worth {routing.worth:.3f}", by]
    if routing.refused:
        facts.append(f"not sent: {routing.refused}")
    if routing.audited:
        facts.append("audited")
    return ", ".join(facts)


def _frame(image: Path | None, inputs: Path | None) -> Path | dict[str, Array]:
    if inputs is None and image is not None:
        return image
    if inputs is None or image is not None:
        raise field_error("image", "give a picture, or the model's inputs with --inputs")
    try:
        return dict(load(inputs.read_bytes()))
    except (SafetensorError, ValueError) as error:
        raise field_error("inputs", f"{inputs} is no safetensors file: {error}") from error


def stream(
    source: Annotated[Path, typer.Argument(help="A folder of pictures or a video file.")],
    head: HeadOption = "",
    model: ModelOption = "",
    camera: Annotated[str, typer.Option(help="Camera id for traces and counts.")] = "cli",
    deadline_ms: DeadlineOption = 1000,
    order: Annotated[
        Order, typer.Option(help="Outcomes as they are ready, or in the order of the source.")
    ] = "as-ready",
    drop: Annotated[
        Drop, typer.Option(help="What gives way when frames come too fast: the source, or the oldest frame that waits.")
    ] = "none",
    max_waiting: Annotated[
        int, typer.Option(min=1, max=MAX_WINDOW, help="With --drop oldest: frames that may wait.")
    ] = 1,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1000, help="Frames a second, as a camera takes them; without it as they are answered."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    window: Annotated[int, typer.Option(min=1, max=MAX_WINDOW, help="Frames under way at once.")] = 16,
    otlp: OtlpOption = "",
    json: JsonOption = False,
) -> None:
    """Answer a folder or a video; one JSON line per frame with --json, a summary otherwise.

    Exit code 1 when any frame failed; one that --drop let give way has not. Percentiles: the last 100,000 answers of each kind.
    """
    summary = StreamSummary()

    async def follow() -> None:
        pictures = paced(frames(source, limit), fps)
        async with (
            gateway(head, model=model, deadline_ms=deadline_ms, otlp_endpoint=otlp) as mesh,
            mesh.stream(camera, order=order, drop=drop, max_waiting=max_waiting, window=window) as sending,
        ):
            with Progress(transient=True, disable=json) as progress:
                task = progress.add_task("frames", total=limit)
                async for outcome in sending.run(pictures):
                    summary.add(outcome)
                    progress.update(task, advance=1, description=live(sending.counts))
                    if json:
                        show_line(outcome)

    run(follow())
    if not json:
        summary.show()
    if summary.failed:
        raise typer.Exit(1)
