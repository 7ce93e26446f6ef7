"""What a compression did, as data: the artefact ``report.json`` and the answer of GetReport."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitmesh.errors import MeshError, Reason

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Bytes = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Report(BaseModel):
    """Measured on the hold-out: calibration samples that neither the ranges nor the exit were made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    wire_bytes_before: Bytes
    """Mean of one sample: the cut as float32, zstd."""
    wire_bytes_after: Bytes
    """Mean of one sample: what crosses now, zstd."""
    tail_agreement: Share | None
    """Share of samples where head + tail name the whole model's class; None for a model without classes."""
    exit_agreement: Share | None
    """Share of samples where the exit names the whole model's class; None without an exit."""
    holdout_samples: int = Field(ge=1)
    fit_samples: int = Field(ge=0)
    """Samples the exit's weights were fitted to; without an exit those the ranges were taken from."""
    head_size_bytes: int = Field(ge=1)
    tail_size_bytes: int = Field(ge=1)

    def to_json(self) -> bytes:
        """The artefact."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read the artefact; MeshError MODEL_CORRUPT when it is not one."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise MeshError(Reason.MODEL_CORRUPT, "the version's report cannot be read") from error
