"""``splitmesh models import``: a model of any format, or a whole version, into the registry; and why it cannot be."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitmesh.cli.connect import channels, registry_of
from splitmesh.cli.import_page import as_json, require_report, show_report, show_unsupported, write_report
from splitmesh.cli.importing import OnnxFile, examined, say
from splitmesh.cli.model_parts import examined_parts
from splitmesh.cli.models_folder import FORMAT, VersionFolder, examine_folder, is_version_folder, unpacked
from splitmesh.cli.models_origin import (
    CodeOption,
    DatasetOption,
    FromOption,
    MetricOption,
    Origin,
    ParentOption,
    SeedOption,
    TaskOption,
    known_here,
)
from splitmesh.cli.models_pull import LimitOption
from splitmesh.cli.models_shown import show_version, transfer
from splitmesh.cli.output import JsonOption, refuse, run, show_json
from splitmesh.cli.who import who
from splitmesh.client.registry import VersionInfo
from splitmesh.convert.compare import DEFAULT_TOLERANCE
from splitmesh.errors import MeshError
from splitmesh.model.lineage import Lineage

if TYPE_CHECKING:
    from splitmesh.convert.report import ImportReport


IN_A_LAYOUT = "version in an OCI layout"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line said, beside the lineage."""

    source: Path | None
    oci: str
    name: str
    labels: Path | None
    preprocess: Path | None
    calibration: Path | None
    description: str
    tolerance: float
    channels_first: bool
    parent: int
    limit_mbit: float | None
    unsigned: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What is there to import."""

    report: ImportReport
    parts: Mapping[str, bytes | Path]
    """Empty where the model is refused."""
    name: str
    """Of the model, where the source says so."""
    description: str
    lineage: Lineage | None
    """Where the source says so."""


def import_(
    source: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            help="ONNX, PyTorch (.pt2), Keras (.keras, .h5), SavedModel folder, TFLite, or a folder that `models pull` or "
            "`split` wrote.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the model.", show_default=False)] = "",
    oci: Annotated[
        str, typer.Option(metavar="FOLDER[:TAG]", help="In place of a file: a version in an OCI layout.")
    ] = "",
    labels: Annotated[Path | None, typer.Option(exists=True, help="JSON list, or one class name per line.")] = None,
    preprocess: Annotated[
        Path | None, typer.Option(exists=True, help="JSON: width, height, mode, resize, decode, mean, std.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="Typical pictures (class folders, labels.csv, COCO); sent to the registry, resized."
        ),
    ] = None,
    description: Annotated[str, typer.Option(help="Free text.")] = "",
    tolerance: Annotated[
        float, typer.Option(min=0, help="When converting: largest difference, as a share of an output's largest value.")
    ] = DEFAULT_TOLERANCE,
    channels_first: Annotated[
        bool, typer.Option("--channels-first", help="TensorFlow: take pictures with their channels first.")
    ] = False,
    parent: ParentOption = 0,
    from_model: FromOption = None,
    dataset: DatasetOption = None,
    metric: MetricOption = None,
    seed: SeedOption = None,
    code_version: CodeOption = None,
    task: TaskOption = "",
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Write what was found here, .json or .html; above all when it fails."),
    ] = None,
    unsigned: Annotated[
        bool,
        typer.Option(
            "--unsigned",
            help="Where a trust root is set: also take a folder or a version in an OCI layout that nobody signed.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what was found.")] = False,
    limit_mbit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Register a model as a new version; what is not ONNX is converted first and compared with the original."""
    if (source is None) == (not oci):
        raise typer.BadParameter("give a file or folder, or --oci FOLDER[:TAG]")
    if not name and not dry_run and not (oci or (source and is_version_folder(source))):
        raise typer.BadParameter("Missing option '--name'")
    asked = Asked(
        *(source, oci, name, labels, preprocess, calibration, description),
        *(tolerance, channels_first, parent, limit_mbit, unsigned),
    )
    origin = Origin(from_model or (), dataset or (), metric or (), seed or (), code_version, task)
    run(_import(asked, origin, report, dry_run, json))


async def _import(asked: Asked, origin: Origin, page: Path | None, dry_run: bool, json: bool) -> None:
    require_report(page)
    async with _found(asked) as found:
        if page is not None:
            await asyncio.to_thread(write_report, page, found.report)
        if dry_run:
            _say_found(found.report, json)
        if found.report.refusal is not None:
            if not dry_run:
                _say_refused(found.report, json)
            refuse(found.report.refusal)
        if dry_run:
            return
        say(found.report)
        show_version(await _create(asked, origin, found), json)


async def _create(asked: Asked, origin: Origin, found: Found) -> VersionInfo:
    name = asked.name or found.name
    async with channels() as opened:
        registry = registry_of(opened, asked.limit_mbit)
        kept = None if found.lineage is None else await known_here(registry, opened, found.lineage)
        lineage = await origin.lineage(opened, kept)
        with transfer(name) as on_progress:
            return await registry.create_version(
                name,
                found.parts,
                parent=asked.parent,
                created_by=f"import by {who()}",
                description=found.description,
                lineage=lineage,
                on_progress=on_progress,
            )


@asynccontextmanager
async def _found(asked: Asked) -> AsyncIterator[Found]:
    """What the source holds, there until the block ends."""
    if asked.source is not None and not is_version_folder(asked.source):
        async with examined(asked.source, asked.tolerance, asked.channels_first) as (file, report):
            yield _of_file(asked, file, report)
        return
    with tempfile.TemporaryDirectory(prefix="splitmesh-import-") as scratch:
        yield await _whole_version(asked, asked.source or Path(scratch))


async def _whole_version(asked: Asked, folder: Path) -> Found:
    """Of a folder; a layout's version is put there first. What cannot be read at all is in the report too."""
    from splitmesh.convert.report import ImportReport

    source, kind = (asked.oci, IN_A_LAYOUT) if asked.oci else (str(asked.source), FORMAT)
    try:
        if asked.oci:
            await asyncio.to_thread(unpacked, asked.oci, folder)
        found = await examine_folder(folder, source, unsigned=asked.unsigned)
    except MeshError as error:
        return Found(ImportReport(source, kind, refusal=error), {}, asked.name, asked.description, None)
    return _of_folder(replace(found, report=replace(found.report, format=kind)), asked)


def _of_file(asked: Asked, file: OnnxFile, report: ImportReport) -> Found:
    parts: Mapping[str, bytes | Path] = {}
    if report.refusal is None:
        try:
            beside = (asked.labels, asked.preprocess, asked.calibration)
            parts = {**examined_parts(file.path, report.inputs, report.outputs, *beside)}
        except MeshError as error:
            report = replace(report, refusal=error)
    return Found(report, parts, asked.name, "; ".join(filter(None, [asked.description, file.provenance])), None)


def _of_folder(folder: VersionFolder, asked: Asked) -> Found:
    if asked.labels or asked.preprocess or asked.calibration or asked.channels_first:
        raise typer.BadParameter(
            "--labels, --preprocess, --calibration and --channels-first are for a single model file"
        )
    record = folder.parts.record
    if not asked.name and record is None:
        raise typer.BadParameter("Missing option '--name': the folder does not say which model it is")
    if record is None:
        return Found(folder.report, folder.parts.files, "", asked.description, None)
    return Found(
        folder.report, folder.parts.files, record.model, asked.description or record.description, record.lineage
    )


def _say_found(report: ImportReport, json: bool) -> None:
    if json:
        show_json(as_json(report))
    else:
        show_report(report)


def _say_refused(report: ImportReport, json: bool) -> None:
    """The table goes where tables go; the one line with the reason follows on standard error."""
    if json:
        show_json(as_json(report))
    else:
        show_unsupported(report)
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
