"""One conversion: what a child process does."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from splitmesh.convert.compare import DEFAULT_TOLERANCE
from splitmesh.convert.formats import ModelFormat
from splitmesh.convert.report import ImportReport
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.artifacts import tensor_infos
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model, read_model_bytes
from splitmesh.model.operators import canonical_domain, type_name
from splitmesh.model.unsupported import Unsupported, unsupported_parts


def examine(
    source: Path,
    model_format: ModelFormat,
    target: Path,
    log: Path,
    tolerance: float = DEFAULT_TOLERANCE,
    channels_first: bool = False,
) -> ImportReport:
    """Write ``source`` as ONNX to ``target``, compare the two, and say everything that stands in the way.

    Args:
        source: the file or folder.
        model_format: what :func:`splitmesh.convert.formats.format_of` said.
        target: the ONNX file to write; for a source that is ONNX already, the source itself.
        log: takes everything that frameworks print.
        tolerance: see :func:`splitmesh.convert.compare.compare`.
        channels_first: turn TensorFlow's ``[batch, height, width, channels]`` into ``[batch, channels, height, width]``.

    For a process of its own: redirects its output, and for PyTorch forbids it to unpickle. What is refused is in the
    report: FIELD_INVALID, or one of the reasons of :func:`splitmesh.model.load.load_model`.
    """
    _redirect(log)
    report = ImportReport(str(source), model_format.value)
    if model_format is not ModelFormat.ONNX:
        report = _converted(report, source, model_format, target, tolerance, channels_first)
    return _read(report, target) if target.is_file() else report


def _converted(
    report: ImportReport,
    source: Path,
    model_format: ModelFormat,
    target: Path,
    tolerance: float,
    channels_first: bool,
) -> ImportReport:
    unsupported: list[Unsupported] = []
    try:
        if model_format is ModelFormat.PYTORCH:
            from splitmesh.convert import pytorch

            if channels_first:
                raise field_error("channels_first", "is for TensorFlow models; PyTorch has channels first already")
            done = pytorch.convert(source, target, tolerance, unsupported)
        else:
            from splitmesh.convert import tensorflow_models

            done = tensorflow_models.convert(source, model_format, target, tolerance, channels_first, unsupported)
    except MemoryError:
        raise
    except Exception as error:
        refusal = error if isinstance(error, MeshError) else _failed(source, error, unsupported)
        return replace(report, unsupported=tuple(unsupported), refusal=refusal)
    return replace(report, converter=done[0], comparison=done[1], notes=done[2])


def _failed(source: Path, error: Exception, unsupported: list[Unsupported]) -> MeshError:
    what = "; ".join(f"no translation for {one.name}" for one in unsupported[:20])
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return MeshError(
        Reason.MODEL_OPERATOR_UNSUPPORTED,
        f"{source} cannot be converted to ONNX: {what or f'{type(error).__name__}: {first[:500]}'}",
    )


def _read(report: ImportReport, target: Path) -> ImportReport:
    """The report with what is in the ONNX file, and what of it is refused."""
    try:
        data = read_model_bytes(target)
    except MeshError as error:
        return replace(report, refusal=report.refusal or error)
    found = unsupported_parts(data)
    # Operators that were told already are in the file under their names in the other framework.
    told = {one.name for one in report.unsupported}
    report = replace(
        report,
        size_bytes=len(data),
        unsupported=(*report.unsupported, *(one for one in found if one.name not in told)),
    )
    if report.refusal is not None:
        return report
    try:
        graph = Graph(load_model(data))
        inputs, outputs = tensor_infos(graph, graph.inputs), tensor_infos(graph, graph.outputs)
    except MeshError as error:
        return replace(report, refusal=error)
    names = Counter(type_name(node) for node in graph.model.graph.node)
    opset = max(entry.version for entry in graph.model.opset_import if canonical_domain(entry.domain) == "")
    return replace(report, operators=dict(names.most_common()), opset=opset, inputs=inputs, outputs=outputs)


def _redirect(log: Path) -> None:
    """Frameworks print from C++ too, so the descriptors themselves are replaced."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
