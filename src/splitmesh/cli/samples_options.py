"""Options that several `splitmesh samples` commands share, and what they mean."""

from __future__ import annotations

import getpass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from splitmesh.cli.model_parts import read_labels
from splitmesh.errors import field_error
from splitmesh.samples.kept import Filter
from splitmesh.samples.record import Kind

HeadOption = Annotated[
    str,
    typer.Option(
        "--head",
        help="Address of the edge head, or of several, separated by commas. Without it: SPLITMESH_HEAD; else all heads that "
        "discovery knows; else this machine's.",
        show_default=False,
    ),
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        file_okay=False,
        help="A head's own folder on this host instead; the head may run.",
        show_default=False,
    ),
]
ModelOption = Annotated[str, typer.Option("--model", help="Only of this model.")]
CameraOption = Annotated[str | None, typer.Option("--camera", help="Only of this camera.")]
KindOption = Annotated[
    list[str] | None,
    typer.Option("--kind", help="Only audit, fallback, hard or disputed; may be given more than once."),
]
LabelledOption = Annotated[
    bool | None, typer.Option("--labelled/--unlabelled", help="Only with, or only without a label.")
]
LabelOption = Annotated[str | None, typer.Option("--label", help="Only with this label.")]
SinceOption = Annotated[
    str,
    typer.Option("--since", help="Captured at this time or later: 2026-03-01 or 2026-03-01T14:30, this host's zone."),
]
UntilOption = Annotated[str, typer.Option("--until", help="Captured before this time.")]
ClassesOption = Annotated[
    Path | None,
    typer.Option(
        "--classes", exists=True, dir_okay=False, help="The labels there may be, in order: JSON list or one a line."
    ),
]
ByOption = Annotated[
    str, typer.Option("--by", help="Who says so; without it the name of this user.", show_default=False)
]


def filter_of(
    model: str,
    camera: str | None,
    kinds: list[str] | None,
    labelled: bool | None,
    label: str | None,
    since: str,
    until: str,
) -> Filter:
    """MeshError FIELD_INVALID for a kind or a time that is none."""
    wanted: tuple[Kind, ...] = tuple(kinds or ())  # type: ignore[arg-type]  # the filter looks at them
    return Filter(
        model=model or None,
        camera=camera,
        kinds=wanted,
        labelled=labelled,
        label=label,
        since=_time("since", since),
        until=_time("until", until),
    )


def user(by: str) -> str:
    """Who labels."""
    try:
        return by or getpass.getuser()
    except OSError as error:
        raise field_error("by", "this user has no name: say who labels with --by") from error


def class_names(classes: Path | None) -> tuple[str, ...]:
    """Of a file of class names; empty without one."""
    return read_labels(classes) if classes else ()


def _time(field: str, text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise field_error(field, f"{text!r} is no time such as 2026-03-01T14:30 or 2026-03-01T14:30+01:00") from error
    return at if at.tzinfo is not None else at.astimezone()
