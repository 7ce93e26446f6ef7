"""What a model version consists of, as data: the segments, the cut, how it was verified, how a picture is prepared.

The manifest travels beside the artefacts and is all an edge head needs besides them: no onnx here, no torch. It knows
names, types, shapes and file names; digests and signatures of the files are the registry's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import Preprocess
from splitmesh.tensor.spec import DTYPES, MAX_RANK, TensorSpec

WHOLE = "model.onnx"
HEAD = "head.onnx"
TAIL = "tail.onnx"
MANIFEST = "manifest.json"
CALIBRATION = "calibration.safetensors"
OUTCOMES = "calibration_outcomes.json"
REPORT = "report.json"

MAX_MANIFEST_BYTES = 8 * 1024 * 1024
"""A larger manifest is refused unread; labels and per-channel scales of real models take kilobytes."""

ArtifactName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A plain file name: a manifest from outside must not choose a folder."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Model):
    """Name, element type and shape of one tensor; ``-1`` stands for a dimension that varies, as the batch does."""

    name: str = Field(min_length=1)
    dtype: str
    """One of ``splitmesh.tensor.DTYPES``."""
    shape: tuple[int, ...] = Field(max_length=MAX_RANK)

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
        return dtype

    @field_validator("shape")
    @classmethod
    def _positive_or_any(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if any(dim != -1 and dim < 1 for dim in shape):
            raise ValueError(f"shape {list(shape)} has a dimension that is neither -1 nor positive")
        return shape

    def spec(self) -> TensorSpec:
        """The same as a specification to compare tensors with."""
        return TensorSpec(self.name, self.dtype, self.shape)

    @classmethod
    def of(cls, spec: TensorSpec) -> TensorInfo:
        """The same as data."""
        return cls(name=spec.name, dtype=spec.dtype, shape=spec.shape)


class SegmentInfo(_Model):
    """One executable piece: its artefact and what goes in and out, in the model's order."""

    artifact: ArtifactName
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct_names(self) -> SegmentInfo:
        for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len(_names(tensors)) != len(tensors):
                raise ValueError(f"{self.artifact}: two {side} have the same name")
        return self


class Quantisation(_Model):
    """How one tensor of the cut is rounded to 8 bits: real = (q - zero_point) * scale, per tensor or along one axis."""

    tensor: str
    """The float tensor, as named in the head before rounding."""
    wire_tensor: str
    """The 8-bit tensor that crosses."""
    dtype: Literal["int8", "uint8"]
    axis: int | None = None
    """The axis the scales run along; None: one scale for the tensor."""
    scale: tuple[Finite, ...] = Field(min_length=1)
    zero_point: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Quantisation:
        if len(self.scale) != len(self.zero_point):
            raise ValueError(f"{self.tensor}: {len(self.scale)} scales but {len(self.zero_point)} zero points")
        if self.axis is None and len(self.scale) != 1:
            raise ValueError(f"{self.tensor}: {len(self.scale)} scales without an axis")
        if any(not value > 0 for value in self.scale):
            raise ValueError(f"{self.tensor}: a scale is not greater than 0")
        low, high = (-128, 127) if self.dtype == "int8" else (0, 255)
        if any(not low <= value <= high for value in self.zero_point):
            raise ValueError(f"{self.tensor}: a zero point is outside {low}..{high}")
        return self


class Verification(_Model):
    """How head and tail were compared with the whole model."""

    inputs: int = Field(ge=1)
    """Number of samples compared."""
    batch_sizes: tuple[int, ...] = Field(min_length=1)
    max_abs_error: float = Field(ge=0, allow_inf_nan=False)
    """Largest difference of any output element, as a share of the largest magnitude of that output."""
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What ``max_abs_error`` had to stay within; None: it was only reported (a lossy cut)."""
    top1_agreement: Share | None = None
    """Share of samples whose largest score is at the same class; None when the first output is not [batch, classes]."""


class SplitInfo(_Model):
    """A model cut in two."""

    cut: tuple[TensorInfo, ...] = Field(min_length=1)
    """The tensors of the original model where it is cut, per sample shapes with ``-1`` for the batch."""
    wire: tuple[TensorInfo, ...] = Field(min_length=1)
    """What really crosses: the cut after bottleneck and quantisation, in the head's output order."""
    head: SegmentInfo
    tail: SegmentInfo
    quantisation: tuple[Quantisation, ...] = ()
    verification: Verification

    @model_validator(mode="after")
    def _names_meet(self) -> SplitInfo:
        wire = {tensor.name: tensor for tensor in self.wire}
        if len(wire) != len(self.wire):
            raise ValueError("two wire tensors have the same name")
        if _names(self.tail.inputs) != wire.keys():
            raise ValueError(f"the tail takes {sorted(_names(self.tail.inputs))}, the wire carries {sorted(wire)}")
        if missing := wire.keys() - _names(self.head.outputs):
            raise ValueError(f"the head does not produce {sorted(missing)}")
        for entry in self.quantisation:
            if entry.wire_tensor not in wire:
                raise ValueError(f"quantised tensor {entry.wire_tensor!r} does not cross")
            if wire[entry.wire_tensor].dtype != entry.dtype:
                raise ValueError(f"{entry.wire_tensor!r} crosses as {wire[entry.wire_tensor].dtype}, not {entry.dtype}")
        return self

    def rounded(self, quantisation: tuple[Quantisation, ...], exit_output: TensorInfo | None = None) -> SplitInfo:
        """The same cut with these tensors crossing as 8 bits, and the head giving one more output when it has an exit."""
        rules = {entry.tensor: entry for entry in quantisation}
        wire = tuple(
            TensorInfo(name=rules[info.name].wire_tensor, dtype=rules[info.name].dtype, shape=info.shape)
            if info.name in rules
            else info
            for info in self.cut
        )
        outputs = wire if exit_output is None else (*wire, exit_output)
        return self.model_copy(
            update={
                "wire": wire,
                "head": self.head.model_copy(update={"outputs": outputs}),
                "tail": self.tail.model_copy(update={"inputs": wire}),
                "quantisation": quantisation,
            }
        )


class ExitInfo(_Model):
    """The small classifier on the head's features."""

    output: str
    """The head's extra output: class probabilities ``[batch, classes]``."""
    temperature: float = Field(gt=0, allow_inf_nan=False)
    """What the logits were divided by before the softmax; already inside the head."""
    fit_samples: int = Field(ge=1)
    holdout_samples: int = Field(ge=0)
    holdout_agreement: Share
    """Share of hold-out samples where the exit's class is the full model's."""


class Manifest(_Model):
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
        if _names(split.head.inputs) != _names(self.whole.inputs):
            raise ValueError("the head's inputs are not the whole model's")
        if _names(split.tail.outputs) != _names(self.whole.outputs):
            raise ValueError("the tail's outputs are not the whole model's")
        extra = _names(split.head.outputs) - _names(split.wire)
        expected = {self.exit.output} if self.exit else set()
        if extra != expected:
            raise ValueError(f"beside the wire the head produces {sorted(extra)}, the exit needs {sorted(expected)}")
        artifacts = [self.whole.artifact, split.head.artifact, split.tail.artifact]
        if len(set(artifacts)) != len(artifacts):
            raise ValueError(f"two segments share an artefact: {artifacts}")

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


def _names(tensors: Sequence[TensorInfo]) -> set[str]:
    return {tensor.name for tensor in tensors}
