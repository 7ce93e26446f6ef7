"""What kind of model a file or folder holds, by its content; a name decides only between formats that look alike."""

from __future__ import annotations

import zipfile
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from splitmesh.errors import MeshError, field_error

HEADER_BYTES = 16

_HDF5 = b"\x89HDF\r\n\x1a\n"
_TFLITE = b"TFL3"
_PICKLE = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

MAKE_A_PT2 = """\
  program = torch.export.export(model.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
  torch.export.save(program, "model.pt2")"""
"""For a model with one input; ``example`` holds two pictures, since a batch of one would be taken as fixed."""


class ModelFormat(StrEnum):
    """A format that can be imported."""

    ONNX = "onnx"
    PYTORCH = "pytorch"
    """An exported program saved by ``torch.export.save`` (.pt2)."""
    KERAS = "keras"
    """Keras 3 (.keras)."""
    KERAS_H5 = "keras_h5"
    """Keras before 3 (.h5, .hdf5)."""
    SAVED_MODEL = "saved_model"
    """TensorFlow's folder."""
    TFLITE = "tflite"

    @property
    def extra(self) -> str:
        """The extra of this package that converts it; empty: none is needed."""
        if self is ModelFormat.ONNX:
            return ""
        return "pytorch" if self is ModelFormat.PYTORCH else "tensorflow"


MODULES = {"pytorch": ("torch", "onnxscript"), "tensorflow": ("tensorflow", "tf2onnx")}
"""What each extra brings."""


def missing_module(model_format: ModelFormat) -> str | None:
    """The first module that converting this format needs and that is not installed."""
    wanted = MODULES.get(model_format.extra, ())
    return next((name for name in wanted if find_spec(name) is None), None)


def format_of(path: Path) -> ModelFormat:
    """The format at ``path``; MeshError FIELD_INVALID with the way out when it cannot be imported.

    What is nothing else is taken for ONNX, which has no mark of its own: its reader says what is wrong with it.
    """
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return ModelFormat.SAVED_MODEL
        raise _refused(path, "is a folder without saved_model.pb, so not a TensorFlow SavedModel")
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if head.startswith(_HDF5):
        return ModelFormat.KERAS_H5
    if head[4:8] == _TFLITE:
        return ModelFormat.TFLITE
    if head.startswith(_PICKLE):
        raise _pickled(path)
    if zipfile.is_zipfile(path):
        return _zipped(path)
    if path.name == "saved_model.pb":
        raise _refused(path, "is one file of a TensorFlow SavedModel; give its folder")
    return ModelFormat.ONNX


def _zipped(path: Path) -> ModelFormat:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise _refused(path, "is a damaged zip archive") from error
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner:
        return ModelFormat.PYTORCH
    if {"config.json", "metadata.json"} <= set(names):
        return ModelFormat.KERAS
    if "serialized_exported_program.json" in names:
        raise _refused(path, "was saved by a torch before 2.8; load it there and save it with a newer one")
    if "constants.pkl" in inner:
        raise _refused(path, f"is TorchScript, which torch has deprecated; export the model instead:\n{MAKE_A_PT2}")
    if "data.pkl" in inner:
        raise _pickled(path)
    raise _refused(path, "is a zip archive of no known kind of model")


def _pickled(path: Path) -> MeshError:
    return _refused(
        path,
        "is a pickle (torch.save): weights without a graph, or code that runs when it is read; "
        f"export the model instead:\n{MAKE_A_PT2}",
    )


def _refused(path: Path, problem: str) -> MeshError:
    return field_error("model", f"{path} {problem}")
