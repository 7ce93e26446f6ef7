"""``splitmesh split``: cut a model in two, or into a chain of segments.

Also works on an ONNX file alone, with no service running.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, is_file, registry_of
from splitmesh.cli.model_parts import read_labels, read_preprocess
from splitmesh.cli.output import JsonOption, refuse, run, show_json, show_table
from splitmesh.cli.plan_files import read_plan
from splitmesh.cli.planning import FileOrVersion
from splitmesh.cli.sources import read_samples
from splitmesh.client.partition import PartitionClient, SplitResult
from splitmesh.errors import MeshError, field_error

BATCH = 16

AtOption = Annotated[
    list[str] | None,
    typer.Option(
        "--at", help="Tensors to cut at, separated by commas; may be repeated. With --plan: a cut of the plan."
    ),
]
ThenOption = Annotated[
    list[str] | None,
    typer.Option("--then", help="Another cut behind the one before, for a chain of segments; may be repeated."),
]


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """What a split of a file wrote."""

    out: Path
    size_bytes: Mapping[str, int]
    cut: tuple[str, ...]
    further: tuple[tuple[str, ...], ...]
    """Later cuts of a chain."""
    max_abs_error: float
    """Of the segments, one after the other, against the whole, as a share of an output's largest magnitude."""


def split(
    model: FileOrVersion,
    at: AtOption = None,
    then: ThenOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="For a version: a plan of `splitmesh plan --out`; it says where, and is kept with the version."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="For a file: folder for the halves.")] = None,
    labels: Annotated[Path | None, typer.Option(exists=True, help="For a file: class names for the manifest.")] = None,
    preprocess: Annotated[Path | None, typer.Option(exists=True, help="For a file: pipeline for the manifest.")] = None,
    quantise: Annotated[bool, typer.Option("--quantise", help="For a file: 8 bits at the cut; not exact.")] = False,
    calibration: Annotated[
        Path | None, typer.Option(exists=True, help="For a file: folder of typical pictures, to quantise with.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Cut a model in two, or more with --then, and verify it against the whole; exact unless --quantise is given."""
    if not at and (then or plan is None):
        raise typer.BadParameter("--at is needed, or a --plan alone")
    cuts = [tensors(at), *(tensors([cut]) for cut in then or ())] if at else []
    if not is_file(model):
        if out or labels or preprocess or quantise or calibration:
            raise typer.BadParameter("--out, --labels, --preprocess, --quantise and --calibration are for ONNX files")

        async def ask() -> SplitResult:
            record = read_plan(plan) if plan is not None else None
            async with channels() as opened:
                found = await find_version(registry_of(opened), model)
                first, *further = cuts or [[]]
                return await PartitionClient(opened).split(found.model, found.version, first, further, plan=record)

        result = run(ask())
        if json:
            show_json(result)
        else:
            made = result.cuts or cuts
            print(f"version {result.version}: {_differ(made)} from the whole by at most {result.max_abs_error:.2e}")
            if plan is not None:
                print(f"cut as planned at {'; then at '.join(map(', '.join, made))}")
        return
    if plan is not None:
        raise typer.BadParameter("--plan is for versions in the registry")
    if out is None:
        raise typer.BadParameter("--out is needed for an ONNX file")
    try:
        report = split_file(Path(model), cuts, out, labels, preprocess, calibration if quantise else None, quantise)
    except MeshError as error:
        refuse(error)
    if json:
        show_json(report)
        return
    show_table("", ["file", "bytes"], [[name, size] for name, size in report.size_bytes.items()])
    print(f"written to {out}; {_differ(cuts)} from the whole by at most {report.max_abs_error:.2e}")


def _differ(cuts: Sequence[Sequence[str]]) -> str:
    return "head + tail differ" if len(cuts) == 1 else f"the {len(cuts) + 1} segments differ"


def split_file(
    path: Path,
    cuts: Sequence[Sequence[str]],
    out: Path,
    labels: Path | None,
    preprocess: Path | None,
    calibration: Path | None,
    quantise: bool,
) -> SplitFiles:
    """Write head.onnx, tail.onnx, what is between them, and manifest.json (and the whole) of an ONNX file."""
    from splitmesh.model.artifacts import quantise_split, split_bytes, write_split
    from splitmesh.model.load import load_file

    load_file(path)
    pipeline = read_preprocess(preprocess) if preprocess else None
    names = read_labels(labels) if labels else ()
    manifest, artifacts = split_bytes(path.read_bytes(), cuts[0], further=cuts[1:], preprocess=pipeline, labels=names)
    if quantise:
        if calibration is None or pipeline is None:
            raise field_error(
                "calibration", "--quantise needs --calibration and --preprocess: ranges of random input mislead"
            )
        with tempfile.TemporaryDirectory(prefix="splitmesh-split-") as spool:
            feeds = list(read_samples(calibration, manifest, Path(spool)).batches(BATCH))
        manifest, artifacts = quantise_split(manifest, artifacts, feeds)
    write_split(out, manifest, artifacts)
    if manifest.split is None:
        raise AssertionError("a split has a split manifest")
    return SplitFiles(
        out=out,
        size_bytes={one.artifact: len(artifacts[one.artifact]) for one in manifest.split.segments()},
        cut=manifest.split.cuts[0],
        further=manifest.split.cuts[1:],
        max_abs_error=manifest.split.verification.max_abs_error,
    )


def tensors(at: Sequence[str]) -> list[str]:
    """The tensor names of one or more --at options."""
    return [name.strip() for option in at for name in option.split(",") if name.strip()]
