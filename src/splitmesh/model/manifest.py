"""What a model version consists of, as data: the segments, the cut, how it was verified, how a picture is prepared.

The manifest travels beside the artefacts and is all an edge head needs besides them: no onnx here, no torch. It knows
names, types, shapes and file names; digests and signatures of the files are the registry's.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from splitmesh.errors import MeshError, Reason
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.segments import (
    ArtifactName,
    BottleneckInfo,
    Coding,
    Data,
    Hop,
    MiddleInfo,
    Quantisation,
    Rate,
    SegmentInfo,
    Share,
    SplitInfo,
    TensorInfo,
    Verification,
    names,
)

__all__ = [
    "CALIBRATION",
    "DEFERRAL",
    "HEAD",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "OUTCOMES",
    "PLAN",
    "REPORT",
    "TABLES",
    "TAIL",
    "UNUSUAL",
    "WHOLE",
    "ArtifactName",
    "BottleneckInfo",
    "Coding",
    "CutLeakage",
    "ExitInfo",
    "Finding",
    "Hop",
    "Manifest",
    "MiddleInfo",
    "Quantisation",
    "Rate",
    "SegmentInfo",
    "SplitInfo",
    "TensorInfo",
    "Verification",
    "middle_name",
    "stage_name",
]

WHOLE = "model.onnx"
HEAD = "head.onnx"
TAIL = "tail.onnx"
MANIFEST = "manifest.json"
CALIBRATION = "calibration.safetensors"
OUTCOMES = "calibration_outcomes.safetensors"
DEFERRAL = "deferral.safetensors"
UNUSUAL = "unusual.safetensors"
PLAN = "plan.json"
"""Of the plan that the version was cut by: ``plan_record.py``."""
REPORT = "report.json"
TABLES = "tables.safetensors"

MAX_MANIFEST_BYTES = 8 * 1024 * 1024
"""A larger manifest is refused unread; labels and per-channel scales of real models take kilobytes."""


def middle_name(segment: int) -> str:
    """The artefact of a chain's segment between head and tail; ``segment`` counts from 1."""
    return f"segment_{segment}.onnx"


def stage_name(stage: int) -> str:
    """The artefact of a stage of the head; ``stage`` counts from 1."""
    return f"head_{stage}.onnx"


class Finding(Data):
    """What a detector's exit tells apart: nothing found, or something. Only the first can be answered by it."""

    output: str
    """The model's output whose scores decide."""
    min_score: Share
    """A score from here on, at any place of the output, is something."""


class ExitInfo(Data):
    """A small classifier on the head's features."""

    output: str
    """An extra output: class probabilities ``[batch, classes]``; for a detector ``[batch, 2]``, nothing and something."""
    finding: Finding | None = None
    """For a detector; None: the exit names the model's classes."""
    logits: str | None = None
    """Another output, ``[batch, classes]`` before the softmax, the temperature applied; None: the head does not give it."""
    features: str | None = None
    """Another output, ``[batch, F]``: what the exit reads, pooled (``pooling.py``); only of the exit at the cut, or None."""
    temperature: float = Field(gt=0, allow_inf_nan=False)
    """What the logits were divided by before the softmax; already inside the head."""
    fit_samples: int = Field(ge=1)
    holdout_samples: int = Field(ge=0)
    holdout_agreement: Share
    """Share of hold-out samples where the exit's class is the full model's."""

    def outputs(self) -> tuple[str, ...]:
        """Everything that the head gives for it."""
        return tuple(name for name in (self.output, self.logits, self.features) if name is not None)

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written as ever for a classifier, so that heads that do not know findings go on reading.
        absent = {"finding", "logits", "features"}
        return {name: value for name, value in dump(self).items() if name not in absent or value is not None}


class CutLeakage(Data):
    """How well a decoder, trained for a fixed budget, rebuilt the picture from what crosses at one cut."""

    cut: tuple[str, ...] = Field(min_length=1)
    """Tensors of the model."""
    codec: Literal["float32", "int8", "bottleneck"]
    """What crosses: the tensors as computed, rounded to 8 bits, or the version's own bottleneck."""
    ssim: Share
    """Mean structural similarity of picture and reconstruction on samples that the decoder never saw."""
    psnr_db: float = Field(allow_inf_nan=False)
    """Mean peak signal to noise ratio."""
    baseline_ssim: Share
    """Of the mean picture, which tells nothing about a sample: what no leakage at all would look like."""
    samples: int = Field(ge=1)
    """Measured on."""
    fit_samples: int = Field(ge=1)
    steps: int = Field(ge=1)
    """Training steps of the decoder. A longer attack can only see more."""


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
    """At the cut."""
    earlier_exits: tuple[ExitInfo, ...] = ()
    """Before the cut, from the input on."""
    stages: tuple[SegmentInfo, ...] = ()
    """The head once more, in pieces that run one after the other: one ends at each earlier exit, the last at the cut. A
    head that runs them stops at the first exit that is sure; the pieces give together what the head gives."""
    leakage: tuple[CutLeakage, ...] = ()
    """Of the cuts where it was measured."""

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        absent = ("earlier_exits", "stages", "leakage")
        return {name: value for name, value in dump(self).items() if name not in absent or value}

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        self._check_labels()
        if self.split is not None:
            self._check_split(self.split)
        if self.exit is not None:
            if self.split is None:
                raise ValueError("an exit needs a split: it sits on the head's features")
            if (self.task != "classification") != (self.exit.finding is not None):
                raise ValueError("an exit needs task 'classification', or what a detector finds")
            if self.exit.finding is not None and self.exit.finding.output not in names(self.whole.outputs):
                raise ValueError(f"what is found shows in {self.exit.finding.output!r}, which the model does not give")
        self._check_stages()
        return self

    def exits(self) -> tuple[ExitInfo, ...]:
        """All, from the input on."""
        return (*self.earlier_exits, *((self.exit,) if self.exit is not None else ()))

    def _check_stages(self) -> None:
        if not self.earlier_exits and not self.stages:
            return
        if self.exit is None or len(self.stages) != len(self.earlier_exits) + 1:
            raise ValueError(
                f"{len(self.earlier_exits)} earlier exits need an exit at the cut and a stage each behind it"
            )
        exits = self.exits()
        outputs = [name for entry in exits for name in entry.outputs()]
        if len(set(outputs)) != len(outputs):
            raise ValueError("two exits have the same output")
        if len({entry.finding for entry in exits}) != 1:
            raise ValueError("the exits find different things")
        for stage, entry in zip(self.stages, exits, strict=True):
            if missing := set(entry.outputs()) - names(stage.outputs):
                raise ValueError(f"stage {stage.artifact} does not give its exit's outputs {sorted(missing)}")
        given = names(self.whole.inputs)
        for stage in self.stages:
            if missing := names(stage.inputs) - given:
                raise ValueError(f"stage {stage.artifact} takes {sorted(missing)}, which nothing before it gives")
            given |= names(stage.outputs)
        if self.split is not None and (missing := names(self.split.wire) - given):
            raise ValueError(f"the stages do not give {sorted(missing)}, which cross")

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
        expected = {name for entry in self.exits() for name in entry.outputs()}
        if extra != expected:
            raise ValueError(f"beside the wire the head produces {sorted(extra)}, the exit needs {sorted(expected)}")
        artifacts = self.artifacts()
        if len(set(artifacts)) != len(artifacts):
            raise ValueError(f"two parts share an artefact: {list(artifacts)}")

    def segments(self) -> tuple[SegmentInfo, ...]:
        """The whole and, where it is split, every segment in order, and the head's stages."""
        return (self.whole, *(self.split.segments() if self.split is not None else ()), *self.stages)

    def artifacts(self) -> tuple[str, ...]:
        """Names of all files that the version cannot run without."""
        coding = self.split.coding if self.split is not None else None
        return (*(segment.artifact for segment in self.segments()), *((coding.artifact,) if coding is not None else ()))

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
