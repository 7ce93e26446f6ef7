"""``splitmesh samples export`` and ``import``: samples as files of labelling tools."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer

from splitmesh.cli.output import JsonOption, run, show_json
from splitmesh.cli.samples_options import (
    ByOption,
    CameraOption,
    ClassesOption,
    DataDirOption,
    HeadOption,
    KindOption,
    LabelledOption,
    LabelOption,
    ModelOption,
    SinceOption,
    UntilOption,
    class_names,
    filter_of,
    user,
)
from splitmesh.cli.samples_source import records_of, samples_of
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples.formats import ANNOTATIONS, Exported, export_coco, export_folder
from splitmesh.samples.kept import Filter
from splitmesh.samples.label_files import Form
from splitmesh.samples.labelling import Index, labels_of

EXPORTS = {"coco": export_coco, "folder": export_folder}
PICTURE_S = 120.0
"""For one picture to come from a head."""


def add_commands(app: typer.Typer) -> None:
    """Those of this file."""
    app.command("export")(export)
    app.command("import")(import_)


def export(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    format_: Annotated[
        str, typer.Option("--format", help="coco (annotations.json and images) or folder (class folders).")
    ],
    model: ModelOption = "",
    camera: CameraOption = None,
    kind: KindOption = None,
    labelled: LabelledOption = None,
    label: LabelOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    classes: ClassesOption = None,
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Write pictures with their labels for a labelling tool: in the site with --data-dir, or from heads that share pictures."""

    async def write() -> Exported:
        if format_ not in EXPORTS:
            raise field_error("format", f"{format_!r} is none of {', '.join(EXPORTS)}")
        names = class_names(classes)
        wanted = filter_of(model, camera, kind, labelled, label, since, until)
        async with samples_of(head, data_dir) as source:
            records = await records_of(source, wanted)
            loop = asyncio.get_running_loop()

            def picture_of(sample_id: str) -> bytes:
                asked = asyncio.run_coroutine_threadsafe(source.content(sample_id), loop)
                try:
                    return asked.result(PICTURE_S)[1]
                except TimeoutError as error:
                    asked.cancel()
                    raise MeshError(
                        Reason.DEADLINE_EXPIRED, f"the picture of {sample_id} did not come in {PICTURE_S:g} s"
                    ) from error

            return await asyncio.to_thread(partial(EXPORTS[format_], records, picture_of, folder, classes=names))

    done = run(write())
    if json:
        show_json(done)
        return
    left_out = f", {done.without_picture} samples without a picture left out" if done.without_picture else ""
    gone = f", {done.gone} let go of by the head meanwhile" if done.gone else ""
    damaged = f", {done.damaged} damaged where they are kept" if done.damaged else ""
    print(f"{folder}: {done.pictures} pictures, {done.labelled} of them labelled{left_out}{gone}{damaged}")


def import_(
    source: Annotated[Path, typer.Argument(exists=True, help="A COCO file or folder, class folders, or a CSV.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="coco, folder, csv or yolo; without it by the file's ending.", show_default=False
        ),
    ] = "",
    classes: ClassesOption = None,
    by: ByOption = "",
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Take labels back from a labelling tool: all of them, or none with a list of what is wrong."""
    give_labels(source, format_, class_names(classes), by, head, data_dir, json)


def give_labels(
    source: Path, form: str, classes: tuple[str, ...], by: str, head: str, data_dir: Path | None, json: bool
) -> None:
    """Read labels from a file or folder, give them to the samples that they are for, and show what came of it."""

    async def give() -> tuple[int, int]:
        known_form = _form(source, form)
        async with samples_of(head, data_dir) as samples:
            known = Index(await records_of(samples, Filter()))
            labels = await asyncio.to_thread(partial(labels_of, source, known, form=known_form, classes=classes))
            return len(labels), await samples.label(dict(labels), user(by))

    count, changed = run(give())
    if json:
        show_json({"samples": count, "changed": changed})
    else:
        print(f"{source}: labels of {count} samples, {changed} of them new")


def _form(source: Path, form: str) -> Form:
    if not form:
        if source.is_dir():
            form = "coco" if (source / ANNOTATIONS).is_file() else ""
        else:
            form = {".json": "coco", ".csv": "csv"}.get(source.suffix.lower(), "")
    for known in get_args(Form):
        if form == known:
            return known  # type: ignore[no-any-return]
    raise field_error("format", f"{source.name!r} does not say what it is: give --format {', '.join(get_args(Form))}")
