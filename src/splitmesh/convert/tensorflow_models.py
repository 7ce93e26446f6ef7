"""Keras, TensorFlow SavedModels and TFLite to ONNX, through tf2onnx.

Pictures stay as TensorFlow has them, ``[batch, height, width, channels]``, unless channels first are asked for.
"""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitmesh.convert.compare import Comparison, Original, compare
from splitmesh.convert.formats import ModelFormat
from splitmesh.convert.tensorflow_parts import reaching_out, unsupported_nodes
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.unsupported import Unsupported
from splitmesh.tensor.spec import DTYPES, Array, TensorSpec

# Before TensorFlow is imported: no GPU is looked for, and only its errors are logged.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import keras
import tensorflow as tf
import tf2onnx

OPSET = 17
TRIED_BATCHES = (1, 3)
SIGNATURE = "serving_default"

REACHES_OUT = re.compile(r"PyFunc|File(?!name)|Reader|Record|Dataset|Summary|Print|Lookup.*Asset")
"""Operators of a SavedModel that run Python or touch other files; TensorFlow would run them when it loads or calls the model.
Those that save and restore variables stay: every SavedModel has them."""

PICTURE_RANK = 4


def convert(
    source: Path,
    model_format: ModelFormat,
    target: Path,
    tolerance: float,
    channels_first: bool,
    unsupported: list[Unsupported],
) -> tuple[str, Comparison, tuple[str, ...]]:
    """Write ``source`` as ONNX to ``target``: what it was, the comparison, and notes for people.

    ``unsupported`` gets the operators that tf2onnx has no translation for.

    Raises MeshError MODEL_OPERATOR_UNSUPPORTED, MODEL_SHAPE_UNKNOWN, or FIELD_INVALID when the two differ.
    """
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="splitmesh-convert-") as scratch:
        warnings.simplefilter("ignore")
        with unsupported_nodes(unsupported):
            inputs, original, proto = _translated(source, model_format, Path(scratch), channels_first, unsupported)
        target.write_bytes(proto.SerializeToString())
        _require_none(unsupported)
        pictures = [spec.name for spec in inputs if len(spec.shape) == PICTURE_RANK]
        if channels_first and not pictures:
            raise field_error("channels_first", "no input has four dimensions")
        shown = [_turned(spec) if channels_first and spec.name in pictures else spec for spec in inputs]
        asked = _turning_back(original, pictures) if channels_first else original
        varies = any(spec.shape[:1] == (-1,) for spec in inputs)
        comparison = compare(asked, target, shown, TRIED_BATCHES if varies else (_fixed_batch(inputs),), tolerance)
    return _what(model_format), comparison, tuple(_notes(shown, pictures, channels_first, varies))


def _translated(
    source: Path, model_format: ModelFormat, scratch: Path, channels_first: bool, unsupported: list[Unsupported]
) -> tuple[list[TensorSpec], Original, Any]:
    if model_format is ModelFormat.TFLITE:
        return _tflite(source, channels_first)
    folder = source
    if model_format is not ModelFormat.SAVED_MODEL:
        folder = scratch / "saved_model"
        _keras(source, model_format).export(str(folder))
    _require_harmless(folder, unsupported)
    return _saved_model(folder, channels_first)


def _require_none(found: Sequence[Unsupported]) -> None:
    """tf2onnx writes a file all the same, with the operators that it does not know left in it."""
    if found:
        names = ", ".join(one.name for one in found[:20])
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"tf2onnx has no translation for: {names}")


def _keras(source: Path, model_format: ModelFormat) -> Any:
    # Keras goes by the suffix.
    suffix = ".keras" if model_format is ModelFormat.KERAS else ".h5"
    with tempfile.TemporaryDirectory(prefix="splitmesh-convert-") as scratch:
        named = Path(scratch, f"model{suffix}")
        named.symlink_to(source.resolve())
        return keras.saving.load_model(named, compile=False, safe_mode=True)


def _saved_model(folder: Path, channels_first: bool) -> tuple[list[TensorSpec], Original, Any]:
    loaded = tf.saved_model.load(str(folder))
    if SIGNATURE not in loaded.signatures:
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED,
            f"{folder} has no signature {SIGNATURE!r}; it has: {', '.join(sorted(loaded.signatures)) or 'none'}",
        )
    signature = loaded.signatures[SIGNATURE]
    wanted = signature.structured_input_signature[1]
    inputs = [_spec(name, spec.dtype, spec.shape) for name, spec in wanted.items()]
    outputs = list(signature.structured_outputs)
    types = [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in wanted.items()]

    @tf.function(input_signature=types)  # type: ignore[untyped-decorator]
    def call(*tensors: Any) -> dict[str, Any]:
        return dict(signature(**dict(zip(wanted, tensors, strict=True))))

    turned = [spec.name for spec in inputs if len(spec.shape) == PICTURE_RANK] if channels_first else None
    proto, _ = tf2onnx.convert.from_function(call, types, opset=OPSET, inputs_as_nchw=turned)

    def run(feed: Mapping[str, Array]) -> list[Array]:
        answer = signature(**{name: tf.constant(array) for name, array in feed.items()})
        return [answer[name].numpy() for name in outputs]

    names = [output.name for output in proto.graph.output]
    if sorted(names) != sorted(outputs):
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"tf2onnx named the outputs {names} instead of {outputs}")
    outputs.sort(key=names.index)
    return inputs, run, proto


def _tflite(source: Path, channels_first: bool) -> tuple[list[TensorSpec], Original, Any]:
    interpreter = tf.lite.Interpreter(model_path=str(source))
    details = interpreter.get_input_details()
    inputs = [_spec(one["name"], tf.as_dtype(one["dtype"]), one["shape_signature"]) for one in details]
    turned = [spec.name for spec in inputs if len(spec.shape) == PICTURE_RANK] if channels_first else None
    proto, _ = tf2onnx.convert.from_tflite(str(source), opset=OPSET, inputs_as_nchw=turned)
    names = [output.name for output in proto.graph.output]
    index = {one["name"]: one["index"] for one in interpreter.get_output_details()}

    def run(feed: Mapping[str, Array]) -> list[Array]:
        for one in details:
            interpreter.resize_tensor_input(one["index"], feed[one["name"]].shape)
        interpreter.allocate_tensors()
        for one in details:
            interpreter.set_tensor(one["index"], feed[one["name"]])
        interpreter.invoke()
        return [interpreter.get_tensor(index[name]) for name in names]

    return inputs, run, proto


def _require_harmless(folder: Path, unsupported: list[Unsupported]) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    found: dict[str, list[str]] = {}
    for graph in (meta.graph_def for meta in model.meta_graphs):
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            for node in nodes:
                if REACHES_OUT.search(node.op):
                    found.setdefault(node.op, []).append(node.name)
    unsupported += [reaching_out(kind, names) for kind, names in found.items()]
    if found:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"{folder} holds the operator {', '.join(sorted(found))}")


def _spec(name: str, dtype: Any, shape: Any) -> TensorSpec:
    if dtype.name not in DTYPES:
        raise MeshError(Reason.MODEL_OPERATOR_UNSUPPORTED, f"input {name!r} has element type {dtype.name}")
    return TensorSpec(name, dtype.name, tuple(-1 if dim is None else int(dim) for dim in shape))


def _turned(spec: TensorSpec) -> TensorSpec:
    batch, height, width, channels = spec.shape
    return TensorSpec(spec.name, spec.dtype, (batch, channels, height, width))


def _turning_back(original: Original, pictures: Sequence[str]) -> Original:
    def run(feed: Mapping[str, Array]) -> Sequence[Array]:
        return original(
            {
                name: np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if name in pictures else array
                for name, array in feed.items()
            }
        )

    return run


def _fixed_batch(inputs: Sequence[TensorSpec]) -> int:
    return inputs[0].shape[0] if inputs[0].shape else 1


def _notes(inputs: Sequence[TensorSpec], pictures: Sequence[str], channels_first: bool, varies: bool) -> list[str]:
    notes = []
    for spec in inputs:
        if spec.name in pictures:
            order = "channels first" if channels_first else "channels last; --channels-first turns it for --preprocess"
            notes.append(f"input {spec.name!r} is {list(spec.shape)}, {order}")
    if not varies:
        notes.append(f"its batch stays fixed at {_fixed_batch(inputs)}")
    return notes


def _what(model_format: ModelFormat) -> str:
    version = f"TensorFlow {tf.__version__}, tf2onnx {tf2onnx.__version__}"
    names = {
        ModelFormat.KERAS: f"Keras {keras.__version__} model",
        ModelFormat.KERAS_H5: f"Keras {keras.__version__} model (HDF5)",
        ModelFormat.SAVED_MODEL: "TensorFlow SavedModel",
        ModelFormat.TFLITE: "TFLite model",
    }
    return f"{names[model_format]} ({version})"
