"""A model of one idea, how bright is the picture, as every kind of version a head can meet; and the right answers.

The whole model says dark below .3, grey, bright above .7 of full brightness. The exit was made to differ from it: it puts
its borders at .4 and .8 and is unsure near them. So on a hard picture (brightness .35) the exit says *dark* with little
confidence and the whole model says *grey* with much: who answered can be read from the answer.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from splitmesh.model.artifacts import split_bytes
from splitmesh.model.classes import as_probabilities
from splitmesh.model.manifest import (
    HEAD,
    MANIFEST,
    OUTCOMES,
    WHOLE,
    ExitInfo,
    Manifest,
    SegmentInfo,
    TensorInfo,
)
from splitmesh.model.preprocess import Preprocess
from tests.support.outcomes import outcomes_of

LABELS = ("dark", "grey", "bright")
OTHER_LABELS = ("dark-2", "grey-2", "bright-2")
"""Of a later version, so that its answers show who gave them."""
CUT = "features"
SECOND_CUT = "means"
"""Where a chain of three segments is cut again."""
EXIT_OUTPUT = "exit_probabilities"
SIDE = 16

EASY, HARD = 0.05, 0.35
"""Brightness of a picture that the exit is sure of (.999), and of one that it is not (.73)."""
EASY_LABEL, HARD_LABEL, HARD_EXIT_LABEL = "dark", "grey", "dark"
_EXIT_BORDERS, _EXIT_SLOPE = (0.4, 0.8), 20.0
_WHOLE_BORDERS, _WHOLE_SLOPE = (0.3, 0.7), 60.0


def whole_model(side: int = SIDE, *, noise: float = 0.0) -> bytes:
    """A convolution that copies the picture and halves it, their means, a linear classifier."""
    copies = np.array([1.0, 0.5], dtype=np.float32).reshape(2, 1, 1, 1)
    weight, bias = _bands(_WHOLE_BORDERS, _WHOLE_SLOPE)
    nodes = [
        helper.make_node("Conv", ["image", "copies"], ["copied"]),
        helper.make_node("Relu", ["copied"], [CUT]),
        helper.make_node("GlobalAveragePool", [CUT], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    weights = {"copies": copies, "weight": weight, "bias": bias + np.float32(noise)}
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def whole_version(side: int = SIDE, labels: tuple[str, ...] = LABELS) -> dict[str, bytes]:
    """The artefacts of a version that is not split."""
    manifest = Manifest(
        task="classification",
        labels=labels,
        preprocess=_preprocess(side),
        whole=SegmentInfo(
            artifact=WHOLE,
            inputs=(TensorInfo(name="image", dtype="float32", shape=(-1, 1, side, side)),),
            outputs=(TensorInfo(name="logits", dtype="float32", shape=(-1, 3)),),
        ),
    )
    return {WHOLE: whole_model(side), MANIFEST: manifest.to_json().encode()}


def split_version(
    side: int = SIDE, labels: tuple[str, ...] = LABELS, further: Sequence[Sequence[str]] = ()
) -> dict[str, bytes]:
    """The artefacts of a split version without an exit; with ``further`` cuts, of a chain."""
    manifest, artifacts = split_bytes(
        whole_model(side), [CUT], further=further, preprocess=_preprocess(side), labels=labels
    )
    return {**artifacts, MANIFEST: manifest.to_json().encode()}


def exit_version(
    side: int = SIDE, labels: tuple[str, ...] = LABELS, further: Sequence[Sequence[str]] = ()
) -> dict[str, bytes]:
    """The artefacts of a split version whose head has an exit, with outcomes to choose its threshold by.

    With the default tolerance (2 %) the threshold lies between the confidences of HARD and EASY; with a tolerance of
    40 % below both.
    """
    manifest, artifacts = split_bytes(
        whole_model(side), [CUT], further=further, preprocess=_preprocess(side), labels=labels
    )
    assert manifest.split is not None
    exit_info = TensorInfo(name=EXIT_OUTPUT, dtype="float32", shape=(-1, 3))
    head = manifest.split.head.model_copy(update={"outputs": (*manifest.split.head.outputs, exit_info)})
    manifest = Manifest.model_validate(
        manifest.model_copy(
            update={
                "split": manifest.split.model_copy(update={"head": head}),
                "exit": ExitInfo(
                    output=EXIT_OUTPUT, temperature=1.0, fit_samples=100, holdout_samples=2000, holdout_agreement=0.75
                ),
            }
        ).model_dump()
    )
    # Confidence, and whether the whole model says the same, of 2,000 calibration samples.
    measured = [(0.99, True)] * 1000 + [(0.8, False)] * 500 + [(0.6, True)] * 500
    outcomes = outcomes_of([score for score, _ in measured], [agrees for _, agrees in measured], classes=3)
    return {
        **artifacts,
        HEAD: _with_exit(artifacts[HEAD]),
        MANIFEST: manifest.to_json().encode(),
        OUTCOMES: outcomes.to_bytes(),
    }


def _with_exit(head: bytes) -> bytes:
    model = onnx.load_model_from_string(head)
    weight, bias = _bands(_EXIT_BORDERS, _EXIT_SLOPE)
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", [CUT], ["exit/means"]),
            helper.make_node("Flatten", ["exit/means"], ["exit/flat"]),
            helper.make_node("Gemm", ["exit/flat", "exit/weight", "exit/bias"], ["exit/logits"]),
            helper.make_node("Softmax", ["exit/logits"], [EXIT_OUTPUT], axis=1),
        ]
    )
    model.graph.initializer.extend(
        [numpy_helper.from_array(weight, "exit/weight"), numpy_helper.from_array(bias, "exit/bias")]
    )
    model.graph.output.append(helper.make_tensor_value_info(EXIT_OUTPUT, TensorProto.FLOAT, ["batch", 3]))
    return model.SerializeToString()


def _bands(borders: tuple[float, float], slope: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights and bias by which class k is the largest between border k and the next, of the first channel's mean."""
    weight = np.zeros((2, 3), dtype=np.float32)
    weight[0] = (0, slope, 2 * slope)
    bias = np.array([0, -slope * borders[0], -slope * sum(borders)], dtype=np.float32)
    return weight, bias


def _preprocess(side: int) -> Preprocess:
    return Preprocess(width=side, height=side, mode="L")


def picture(brightness: float, *, side: int = SIDE, kind: str = "PNG") -> bytes:
    """A grey picture, encoded; brightness from 0 to 1."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side), round(brightness * 255), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def features(brightness: float, *, side: int = SIDE) -> NDArray[np.float32]:
    """What the head makes of :func:`picture`."""
    plane = np.full((1, 1, side, side), round(brightness * 255) / 255, dtype=np.float32)
    return np.concatenate([plane, plane / 2], axis=1)


def expected_scores(image: bytes, *, side: int = SIDE) -> NDArray[np.float64]:
    """The whole model's probabilities, computed by onnxruntime alone."""
    session = ort.InferenceSession(whole_model(side), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": _preprocess(side).batch([image])})
    row: NDArray[np.float64] = as_probabilities(logits)[0]
    return row
