"""How exits did on the hold-out of their calibration: the artefact ``calibration_outcomes.json``.

Written once by whoever fits the exits, read by whoever chooses their threshold. Holds two numbers per sample and exit,
never the sample; the samples are ones the fit never saw, or the threshold's promise means nothing. A file of one exit is
written as ever: nothing in it says that there could be more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from splitmesh.errors import MeshError, Reason

MAX_OUTCOMES_BYTES = 64 * 1024 * 1024
"""A larger file is refused unread; a sample takes about 25 bytes an exit."""

Confidence = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ExitOutcomes(BaseModel):
    """Of one exit, in the order of the samples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    confidences: tuple[Confidence | None, ...]
    """As in :class:`CalibrationOutcomes`."""
    agrees: tuple[bool, ...]


class CalibrationOutcomes(BaseModel):
    """Confidence and agreement of every hold-out sample, in no particular order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    n: int = Field(ge=0)
    """Hold-out samples."""
    confidences: tuple[Confidence | None, ...]
    """Of the exit at the cut: its largest probability; null where it gave no distribution, or where a detector's exit says
    "something" (such a sample is not answered by it)."""
    agrees: tuple[bool, ...]
    """Whether the exit's class is the whole model's; for a detector: whether the whole model found nothing."""
    seed: int
    """Of the division into fit, validation and hold-out."""
    earlier: tuple[ExitOutcomes, ...] = ()
    """Of the exits before the cut, from the input on, for the same samples in the same order."""

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "earlier" or value}

    @model_validator(mode="after")
    def _same_length(self) -> CalibrationOutcomes:
        for entry in self._entries():
            if not self.n == len(entry.confidences) == len(entry.agrees):
                raise ValueError(
                    f"n is {self.n}, but there are {len(entry.confidences)} confidences and {len(entry.agrees)} "
                    "agreements of an exit"
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
        """From arrays ``[n]`` of one exit, or ``[n, exits]`` from the input on; NaN becomes null."""
        scores, agreed = np.asarray(confidences, dtype=np.float64), np.asarray(agrees, dtype=np.bool_)
        if scores.ndim == 1:
            scores, agreed = scores[:, None], agreed[:, None]
        *earlier, last = (
            ExitOutcomes(
                confidences=tuple(None if np.isnan(value) else float(value) for value in scores[:, exit_]),
                agrees=tuple(bool(value) for value in agreed[:, exit_]),
            )
            for exit_ in range(scores.shape[1])
        )
        return cls(n=len(scores), confidences=last.confidences, agrees=last.agrees, seed=seed, earlier=tuple(earlier))

    def _entries(self) -> tuple[ExitOutcomes | CalibrationOutcomes, ...]:
        return (*self.earlier, self)

    def scores(self) -> NDArray[np.float64]:
        """``[n]`` of the exit at the cut, NaN where there is no confidence."""
        return self.columns()[0][:, -1]

    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Confidences (NaN where there is none) and agreements of all exits from the input on, each ``[n, exits]``: what
        ``threshold.choose_threshold`` takes."""
        entries = self._entries()
        scores = [[np.nan if value is None else value for value in entry.confidences] for entry in entries]
        agrees = [entry.agrees for entry in entries]
        return np.array(scores, dtype=np.float64).T, np.array(agrees, dtype=np.bool_).T

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
