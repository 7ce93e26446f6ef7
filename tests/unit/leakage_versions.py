"""Versions of the small model to measure leakage of: whole, cut, rounded, coded, and with a bottleneck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from splitmesh.compress.work import Context, Samples, Work
from splitmesh.model.artifacts import quantise_split, split_bytes
from splitmesh.model.bottleneck_graph import insert_bottleneck
from splitmesh.model.calibration import Calibration, pack_calibration, unpack_calibration
from splitmesh.model.manifest import (
    HEAD,
    TABLES,
    TAIL,
    WHOLE,
    BottleneckInfo,
    Coding,
    Manifest,
    Rate,
    SplitInfo,
    TensorInfo,
)
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import Tables
from tests.integration.small_model import CUT, LABELS, SIDE, small_manifest, small_model, small_pictures


def samples(count: int = 96, *, seed: int = 3) -> Samples:
    """Pictures of stripes, divided."""
    return Samples.divide(calibration(count), holdout_share=0.3, seed=seed)


def calibration(count: int = 96) -> Calibration:
    return unpack_calibration(pack_calibration(small_pictures(count)), small_manifest())


def context(folder: Path, held: Samples, told: list[tuple[str, float]] | None = None) -> Context:
    return Context(
        samples=held,
        original=small_model(),
        original_manifest=small_manifest(),
        folder=folder,
        progress=lambda step, share: told.append((step, share)) if told is not None else None,
    )


def whole() -> Work:
    return Work(small_manifest(), {WHOLE: small_model()})


def cut_at(*tensors: str, further: Sequence[Sequence[str]] = ()) -> Work:
    manifest, artifacts = split_bytes(
        small_model(), tensors, further=further, preprocess=small_manifest().preprocess, labels=LABELS
    )
    return Work(manifest, artifacts)


def rounded(*tensors: str) -> Work:
    work = cut_at(*tensors)
    manifest, artifacts = quantise_split(work.manifest, work.artifacts, [calibration().feeds(slice(0, 32))])
    return Work(manifest, artifacts)


def encoded(channels: int, *, step: int = 1) -> Work:
    """A bottleneck at the first cut: the first channels there, divided by nothing, with tables."""
    work = cut_at(CUT)
    pick = np.eye(8, dtype=np.float32)[:channels].reshape(channels, 8, 1, 1)
    encoder = _convolution(CUT, pick, "code")
    decoder = _convolution("code", np.ascontiguousarray(pick.transpose(1, 0, 2, 3)), "rebuilt")
    head, tail, rule = insert_bottleneck(
        onnx.load_from_string(work.artifacts[HEAD]),
        onnx.load_from_string(work.artifacts[TAIL]),
        CUT,
        encoder,
        decoder,
        0.01,
        0,
    )
    split = work.manifest.split
    assert split is not None
    wire = (TensorInfo(name=rule.wire_tensor, dtype="uint8", shape=(-1, channels, SIDE, SIDE)),)
    codes = open_session(head.SerializeToString()).run(calibration().feeds(slice(0, 32)))[rule.wire_tensor]
    tables = Tables.build([codes.astype(np.uint8)], [np.zeros(1, np.uint8)], [(channels, step)])
    made = SplitInfo(
        cut=split.cut,
        wire=wire,
        quantisation=(rule,),
        bottleneck=BottleneckInfo(method="closed-form", tensor=CUT, channels=channels),
        coding=Coding(
            artifact=TABLES,
            rates=(Rate(channels=channels, step=step, wire_bytes=40.4, agreement=0.97),),
            encode_ms=0.25,
            decode_ms=0.125,
            samples=28,
        ),
        head=split.head.model_copy(update={"outputs": wire}),
        tail=split.tail.model_copy(update={"inputs": wire}),
        verification=split.verification,
    )
    manifest = Manifest.from_json(work.manifest.model_copy(update={"split": made}).to_json())
    parts = {HEAD: head.SerializeToString(), TAIL: tail.SerializeToString(), TABLES: tables.to_bytes()}
    return Work(manifest, {**work.artifacts, **parts})


def blobs(count: int, side: int = 32, channels: int = 1, *, seed: int = 0) -> NDArray[np.uint8]:
    """Pictures with a bright spot somewhere, uint8 ``[n, side, side, channels]``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    places = rng.uniform(0.2 * side, 0.8 * side, (count, channels, 2))
    found = [
        np.stack([200 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / side) for y, x in place], axis=-1)
        for place in places
    ]
    return np.clip(np.stack(found) + rng.normal(30, 3, (count, side, side, channels)), 0, 255).astype(np.uint8)


Heads = Callable[[NDArray[np.int64]], list[NDArray[np.float32]]]


def _convolution(source: str, weights: NDArray[np.float32], result: str) -> onnx.ModelProto:
    outputs, inputs = weights.shape[:2]
    graph = helper.make_graph(
        [helper.make_node("Conv", [source, "w"], [result])],
        "coder",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["batch", inputs, SIDE, SIDE])],
        [helper.make_tensor_value_info(result, TensorProto.FLOAT, ["batch", outputs, SIDE, SIDE])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
