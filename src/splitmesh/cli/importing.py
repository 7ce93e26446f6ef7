"""What a pushed file is turned into: an ONNX file, and the words that say where it came from."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from splitmesh.cli.output import how_to_install
from splitmesh.convert.compare import DEFAULT_TOLERANCE
from splitmesh.convert.formats import ModelFormat, format_of
from splitmesh.convert.work import Conversion, convert, missing_module
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.jobs import MIB, run_job

DEADLINE_S = 900.0
MAX_MEMORY_BYTES = 32 * 1024 * MIB
"""Of address space, of which frameworks map far more than they use."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A file that can be pushed."""

    path: Path
    provenance: str
    """Where a converted file came from; empty for one that was ONNX already."""


@asynccontextmanager
async def as_onnx(
    path: Path, tolerance: float = DEFAULT_TOLERANCE, channels_first: bool = False
) -> AsyncIterator[OnnxFile]:
    """The model at ``path`` as an ONNX file that is there until the block ends; what was done is said on standard error.

    Foreign formats are read in a child process with limits. Raises MeshError FIELD_INVALID when the format cannot be
    converted here or the result is not faithful, and the errors of :func:`splitmesh.convert.work.convert`.
    """
    model_format = format_of(path)
    if model_format is ModelFormat.ONNX:
        if channels_first:
            raise field_error("channels_first", "is for TensorFlow models; an ONNX file is pushed as it is")
        yield OnnxFile(path, "")
        return
    missing = missing_module(model_format)
    if missing is not None:
        raise field_error("model", f"{path} needs {missing} to be read: {how_to_install(model_format.extra)}")
    with tempfile.TemporaryDirectory(prefix="splitmesh-push-") as scratch:
        target, log = Path(scratch, "model.onnx"), Path(scratch, "log")
        try:
            done: Conversion = await run_job(
                convert,
                *(path, model_format, target, log, tolerance, channels_first),
                deadline_s=DEADLINE_S,
                max_memory_bytes=MAX_MEMORY_BYTES,
            )
        except MeshError as error:
            if error.reason is Reason.INTERNAL and log.is_file():
                print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        _say(path, done)
        found = done.comparison
        yield OnnxFile(target, f"from a {done.source}; differs by at most {found.largest_difference:.1e} of an output")


def _say(path: Path, done: Conversion) -> None:
    found = done.comparison
    print(f"{path}: {done.source}, converted to ONNX", file=sys.stderr)
    print(
        f"on {found.samples} random inputs the two differ by at most {found.largest_difference:.1e} of an output's largest "
        f"value (allowed: {found.tolerance:g})",
        file=sys.stderr,
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
