"""``splitmesh samples export``, ``import`` and ``freeze``: samples as files of labelling tools and of trainers."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Mapping
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer

from splitmesh.cli.output import JsonOption, run, show_json, show_table
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
from splitmesh.cli.samples_source import Source, samples_of
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.samples.formats import ANNOTATIONS, Exported, export_coco, export_folder
from splitmesh.samples.freeze import SHARES, Dataset, Split
from splitmesh.samples.freeze import freeze as freeze_records
from splitmesh.samples.kept import Filter
from splitmesh.samples.label_files import Form
from splitmesh.samples.labelling import Index, labels_of
from splitmesh.samples.record import SampleRecord

EXPORTS = {"coco": export_coco, "folder": export_folder}
PICTURE_S = 120.0
"""For one picture to come from a head."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without hard links say."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def add_commands(app: typer.Typer) -> None:
    """Those of this file."""
    app.command("export")(export)
    app.command("import")(import_)
    app.command("freeze")(freeze)


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
            records = await _records(source, wanted)
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
        str, typer.Option("--format", help="coco, folder or csv; without it by the file's ending.", show_default=False)
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
            known = Index(await _records(samples, Filter()))
            labels = await asyncio.to_thread(partial(labels_of, source, known, form=known_form, classes=classes))
            return len(labels), await samples.label(dict(labels), user(by))

    count, changed = run(give())
    if json:
        show_json({"samples": count, "changed": changed})
    else:
        print(f"{source}: labels of {count} samples, {changed} of them new")


def freeze(
    name: Annotated[str, typer.Argument(help="Of the dataset; the file is NAME.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for the file.")] = Path(),
    seed: Annotated[int, typer.Option(help="Of the division into train, val and test.")] = 0,
    train: Annotated[float, typer.Option(min=0, max=1, help="Share of groups.")] = SHARES["train"],
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of groups.")] = SHARES["val"],
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of groups.")] = SHARES["test"],
    model: ModelOption = "",
    camera: CameraOption = None,
    kind: KindOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    classes: ClassesOption = None,
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version of a dataset of all labelled pictures: a manifest that never changes, known by its SHA-256."""
    shares: Mapping[Split, float] = {"train": train, "val": val, "test": test}
    file = out / f"{name}.json"

    async def make() -> Dataset:
        if not _NAME.fullmatch(name):
            raise field_error("name", f"{name[:40]!r} is not 1 to 100 letters, digits, dots, dashes and underscores")
        wanted = filter_of(model, camera, kind, None, None, since, until)
        async with samples_of(head, data_dir) as source:
            records = await _records(source, wanted)
        dataset = freeze_records(records, seed=seed, shares=shares, classes=class_names(classes))
        _write_once(file, dataset.to_json())
        return dataset

    dataset = run(make())
    if json:
        show_json({"name": name, "file": file, "id": dataset.id, "statistics": dataset.statistics.model_dump()})
        return
    splits = dataset.statistics.splits
    columns = ["split", "pictures", "groups", *dataset.classes]
    show_table("", columns, [[split, s.pictures, s.groups, *s.labels.values()] for split, s in splits.items()])
    print(f"{file}: {dataset.id}")


async def _records(source: Source, wanted: Filter) -> list[SampleRecord]:
    async with aclosing(source.all(wanted)) as samples:
        return [sample.record async for sample in samples]


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


def _write_once(file: Path, data: bytes) -> None:
    """Whole or not at all; a dataset that was named stays what it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with written.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(written, file)
    except FileExistsError as error:
        if file.read_bytes() != data:
            raise field_error("name", f"{file} is there already and another dataset") from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.replace(written, file)  # a file that was there would have been told of
    finally:
        written.unlink(missing_ok=True)
