"""``splitmesh samples``: look at the hard, audited and disputed samples that heads keep, and say what they show."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer

from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.samples_files import add_commands, give_labels
from splitmesh.cli.samples_freeze import freeze
from splitmesh.cli.samples_options import (
    ByOption,
    CameraOption,
    DataDirOption,
    HeadOption,
    KindOption,
    LabelledOption,
    LabelOption,
    ModelOption,
    SinceOption,
    UntilOption,
    filter_of,
    user,
)
from splitmesh.cli.samples_source import samples_of
from splitmesh.client.samples import Content, SampleCounts, SampleInfo
from splitmesh.errors import field_error
from splitmesh.samples.kept import LabelEntry
from splitmesh.samples.record import SampleRecord

app = typer.Typer(no_args_is_help=True, help="Hard, audited and disputed samples that heads keep: look, label, export.")


@app.command("list")
def list_(
    model: ModelOption = "",
    camera: CameraOption = None,
    kind: KindOption = None,
    labelled: LabelledOption = None,
    label: LabelOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    limit: Annotated[int, typer.Option(min=1, help="Most samples shown, the newest.")] = 50,
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """List samples, newest first."""

    async def look() -> list[SampleInfo]:
        wanted = filter_of(model, camera, kind, labelled, label, since, until)
        found: list[SampleInfo] = []
        async with samples_of(head, data_dir) as source, aclosing(source.all(wanted)) as samples:
            async for sample in samples:
                found.append(sample)
                if len(found) == limit:
                    break
        return found

    found = run(look())
    if json:
        show_json([_plain(sample) for sample in found])
        return
    columns = ["id", "captured (UTC)", "camera", "kind", "why", "exit -> tail", "ease", "label"]
    show_table("" if found else "no samples", columns, [_row(sample.record) for sample in found])


@app.command()
def show(
    sample: Annotated[str, typer.Argument(metavar="ID", help="Of the sample.")],
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the picture, as it was sent, to FILE.")
    ] = None,
    thumbnail: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a small JPEG to FILE.")] = None,
    features: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write what crossed (safetensors) to FILE.")
    ] = None,
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show one sample with the history of its label; contents of a head come only where its settings let them leave."""
    wanted: dict[Content, Path | None] = {"picture": picture, "thumbnail": thumbnail, "features": features}

    async def look() -> tuple[SampleInfo, Sequence[LabelEntry]]:
        async with samples_of(head, data_dir) as source:
            found, history = await source.get(sample)
            for kind, file in wanted.items():
                if file is not None:
                    file.write_bytes((await source.content(sample, kind))[1])
        return found, history

    found, history = run(look())
    if json:
        show_json({**_plain(found), "history": history})
        return
    show_table(
        "", ["field", "value"], [[name, value] for name, value in _plain(found).items() if value not in (None, "")]
    )
    if history:
        rows = [[f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.by, entry.label or "(taken back)"] for entry in history]
        show_table("labels", ["at (UTC)", "by", "label"], rows)
    for file in filter(None, wanted.values()):
        print(f"written: {file}")


@app.command()
def label(
    sample: Annotated[str, typer.Argument(metavar="[ID]", help="Of the sample.")] = "",
    name: Annotated[str, typer.Argument(metavar="[LABEL]", help="What it shows.")] = "",
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A CSV instead, with the columns id (or image) and label."),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take the label back.")] = False,
    by: ByOption = "",
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Say what a sample shows, or many samples by a table; all of the table or nothing."""
    if file is not None and not (sample or name or clear):
        give_labels(file, "csv", (), by, head, data_dir, json)
        return

    async def say() -> int:
        if file is not None or not sample or bool(name) == clear:
            raise field_error("sample", "give ID and LABEL, ID and --clear, or --file")
        async with samples_of(head, data_dir) as source:
            return await source.label({sample: None if clear else name}, user(by))

    changed = run(say())
    if json:
        show_json({"sample": sample, "label": name or None, "changed": bool(changed)})
        return
    print(f"{sample}: {name or 'no label'}{'' if changed else ', as before'}")


@app.command()
def counts(head: HeadOption = "", data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """Show how much each head keeps, what it dropped and what of it may leave."""

    async def ask() -> Sequence[SampleCounts]:
        async with samples_of(head, data_dir) as source:
            return await source.counts()

    found = run(ask())
    if json:
        show_json(found)
        return
    columns = ["head", "samples", "labelled", "MB", "duplicates", "dropped", "may leave"]
    rows = [
        [
            c.head,
            c.samples,
            c.labelled,
            c.content_bytes / 1e6,
            c.duplicates,
            _told(c.dropped),
            ", ".join(c.allowed) or "-",
        ]
        for c in found
    ]
    show_table("", columns, rows)
    for title in ("camera", "label"):
        entries = [[c.head, key, n] for c in found for key, n in getattr(c, f"by_{title}").items()]
        if entries:
            show_table("", ["head", title, "samples"], entries)


add_commands(app)
app.command("freeze")(freeze)


def _plain(sample: SampleInfo) -> dict[str, Any]:
    record = jsonlib.loads(sample.record.to_json())
    del record["schema_version"]
    return {**record, "duplicates": sample.duplicates}


def _row(record: SampleRecord) -> list[object]:
    return [
        record.id,
        f"{record.captured_at:%Y-%m-%d %H:%M:%S}",
        record.camera,
        record.kind,
        record.why,
        f"{record.exit_label or '?'} -> {record.tail_label or '?'}",
        "" if record.ease is None else f"{record.ease:.2f}",
        record.label or "",
    ]


def _told(dropped: Any) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items())) or "-"
