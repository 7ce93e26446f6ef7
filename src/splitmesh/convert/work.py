"""One conversion: what a child process does."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from splitmesh.convert.compare import DEFAULT_TOLERANCE, Comparison
from splitmesh.convert.formats import ModelFormat
from splitmesh.errors import MeshError, Reason, field_error

MODULES = {"pytorch": ("torch", "onnxscript"), "tensorflow": ("tensorflow", "tf2onnx")}
"""What each extra brings."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did."""

    source: str
    """Format of the original and the versions of what read it."""
    comparison: Comparison
    notes: tuple[str, ...]
    """What a person should know about the result."""


def missing_module(model_format: ModelFormat) -> str | None:
    """The first module that converting this format needs and that is not installed."""
    wanted = MODULES.get(model_format.extra, ())
    return next((name for name in wanted if find_spec(name) is None), None)


def convert(
    source: Path,
    model_format: ModelFormat,
    target: Path,
    log: Path,
    tolerance: float = DEFAULT_TOLERANCE,
    channels_first: bool = False,
) -> Conversion:
    """Write ``source`` as ONNX to ``target`` and compare the two.

    Args:
        source: the file or folder.
        model_format: what :func:`splitmesh.convert.formats.format_of` said.
        target: the ONNX file to write.
        log: takes everything that frameworks print.
        tolerance: see :func:`splitmesh.convert.compare.compare`.
        channels_first: turn TensorFlow's ``[batch, height, width, channels]`` into ``[batch, channels, height, width]``.

    For a process of its own: redirects its output, and for PyTorch forbids it to unpickle. Raises MeshError
    FIELD_INVALID, MODEL_CORRUPT, MODEL_OPERATOR_UNSUPPORTED or MODEL_SHAPE_UNKNOWN.
    """
    _redirect(log)
    try:
        if model_format is ModelFormat.PYTORCH:
            from splitmesh.convert import pytorch

            if channels_first:
                raise field_error("channels_first", "is for TensorFlow models; PyTorch has channels first already")
            return Conversion(*pytorch.convert(source, target, tolerance))
        from splitmesh.convert import tensorflow_models

        return Conversion(*tensorflow_models.convert(source, model_format, target, tolerance, channels_first))
    except (MeshError, MemoryError):
        raise
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"{source} cannot be converted to ONNX: {type(error).__name__}: {first[:500]}",
        ) from error


def _redirect(log: Path) -> None:
    """Frameworks print from C++ too, so the descriptors themselves are replaced."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
