"""The artefacts of a version: of one ONNX file with what belongs to it, or of a folder that holds them all."""

from __future__ import annotations

import json as jsonlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from splitmesh.cli.sources import read_samples
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.export.record import PLAIN_NAME, RECORD, VersionRecord
from splitmesh.model.manifest import CALIBRATION, MANIFEST, MAX_MANIFEST_BYTES, WHOLE, Manifest, SegmentInfo
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.segments import TensorInfo

MAX_FILES = 1000


@dataclass(frozen=True, slots=True)
class FolderParts:
    """A version in a folder."""

    files: Mapping[str, Path]
    manifest: Manifest
    record: VersionRecord | None
    """What the registry that it was pulled from knew of it; None: it was never in one."""


def version_parts(
    model_file: Path, labels: Path | None, preprocess: Path | None, calibration: Path | None
) -> dict[str, bytes]:
    """The artefacts of a whole model: checked file, manifest, and calibration pictures when there are any.

    Reads the file in this process. Raises MeshError FIELD_INVALID when what belongs to it does not fit it, and as
    :func:`splitmesh.model.load.load_file`.
    """
    from splitmesh.model.artifacts import tensor_infos
    from splitmesh.model.graph import Graph
    from splitmesh.model.load import load_file

    graph = Graph(load_file(model_file))
    inputs, outputs = tensor_infos(graph, graph.inputs), tensor_infos(graph, graph.outputs)
    return examined_parts(model_file, inputs, outputs, labels, preprocess, calibration)


def examined_parts(
    model_file: Path,
    inputs: tuple[TensorInfo, ...],
    outputs: tuple[TensorInfo, ...],
    labels: Path | None,
    preprocess: Path | None,
    calibration: Path | None,
) -> dict[str, bytes]:
    """As :func:`version_parts`, of a file that was read in another process: its tensors are known, no onnx is needed."""
    names = read_labels(labels) if labels else ()
    pipeline = read_preprocess(preprocess) if preprocess else None
    whole = SegmentInfo(artifact=WHOLE, inputs=inputs, outputs=outputs)
    try:
        manifest = Manifest(task="classification" if names else "raw", labels=names, preprocess=pipeline, whole=whole)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise field_error("labels" if names else "model", problem) from error
    parts = {WHOLE: model_file.read_bytes(), MANIFEST: manifest.to_json().encode()}
    if calibration is not None:
        from splitmesh.model.calibration import pack_calibration

        if pipeline is None and calibration.suffix.lower() != ".safetensors":
            raise field_error("calibration", "pictures need --preprocess to become inputs")
        with tempfile.TemporaryDirectory(prefix="splitmesh-import-") as spool:
            samples = read_samples(calibration, manifest, Path(spool))
            held = samples.tensors if samples.pictures is None else samples.pictures
            parts[CALIBRATION] = pack_calibration(held, labels=samples.labels, groups=samples.groups)
    return parts


def folder_parts(folder: Path) -> FolderParts:
    """The version that ``models pull`` or ``split`` wrote to ``folder``: every plain file in it, or those of its record.

    Raises:
        MeshError: FIELD_INVALID for a folder that holds something else; MODEL_CORRUPT for a manifest or a record that is
            damaged; MODEL_INCOMPLETE when a part is missing.
    """
    manifest = Manifest.from_json(_read(folder / MANIFEST, MAX_MANIFEST_BYTES))
    record = VersionRecord.from_json((folder / RECORD).read_bytes()) if (folder / RECORD).is_file() else None
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (record is not None and path.name not in record.artifacts):
            continue
        if path.is_symlink() or not path.is_file() or not PLAIN_NAME.fullmatch(path.name):
            raise field_error("model", f"{path} is no plain file, so no part of a version")
        files[path.name] = path
    if len(files) > MAX_FILES:
        raise field_error("model", f"{folder} holds {len(files)} files; a version has at most {MAX_FILES}")
    wanted = {MANIFEST, *manifest.artifacts(), *(record.artifacts if record is not None else ())}
    if missing := sorted(wanted - files.keys()):
        raise MeshError(
            Reason.MODEL_INCOMPLETE, f"{folder} lacks {', '.join(missing)}", metadata={"missing": missing[0]}
        )
    return FolderParts(files, manifest, record)


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


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)
