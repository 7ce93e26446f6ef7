"""Segments, the cuts between them and how a split was verified, as data: the vocabulary of a manifest.

Knows names, types, shapes and file names of segments; the version around them is ``manifest.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from splitmesh.tensor.spec import DTYPES, MAX_RANK, TensorSpec

ArtifactName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A plain file name: a manifest from outside must not choose a folder."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Data(BaseModel):
    """Unknown fields are refused; nothing changes after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(Data):
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


class SegmentInfo(Data):
    """One executable piece: its artefact and what goes in and out, in the model's order."""

    artifact: ArtifactName
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinctnames(self) -> SegmentInfo:
        for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len(names(tensors)) != len(tensors):
                raise ValueError(f"{self.artifact}: two {side} have the same name")
        return self


class Quantisation(Data):
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


class Verification(Data):
    """How the segments, one after the other, were compared with the whole model."""

    inputs: int = Field(ge=1)
    """Number of samples compared."""
    batch_sizes: tuple[int, ...] = Field(min_length=1)
    max_abs_error: float = Field(ge=0, allow_inf_nan=False)
    """Largest difference of any output element, as a share of the largest magnitude of that output."""
    tolerance: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """What ``max_abs_error`` had to stay within; None: it was only reported (a lossy cut)."""
    top1_agreement: Share | None = None
    """Share of samples whose largest score is at the same class; None when the first output is not [batch, classes]."""


class Rate(Data):
    """One of the sizes at which a rounded cut can cross, and what it costs in answers."""

    channels: int = Field(ge=1)
    """Channels of every coded tensor that cross, the first ones; the others are taken to be at their zero point."""
    step: int = Field(ge=1, le=128)
    """A power of two: 8-bit values are rounded to multiples of it away from the zero point; 1: as they are."""
    wire_bytes: float = Field(ge=0, allow_inf_nan=False)
    """Mean of one sample on the hold-out."""
    agreement: Share | None = None
    """Share of hold-out samples where head + tail name the whole's class; None for a model without classes."""
    output_error: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """For a model without classes: root mean square of the outputs' difference, as a share of the outputs'."""

    @field_validator("step")
    @classmethod
    def _power_of_two(cls, step: int) -> int:
        if step & (step - 1):
            raise ValueError(f"step {step} is no power of two")
        return step


class Coding(Data):
    """How the rounded tensors of a hop are entropy coded."""

    artifact: ArtifactName
    """Holds the integer tables, see ``splitmesh.tensor.entropy``."""
    rates: tuple[Rate, ...] = Field(min_length=1, max_length=8)
    """Best first; a frame names its rate by its number here."""
    encode_ms: float = Field(ge=0, allow_inf_nan=False)
    """Entropy coding of one sample at the best rate, on the node that made the version."""
    decode_ms: float = Field(ge=0, allow_inf_nan=False)
    samples: int = Field(ge=1)
    """Hold-out samples behind the rates' figures."""

    @model_validator(mode="after")
    def _best_first(self) -> Coding:
        sizes = [rate.wire_bytes for rate in self.rates]
        if sizes != sorted(sizes, reverse=True):
            raise ValueError(f"rates of {sizes} bytes are not in order, the largest first")
        return self


class BottleneckInfo(Data):
    """The encoder at the head's end and the decoder at the tail's start."""

    method: Literal["closed-form", "trained"]
    tensor: str
    """Of the original model, rebuilt at the tail's start."""
    channels: int = Field(ge=1)
    """Of the code that crosses."""


class Hop(Data):
    """One cut and what crosses there, from a segment to the next."""

    cut: tuple[TensorInfo, ...] = Field(min_length=1)
    """The tensors of the original model where it is cut, per sample shapes with ``-1`` for the batch."""
    wire: tuple[TensorInfo, ...] = Field(min_length=1)
    """What really crosses: the cut after bottleneck and quantisation, in the sender's output order."""
    quantisation: tuple[Quantisation, ...] = ()
    bottleneck: BottleneckInfo | None = None
    coding: Coding | None = None
    """None: the tensors cross packed by a general codec."""

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written as ever where there is none of it, so that heads that do not know it go on reading.
        absent: dict[str, object] = {"middle": [], "bottleneck": None, "coding": None}
        return {
            name: value for name, value in dump(self).items() if name not in absent or value not in (absent[name], ())
        }

    @model_validator(mode="after")
    def _wire_is_consistent(self) -> Hop:
        wire = {tensor.name: tensor for tensor in self.wire}
        if len(wire) != len(self.wire):
            raise ValueError("two wire tensors have the same name")
        for entry in self.quantisation:
            if entry.wire_tensor not in wire:
                raise ValueError(f"quantised tensor {entry.wire_tensor!r} does not cross")
            if wire[entry.wire_tensor].dtype != entry.dtype:
                raise ValueError(f"{entry.wire_tensor!r} crosses as {wire[entry.wire_tensor].dtype}, not {entry.dtype}")
        if self.coding is not None and not all(tensor.dtype == "uint8" for tensor in self.wire):
            raise ValueError("a coded hop carries tensors that are not uint8")
        return self

    def rounded_wire(self, quantisation: Sequence[Quantisation]) -> tuple[TensorInfo, ...]:
        """What crosses when these tensors of the cut are rounded to 8 bits."""
        rules = {entry.tensor: entry for entry in quantisation}
        return tuple(
            TensorInfo(name=rules[info.name].wire_tensor, dtype=rules[info.name].dtype, shape=info.shape)
            if info.name in rules
            else info
            for info in self.cut
        )


class MiddleInfo(Hop):
    """A segment between head and tail, and the cut behind it."""

    segment: SegmentInfo


class SplitInfo(Hop):
    """A model cut into a chain of segments: head, perhaps some in the middle, tail. The cut stated here is the head's."""

    head: SegmentInfo
    middle: tuple[MiddleInfo, ...] = ()
    """In order; empty for a model cut in two."""
    tail: SegmentInfo
    verification: Verification

    def segments(self) -> tuple[SegmentInfo, ...]:
        """Every segment, in order; the index is the segment's number, the head's is 0."""
        return (self.head, *(entry.segment for entry in self.middle), self.tail)

    def hops(self) -> tuple[Hop, ...]:
        """Every cut, in order; entry k leads from segment k to k + 1."""
        return (self, *self.middle)

    @property
    def cuts(self) -> tuple[tuple[str, ...], ...]:
        """Names of the tensors of every cut, in order."""
        return tuple(tuple(tensor.name for tensor in hop.cut) for hop in self.hops())

    @model_validator(mode="after")
    def _names_meet(self) -> SplitInfo:
        segments = self.segments()
        for number, hop in enumerate(self.hops()):
            wire, sender, taker = names(hop.wire), segments[number], segments[number + 1]
            if names(taker.inputs) != wire:
                raise ValueError(
                    f"{taker.artifact} takes {sorted(names(taker.inputs))}, the wire carries {sorted(wire)}"
                )
            if missing := wire - names(sender.outputs):
                raise ValueError(f"{sender.artifact} does not produce {sorted(missing)}")
            if number and (extra := names(sender.outputs) - wire):
                raise ValueError(
                    f"{sender.artifact} produces {sorted(extra)} beside the wire; only a head may, for its exit"
                )
        return self

    def rounded(
        self, quantisation: Sequence[tuple[Quantisation, ...]], exit_output: TensorInfo | None = None
    ) -> SplitInfo:
        """The same cuts with these tensors crossing as 8 bits, one entry per hop; with ``exit_output`` the head gives it
        too."""
        wires = [hop.rounded_wire(rules) for hop, rules in zip(self.hops(), quantisation, strict=True)]
        middle = tuple(
            entry.model_copy(
                update={
                    "wire": after,
                    "quantisation": rules,
                    "segment": entry.segment.model_copy(update={"inputs": before, "outputs": after}),
                }
            )
            for entry, before, after, rules in zip(self.middle, wires[:-1], wires[1:], quantisation[1:], strict=True)
        )
        outputs = wires[0] if exit_output is None else (*wires[0], exit_output)
        return self.model_copy(
            update={
                "wire": wires[0],
                "head": self.head.model_copy(update={"outputs": outputs}),
                "middle": middle,
                "tail": self.tail.model_copy(update={"inputs": wires[-1]}),
                "quantisation": quantisation[0],
            }
        )


def names(tensors: Sequence[TensorInfo]) -> set[str]:
    """Of tensors."""
    return {tensor.name for tensor in tensors}
