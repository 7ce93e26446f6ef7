"""What an imported file is turned into: an ONNX file, and the report that says how."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from splitmesh.cli.output import how_to_install
from splitmesh.convert.compare import DEFAULT_TOLERANCE
from splitmesh.convert.formats import ModelFormat, format_of, missing_module
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import MIB, run_job

if TYPE_CHECKING:
    from splitmesh.convert.report import ImportReport

DEADLINE_S = 900.0
MAX_MEMORY_BYTES = 32 * 1024 * MIB
"""Of address space, of which frameworks map far more than they use."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file that can be registered."""

    path: Path
    provenance: str
    """Where a converted file came from; empty for one that was ONNX already."""


@asynccontextmanager
async def examined(
    path: Path, tolerance: float = DEFAULT_TOLERANCE, channels_first: bool = False
) -> AsyncIterator[tuple[OnnxFile, ImportReport]]:
    """The model at ``path`` as an ONNX file that is there until the block ends, and all that is to be said about it.

    Everything is read in a child process with limits. A model that is refused is no error: the report says so, be it for its
    format, for what it holds, or for what kept the child from answering, and what there is of the file must not be used.
    """
    from splitmesh.convert.report import ImportReport
    from splitmesh.convert.work import examine

    model_format: ModelFormat | None = None
    try:
        model_format = format_of(path)
        _require_readable(path, model_format, channels_first)
    except MeshError as error:
        yield OnnxFile(path, ""), ImportReport(str(path), model_format or "", refusal=error)
        return
    with tempfile.TemporaryDirectory(prefix="splitmesh-import-") as scratch:
        log = Path(scratch, "log")
        target = path if model_format is ModelFormat.ONNX else Path(scratch, "model.onnx")
        try:
            report = await run_job(
                examine,
                *(path, model_format, target, log, tolerance, channels_first),
                deadline_s=DEADLINE_S,
                max_memory_bytes=MAX_MEMORY_BYTES,
            )
        except MeshError as error:
            if error.reason is Reason.INTERNAL and log.is_file():
                print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
            report = ImportReport(str(path), model_format.value, refusal=error)
        yield OnnxFile(target, _provenance(report)), report


@asynccontextmanager
async def as_onnx(
    path: Path, tolerance: float = DEFAULT_TOLERANCE, channels_first: bool = False
) -> AsyncIterator[OnnxFile]:
    """The model at ``path`` as an ONNX file that is there until the block ends; what was done is said on standard error.

    A file that is ONNX already is not read here. Raises what :func:`examined` reports.
    """
    if format_of(path) is ModelFormat.ONNX:
        _require_readable(path, ModelFormat.ONNX, channels_first)
        yield OnnxFile(path, "")
        return
    async with examined(path, tolerance, channels_first) as (file, report):
        if report.refusal is not None:
            raise report.refusal
        say(report)
        yield file


def say(report: ImportReport) -> None:
    """How a conversion went, on standard error."""
    found = report.comparison
    if found is None:
        return
    print(f"{report.source}: {report.converter}, converted to ONNX", file=sys.stderr)
    print(
        f"on {found.samples} random inputs the two differ by at most {found.largest_difference:.1e} of an output's largest "
        f"value (allowed: {found.tolerance:g})",
        file=sys.stderr,
    )
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)


def _require_readable(path: Path, model_format: ModelFormat, channels_first: bool) -> None:
    if model_format is ModelFormat.ONNX and channels_first:
        raise field_error("channels_first", "is for TensorFlow models; an ONNX file is imported as it is")
    missing = missing_module(model_format)
    if missing is not None:
        raise field_error("model", f"{path} needs {missing} to be read: {how_to_install(model_format.extra)}")


def _provenance(report: ImportReport) -> str:
    found = report.comparison
    if found is None:
        return ""
    return f"from a {report.converter}; differs by at most {found.largest_difference:.1e} of an output"
