"""``splitmesh models``: what is in the registry, and how it gets there."""

from __future__ import annotations

import json as jsonlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from splitmesh.cli.connect import channels, find_version
from splitmesh.cli.importing import as_onnx
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.sources import read_samples
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.convert.compare import DEFAULT_TOLERANCE
from splitmesh.errors import field_error
from splitmesh.model.manifest import CALIBRATION, MANIFEST, WHOLE, Manifest, SegmentInfo
from splitmesh.model.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable

app = typer.Typer(no_args_is_help=True, help="Models, versions and aliases in the registry.")

ModelArgument = Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")]


@app.command()
def push(
    model_file: Annotated[
        Path,
        typer.Argument(exists=True, help="ONNX, PyTorch (.pt2), Keras (.keras, .h5), SavedModel folder or TFLite."),
    ],
    name: Annotated[str, typer.Option(help="Name of the model.")],
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
        bool, typer.Option("--channels-first", help="TensorFlow: take pictures as [batch, channels, height, width].")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Register a model as a new version; what is not ONNX is converted first and compared with the original."""

    async def send() -> VersionInfo:
        async with as_onnx(model_file, tolerance, channels_first) as file, channels() as opened:
            parts = version_parts(file.path, labels, preprocess, calibration)
            text = "; ".join(filter(None, [description, file.provenance]))
            with _transfer() as progress:
                return await RegistryClient(opened).create_version(
                    name, parts, created_by="push", description=text, on_progress=_advance(progress, name)
                )

    _show_version(run(send()), json)


def version_parts(
    model_file: Path, labels: Path | None, preprocess: Path | None, calibration: Path | None
) -> dict[str, bytes]:
    """The artefacts of a whole model: checked file, manifest, and calibration pictures when there are any."""
    from splitmesh.model.artifacts import tensor_infos
    from splitmesh.model.calibration import pack_calibration
    from splitmesh.model.graph import Graph
    from splitmesh.model.load import load_file

    model = load_file(model_file)
    graph = Graph(model)
    names = read_labels(labels) if labels else ()
    pipeline = read_preprocess(preprocess) if preprocess else None
    whole = SegmentInfo(
        artifact=WHOLE, inputs=tensor_infos(graph, graph.inputs), outputs=tensor_infos(graph, graph.outputs)
    )
    try:
        manifest = Manifest(task="classification" if names else "raw", labels=names, preprocess=pipeline, whole=whole)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise field_error("labels" if names else "model", problem) from error
    parts = {WHOLE: model_file.read_bytes(), MANIFEST: manifest.to_json().encode()}
    if calibration is not None:
        if pipeline is None and calibration.suffix.lower() != ".safetensors":
            raise field_error("calibration", "pictures need --preprocess to become inputs")
        with tempfile.TemporaryDirectory(prefix="splitmesh-push-") as spool:
            samples = read_samples(calibration, manifest, Path(spool))
            held = samples.tensors if samples.pictures is None else samples.pictures
            parts[CALIBRATION] = pack_calibration(held, labels=samples.labels, groups=samples.groups)
    return parts


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from a JSON list or from lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise field_error("labels", f"{path} is not text in UTF-8") from error
    if not text.lstrip().startswith("["):
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        return tuple(str(name) for name in jsonlib.loads(text))
    except ValueError as error:
        raise field_error("labels", f"{path} is not a JSON list") from error


def read_preprocess(path: Path) -> Preprocess:
    """The pipeline from a JSON file."""
    try:
        return Preprocess.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"{path}: {'.'.join(map(str, first['loc']))}".removesuffix(": ")
        raise field_error("preprocess", f"{where}: {first['msg']}") from error


@app.command("list")
def list_(
    model: Annotated[str, typer.Argument(help="Only this model's versions.")] = "", json: JsonOption = False
) -> None:
    """List models, or the versions of one model."""

    async def models() -> None:
        async with channels() as opened:
            registry = RegistryClient(opened)
            if model:
                versions = await registry.list_versions(model)
                if json:
                    show_json(versions)
                    return
                rows = [
                    [v.version, v.parent or "", v.created_by, ", ".join(v.aliases), _time(v), v.description]
                    for v in versions
                ]
                show_table(model, ["version", "parent", "made by", "aliases", "made (UTC)", "description"], rows)
                return
            found = await registry.list_models()
            if json:
                show_json(found)
                return
            table = [
                [m.name, m.latest_version, ", ".join(f"{a}={v}" for a, v in sorted(m.aliases.items()))] for m in found
            ]
            show_table("", ["model", "latest", "aliases"], table)

    run(models())


@app.command()
def show(model: ModelArgument, json: JsonOption = False) -> None:
    """Show one version with its artefacts and manifest."""

    async def look() -> tuple[VersionInfo, Manifest]:
        async with channels() as opened:
            registry = RegistryClient(opened)
            version = await find_version(registry, model)
            return version, Manifest.from_json(await registry.fetch(version, MANIFEST))

    version, manifest = run(look())
    if json:
        show_json({"version": version, "manifest": jsonlib.loads(manifest.to_json())})
        return
    _show_version(version, False)
    show_table(
        "", ["artefact", "bytes", "sha256"], [[a.name, a.size_bytes, a.sha256] for a in version.artifacts.values()]
    )
    print(f"task {manifest.task}, classes: {', '.join(manifest.labels) or '-'}")
    if manifest.split:
        for hop in manifest.split.hops():
            wire = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in hop.wire)
            print(f"cut at {', '.join(t.name for t in hop.cut)}; crosses: {wire}")
        segments = "head + tail" if not manifest.split.middle else f"{len(manifest.split.segments())} segments"
        print(f"{segments} against the whole: max error {manifest.split.verification.max_abs_error:.2e}")
    if manifest.exit:
        print(
            f"exit: agrees on {manifest.exit.holdout_agreement:.1%} of {manifest.exit.holdout_samples} held-out samples"
        )


@app.command()
def promote(
    model: ModelArgument,
    alias: Annotated[str, typer.Option(help="Alias to move.")] = "production",
    json: JsonOption = False,
) -> None:
    """Point an alias at a version; heads that follow it switch."""

    async def move() -> tuple[int, VersionInfo]:
        async with channels() as opened:
            registry = RegistryClient(opened)
            version = await find_version(registry, model)
            return await registry.set_alias(version.model, alias, version.version), version

    previous, version = run(move())
    if json:
        show_json({"model": version.model, "alias": alias, "previous_version": previous, "version": version.version})
        return
    print(f"{version.model}@{alias}: {previous or 'nowhere'} -> {version.version}")


@app.command()
def pull(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the artefacts.")],
    json: JsonOption = False,
) -> None:
    """Download a version's artefacts; an interrupted pull goes on where it stopped."""

    async def fetch() -> VersionInfo:
        async with channels() as opened:
            registry = RegistryClient(opened)
            version = await find_version(registry, model)
            out.mkdir(parents=True, exist_ok=True)
            with _transfer() as progress:
                for ref in version.artifacts.values():
                    await registry.pull_to_file(ref, out / ref.name, on_progress=_advance(progress, ref.name))
            return version

    _show_version(run(fetch()), json)


def _transfer() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        transient=True,
        console=Console(stderr=True),
    )


def _advance(progress: Progress, name: str) -> Callable[[int, int], None]:
    task = progress.add_task(name, total=None)

    def update(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    return update


def _time(version: VersionInfo) -> str:
    return version.create_time.strftime("%Y-%m-%d %H:%M:%S")


def _show_version(version: VersionInfo, json: bool) -> None:
    if json:
        show_json(version)
        return
    aliases = f" ({', '.join(version.aliases)})" if version.aliases else ""
    parent = f", from version {version.parent}" if version.parent else ""
    made = f"made by {version.created_by} at {_time(version)} UTC"
    print(f"{version.model} version {version.version}{aliases}{parent}, {made}")
