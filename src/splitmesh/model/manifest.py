"""What a model version consists of, as data: the segments, the cut, how it was verified, how a picture is prepared.

The manifest travels beside the artefacts and is all an edge head needs besides them: no onnx here, no torch. It knows
names, types, shapes and file names; digests and signatures of the files are the registry's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, model_validator

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.segments import (
    ArtifactName,
    Data,
    Hop,
    MiddleInfo,
    Quantisation,
    SegmentInfo,
    Share,
    SplitInfo,
    TensorInfo,
    Verification,
    names,
)

__all__ = [
    "CALIBRATION",
    "HEAD",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "OUTCOMES",
    "REPORT",
    "TAIL",
    "WHOLE",
    "ArtifactName",
    "ExitInfo",
    "Hop",
    "Manifest",
    "MiddleInfo",
    "Quantisation",
    "SegmentInfo",
    "SplitInfo",
    "TensorInfo",
    "Verification",
    "middle_name",
]

WHOLE = "model.onnx"
HEAD = "head.onnx"
TAIL = "tail.onnx"
MANIFEST = "manifest.json"
CALIBRATION = "calibration.safetensors"
OUTCOMES = "calibration_outcomes.json"
REPORT = "report.json"

MAX_MANIFEST_BYTES = 8 * 1024 * 1024
"""A larger manifest is refused unread; labels and per-channel scales of real models take kilobytes."""


def middle_name(segment: int) -> str:
    """The artefact of a chain's segment between head and tail; ``segment`` counts from 1."""
    return f"segment_{segment}.onnx"


class ExitInfo(Data):
    """The small classifier on the head's features."""

    output: str
    """The head's extra output: class probabilities ``[batch, classes]``."""
    temperature: float = Field(gt=0, allow_inf_nan=False)
    """What the logits were divided by before the softmax; already inside the head."""
    fit_samples: int = Field(ge=1)
    holdout_samples: int = Field(ge=0)
    holdout_agreement: Share
    """Share of hold-out samples where the exit's class is the full model's."""


class Manifest(Data):
    """One model version. See the field types for what each part promises."""

    schema_version: Literal[1] = 1
    task: Literal["classification", "raw"]
    """``raw``: outputs are returned as tensors, there are no labels."""
    labels: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    """How a picture becomes the input; None: callers send tensors."""
    whole: SegmentInfo
    split: SplitInfo | None = None
    exit: ExitInfo | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        self._check_labels()
        if self.split is not None:
            self._check_split(self.split)
        if self.exit is not None:
            if self.split is None:
                raise ValueError("an exit needs a split: it sits on the head's features")
            if self.task != "classification":
                raise ValueError("an exit needs task 'classification'")
        return self

    def _check_labels(self) -> None:
        if self.task == "raw":
            if self.labels:
                raise ValueError("task 'raw' has no labels")
            return
        if len(self.labels) < 2:
            raise ValueError(f"task 'classification' needs at least 2 labels, got {len(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels are equal")
        if not any(out.shape and out.shape[-1] in (-1, len(self.labels)) for out in self.whole.outputs):
            raise ValueError(f"no output of the model has {len(self.labels)} classes as its last dimension")

    def _check_split(self, split: SplitInfo) -> None:
        if names(split.head.inputs) != names(self.whole.inputs):
            raise ValueError("the head's inputs are not the whole model's")
        if names(split.tail.outputs) != names(self.whole.outputs):
            raise ValueError("the tail's outputs are not the whole model's")
        extra = names(split.head.outputs) - names(split.wire)
        expected = {self.exit.output} if self.exit else set()
        if extra != expected:
            raise ValueError(f"beside the wire the head produces {sorted(extra)}, the exit needs {sorted(expected)}")
        artifacts = [segment.artifact for segment in self.segments()]
        if len(set(artifacts)) != len(artifacts):
            raise ValueError(f"two segments share an artefact: {artifacts}")

    def segments(self) -> tuple[SegmentInfo, ...]:
        """The whole and, where it is split, every segment in order."""
        return (self.whole, *(self.split.segments() if self.split is not None else ()))

    @property
    def class_output(self) -> str:
        """The output that holds one score per label; empty for a model without classes."""
        for info in self.whole.outputs:
            if self.labels and info.shape and info.shape[-1] in (-1, len(self.labels)):
                return info.name
        return ""

    def to_json(self) -> str:
        """The manifest as indented JSON, the same text for the same content."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest; MeshError MODEL_CORRUPT names the first problem."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise MeshError(Reason.MODEL_CORRUPT, f"the manifest has {len(text)} bytes, more than {MAX_MANIFEST_BYTES}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise MeshError(
                Reason.MODEL_CORRUPT, f"the manifest is not valid: {where}: {first['msg']}", metadata={"field": where}
            ) from error
