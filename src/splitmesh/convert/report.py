"""What became of a model that was to be imported, as a value: whether it can be, how faithful it is, all that is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitmesh.convert.compare import Comparison
from splitmesh.convert.formats import ModelFormat
from splitmesh.errors import MeshError
from splitmesh.model.segments import TensorInfo
from splitmesh.model.unsupported import Unsupported

_KINDS: Mapping[str, str] = {
    ModelFormat.ONNX: "ONNX model",
    ModelFormat.PYTORCH: "PyTorch exported program",
    ModelFormat.KERAS: "Keras model",
    ModelFormat.KERAS_H5: "Keras model (HDF5)",
    ModelFormat.SAVED_MODEL: "TensorFlow SavedModel",
    ModelFormat.TFLITE: "TFLite model",
}


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Of one file or folder."""

    source: str
    format: str
    """See :class:`splitmesh.convert.formats.ModelFormat`; empty: it could not be told."""
    converter: str = ""
    """What read the original, with versions; empty: it was ONNX already, or was not read."""
    size_bytes: int = 0
    """Of the ONNX file; 0: there is none."""
    operators: Mapping[str, int] = field(default_factory=dict)
    """Of the ONNX file, with how often each occurs."""
    opset: int = 0
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    comparison: Comparison | None = None
    """With the original on random inputs; None: nothing was converted, or not so far."""
    notes: tuple[str, ...] = ()
    unsupported: tuple[Unsupported, ...] = ()
    """Everything that is in the way, as far as can be told; empty where the model is accepted."""
    refusal: MeshError | None = None
    """Why it cannot be imported; None: it can."""

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return self.converter or _KINDS.get(self.format, self.format) or "unknown format"

    @property
    def accepted(self) -> bool:
        """Whether the model can be registered."""
        return self.refusal is None
