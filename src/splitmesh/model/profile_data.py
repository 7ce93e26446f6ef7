"""What a profile holds: how long a model and its pieces take on one host and how many bytes each cut puts on the wire.

Data only: ``profile.py`` measures it, ``plan.py`` reads it, anyone can store it as JSON. Times are milliseconds, sizes
bytes, both for one sample.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitmesh.errors import MeshError, Reason

FLOAT_CODEC = "float32+zstd"
"""The cut's tensors as they are, zstd."""

QUANTISED_CODEC = "uint8+zstd"
"""Float tensors rounded to 8 bits inside the graphs, zstd."""

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CutProfile(_Data):
    """One cut: the two pieces it makes and what crosses between them."""

    tensors: tuple[str, ...] = Field(min_length=1)
    position: float = Field(allow_inf_nan=False)
    """Where in the graph the cut lies, growing from the input to the output."""
    head_ms: Milliseconds
    """Median of the head as one fused session."""
    head_p90_ms: Milliseconds
    tail_ms: Milliseconds
    """Median of the tail as one fused session."""
    tail_p90_ms: Milliseconds
    measured: bool
    """False: the four times are interpolated between measured cuts."""
    head_bytes: Size
    """The head's operators and weights as a file."""
    raw_bytes: Size
    """The cut's tensors, uncompressed, as the model computes them."""
    wire_bytes: dict[str, Size] = Field(min_length=1)
    """By codec, mean over the samples."""
    encode_ms: dict[str, Milliseconds]
    """By codec: entropy coding only, as rounding to 8 bits is part of the head."""
    decode_ms: dict[str, Milliseconds]
    escalation: Share | None = None
    """Share of samples that an exit here would leave to the tail; None: no exit was tried here."""


class Profile(_Data):
    """A model's times and sizes on one host."""

    schema_version: Literal[1] = 1
    whole_ms: Milliseconds
    """Median of the whole model as one session."""
    whole_p90_ms: Milliseconds
    whole_bytes: Size
    """The serialised model."""
    cuts: tuple[CutProfile, ...]
    threads: int = Field(ge=1)
    repeats: int = Field(ge=1)
    """Timed runs behind each median, at most."""
    samples: int = Field(ge=1)
    """Different inputs behind the wire sizes."""
    calibration: Literal["random", "real"]
    """``random``: the inputs were noise, so wire sizes say little about pictures."""
    host: str
    """Processor, cores and runtime the times belong to."""

    def to_json(self) -> str:
        """The profile as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Profile:
        """Read a profile; MeshError FIELD_INVALID names every wrong field."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problems = [
                (".".join(str(part) for part in problem["loc"]) or "profile", problem["msg"])
                for problem in error.errors(include_url=False, include_context=False, include_input=False)
            ]
            raise MeshError(
                Reason.FIELD_INVALID,
                f"the profile is not valid: {problems[0][0]}: {problems[0][1]}",
                fields=problems,
            ) from error
