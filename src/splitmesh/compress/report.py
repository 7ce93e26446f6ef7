"""What a recipe did, as data: the artefact ``report.json``, the answer of GetReport, and what the HTML page draws.

Every share stands beside its number of samples and a 95 % interval (Clopper-Pearson). All figures are of the hold-out:
samples that neither a weight, a range, a table nor a choice came from. Holds no picture.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitmesh.compress.recipe import Budget
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import CutLeakage

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

CONFIDENCE = 0.95


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Proportion(_Data):
    """A share of samples with its interval."""

    share: Share
    low: Share
    high: Share
    n: int = Field(ge=1)

    @classmethod
    def of(cls, events: int, n: int) -> Proportion:
        """``events`` of ``n``, with the exact binomial interval of Clopper and Pearson (1934)."""
        from scipy.stats import beta  # not in the base install, which reads reports but makes none

        tail = (1 - CONFIDENCE) / 2
        low = float(beta.ppf(tail, events, n - events + 1)) if events else 0.0
        high = float(beta.ppf(1 - tail, events + 1, n - events)) if events < n else 1.0
        return cls(share=events / n, low=low, high=high, n=n)


class Point(_Data):
    """One way to have the samples answered, and what it costs on the wire."""

    name: str
    """Such as ``bottleneck, rate 0``, ``webp q20``, ``float32 cut, zstd``."""
    kind: Literal["cut", "upload", "mesh"]
    """``cut``: features of every sample cross; ``upload``: every picture crosses to the whole model; ``mesh``: features of
    the hard samples only, the exit answers the others."""
    wire_bytes: NotNegative
    """Mean of one sample, payload only."""
    agreement: Proportion | None = None
    """With the original whole model on untouched samples; None without classes."""
    accuracy: Proportion | None = None
    """Against the labels; None without labels."""
    output_error: NotNegative | None = None
    """Without classes: root mean square of the outputs' difference, as a share of the outputs'."""


class ExitPoint(_Data):
    """An exit's threshold with what it does."""

    tolerated: Share
    """Disagreement (answered at the edge and unlike the whole) that was asked for."""
    threshold: float = Field(ge=0, allow_inf_nan=False)
    """Chosen on the validation samples."""
    coverage: Proportion
    """Answered at the edge, of the hold-out."""
    disagreement: Proportion
    """Answered at the edge and unlike the whole, of the hold-out."""


class ExitReport(_Data):
    """One exit; for a model with several the last one stands for all of them together, as a head runs them."""

    name: str
    """The exit's output."""
    agreement: Proportion
    """Of the exit's answers with the whole, whatever its confidence."""
    points: tuple[ExitPoint, ...]


class StepReport(_Data):
    """One step of the recipe."""

    step: str
    """As ``recipe.parse_step`` reads it."""
    seconds: NotNegative
    remarks: tuple[str, ...] = ()
    figures: dict[str, float] = Field(default_factory=dict)


class Exceeded(_Data):
    """One limit of the budget that the result does not keep."""

    what: str
    """Field of the budget."""
    measured: NotNegative
    allowed: NotNegative


class Report(_Data):
    """The whole story of one recipe."""

    schema_version: Literal[2] = 2
    model: str
    """Name of the model or file."""
    steps: tuple[StepReport, ...]
    seed: int
    fit_samples: int = Field(ge=1)
    validation_samples: int = Field(ge=0)
    holdout_samples: int = Field(ge=1)
    labelled: bool
    budget: Budget
    exceeded: tuple[Exceeded, ...] = ()
    """Empty: within the budget."""
    accuracy_before: Proportion | None = None
    """Of the original whole model against the labels; None without labels."""
    agreement: Proportion | None = None
    """Of the result (head + tail at the best rate, or the new whole) with the original whole model."""
    accuracy: Proportion | None = None
    output_error: NotNegative | None = None
    points: tuple[Point, ...] = ()
    exits: tuple[ExitReport, ...] = ()
    leakage: tuple[CutLeakage, ...] = ()
    size_bytes: dict[str, int] = Field(default_factory=dict)
    """Of files: ``whole before`` and every artefact by name."""
    latency_ms: dict[str, float] = Field(default_factory=dict)
    """Median of one sample on this node: ``whole before``, ``whole``, ``head``, ``encode``, ``decode``, ``tail``."""
    threads: int = Field(ge=1)
    host: str
    """Processor, cores and runtime behind the latencies."""

    def figures(self) -> dict[str, float]:
        """What a lineage remembers: shares by name, as far as they were measured."""
        found = {"agreement": self.agreement, "accuracy": self.accuracy, "accuracy_before": self.accuracy_before}
        return {name: one.share for name, one in found.items() if one is not None}

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
