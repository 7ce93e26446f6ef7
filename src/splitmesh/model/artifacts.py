"""The files of a split model: making all of them at once, and writing them so that no reader sees half.

One function for the command line and the partition service alike. Knows nothing of registries, digests or signatures.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.chain import Chain, calibrate_chain, quantise_chain, segment_names, split_chain
from splitmesh.model.graph import Graph
from splitmesh.model.load import DEFAULT_LIMITS, ModelLimits, load_model
from splitmesh.model.manifest import (
    MANIFEST,
    WHOLE,
    Manifest,
    MiddleInfo,
    SegmentInfo,
    SplitInfo,
    TensorInfo,
    Verification,
)
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.verify import random_inputs, verify_chain
from splitmesh.tensor.spec import Array

RANDOM_BATCHES = (1, 2, 5)
"""Batch sizes compared when no inputs are given; a fixed batch in the model overrides them."""


def split_bytes(
    whole: bytes,
    at: Sequence[str],
    *,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    feeds: Sequence[Mapping[str, Array]] | None = None,
    limits: ModelLimits = DEFAULT_LIMITS,
    further: Sequence[Sequence[str]] = (),
) -> tuple[Manifest, dict[str, bytes]]:
    """Check a model, cut it at the tensors ``at``, verify the halves; the manifest and the artefacts by file name.

    With ``further`` cuts behind the first, in order, it becomes a chain of more segments than two.
    Compared on ``feeds`` (one batch each), or on random inputs when None. With ``labels`` the task is classification.
    The artefact of the whole is ``whole`` as given, byte for byte. Raises the MeshErrors of loading, cutting and
    verifying.
    """
    model = load_model(whole, limits)
    graph = Graph(model)
    _require_labels(graph, labels)
    chain = split_chain(graph, [at, *further])
    segments = chain.artifacts()
    if feeds is None:
        rng = np.random.default_rng(0)
        feeds = [random_inputs(graph, batch, rng) for batch in RANDOM_BATCHES]
    verification = verify_chain(whole, list(segments.values()), feeds)
    inputs, outputs = tensor_infos(graph, graph.inputs), tensor_infos(graph, graph.outputs)
    manifest = Manifest(
        task="classification" if labels else "raw",
        labels=tuple(labels),
        preprocess=preprocess,
        whole=SegmentInfo(artifact=WHOLE, inputs=inputs, outputs=outputs),
        split=_split_info(chain, inputs, outputs, verification),
    )
    return manifest, {WHOLE: whole, **segments}


def _split_info(
    chain: Chain, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], verification: Verification
) -> SplitInfo:
    cuts = [tuple(TensorInfo.of(spec) for spec in cut.specs) for cut in chain.cuts]
    head, *middle, tail = (
        SegmentInfo(artifact=name, inputs=before, outputs=after)
        for name, before, after in zip(
            segment_names(len(chain.segments)), (inputs, *cuts), (*cuts, outputs), strict=True
        )
    )
    return SplitInfo(
        cut=cuts[0],
        wire=cuts[0],
        head=head,
        middle=tuple(
            MiddleInfo(segment=segment, cut=cut, wire=cut) for segment, cut in zip(middle, cuts[1:], strict=True)
        ),
        tail=tail,
        verification=verification,
    )


def _require_labels(graph: Graph, labels: Sequence[str]) -> None:
    classes = [shape[-1].fixed for name in graph.outputs if (shape := graph.shape(name)) and shape[-1]]
    if labels and len(labels) not in classes:
        raise field_error("labels", f"{len(labels)} labels, but the outputs have {classes} classes")
    if len(set(labels)) != len(labels) or len(labels) == 1:
        raise field_error("labels", "give at least 2 labels, all different, or none")


def quantise_split(
    manifest: Manifest, artifacts: Mapping[str, bytes], feeds: Sequence[Mapping[str, Array]]
) -> tuple[Manifest, dict[str, bytes]]:
    """A split whose cuts cross as 8 bits, one scale per channel; ranges come from ``feeds``, typical inputs.

    The manifest's verification then says how far the segments are from the whole on these inputs; nothing is refused.
    MeshError MODEL_INCOMPLETE without a split, and what calibrating and quantising raise.
    """
    if manifest.split is None:
        raise MeshError(Reason.MODEL_INCOMPLETE, "there is no split to quantise")
    names = [segment.artifact for segment in manifest.split.segments()]
    segments = [artifacts[name] for name in names]
    models, rules = quantise_chain(segments, calibrate_chain(segments, feeds))
    made = {name: model.SerializeToString(deterministic=True) for name, model in zip(names, models, strict=True)}
    verification = verify_chain(artifacts[WHOLE], list(made.values()), feeds, None)
    split = manifest.split.rounded(rules).model_copy(update={"verification": verification})
    return manifest.model_copy(update={"split": split}), {**artifacts, **made}


def tensor_infos(graph: Graph, names: Sequence[str]) -> tuple[TensorInfo, ...]:
    """Tensors of a graph as data; MeshError MODEL_SHAPE_UNKNOWN when one has no inferred rank or type."""
    return tuple(TensorInfo.of(graph.require_spec(name)) for name in names)


def write_split(out_dir: str | os.PathLike[str], manifest: Manifest, artifacts: Mapping[str, bytes]) -> None:
    """Write the artefacts and then the manifest into ``out_dir``, which is made when absent.

    Everything is staged and synced beside its final place before the first file is replaced; an older manifest goes
    first and the new one comes last, so that a manifest, where there is one, always names complete files. Other files
    stay.
    """
    folder = Path(out_dir)
    for name in artifacts:
        if Path(name).name != name or name == MANIFEST:
            raise field_error("artifacts", f"{name!r} is not a plain file name of an artefact")
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".split-", dir=folder))
    try:
        for name, data in (*artifacts.items(), (MANIFEST, manifest.to_json().encode())):
            with open(staging / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        (folder / MANIFEST).unlink(missing_ok=True)
        for name in (*artifacts, MANIFEST):
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
