"""How an exit did on the hold-out of its calibration: the artefact ``calibration_outcomes.json``.

Written once by whoever fits an exit, read by whoever chooses its threshold. Holds two numbers per sample, never the
sample; the samples are ones the fit never saw, or the threshold's promise means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.errors import MeshError, Reason

MAX_OUTCOMES_BYTES = 64 * 1024 * 1024
"""A larger file is refused unread; a sample takes about 25 bytes."""

Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class CalibrationOutcomes(BaseModel):
    """Confidence and agreement of every hold-out sample, in no particular order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    n: int = Field(ge=0)
    """Hold-out samples."""
    confidences: tuple[Confidence | None, ...]
    """The exit's largest probability; null where it gave no distribution (such a sample always escalates)."""
    agrees: tuple[bool, ...]
    """Whether the exit's class is the whole model's."""
    seed: int
    """Of the division into fit, validation and hold-out."""

    @model_validator(mode="after")
    def _same_length(self) -> CalibrationOutcomes:
        if not self.n == len(self.confidences) == len(self.agrees):
            raise ValueError(
                f"n is {self.n}, but there are {len(self.confidences)} confidences and {len(self.agrees)} agreements"
            )
        return self

    @classmethod
    def of(
        cls,
        confidences: Sequence[float] | NDArray[np.float64],
        agrees: Sequence[bool] | NDArray[np.bool_],
        *,
        seed: int,
    ) -> CalibrationOutcomes:
        """From arrays; NaN becomes null."""
        values = tuple(None if np.isnan(value) else float(value) for value in confidences)
        return cls(n=len(values), confidences=values, agrees=tuple(bool(value) for value in agrees), seed=seed)

    def scores(self) -> NDArray[np.float64]:
        """``[n]``, NaN where there is no confidence: as ``threshold.choose_threshold`` takes it."""
        return np.array([np.nan if value is None else value for value in self.confidences], dtype=np.float64)

    def to_json(self) -> bytes:
        """The artefact; the same bytes for the same content."""
        return self.model_dump_json().encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> CalibrationOutcomes:
        """Read the artefact; MeshError MODEL_CORRUPT names the first problem."""
        if len(data) > MAX_OUTCOMES_BYTES:
            raise MeshError(
                Reason.MODEL_CORRUPT, f"the outcomes have {len(data)} bytes; at most {MAX_OUTCOMES_BYTES} are read"
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "outcomes"
            raise MeshError(
                Reason.MODEL_CORRUPT, f"the calibration outcomes are not valid: {where}: {first['msg']}"
            ) from error
