"""What a profile holds: how long a model and its pieces take on one node and how many bytes each cut puts on the wire.

Data only: ``profile.py`` measures it, ``plan.py`` reads it, anyone can store it as JSON. Times are milliseconds, sizes
bytes, both for one sample: a run of a batch is divided by its samples.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.errors import MeshError, Reason

FLOAT_CODEC = "float32+zstd"
"""The cut's tensors as they are, zstd."""

QUANTISED_CODEC = "uint8+zstd"
"""Float tensors rounded to 8 bits inside the graphs, zstd."""

RANGE_CODEC = "uint8+range"
"""The same, entropy coded with the version's own tables at its best rate."""

BOTTLENECK_CODEC = "bottleneck"
"""The code of the version's own bottleneck in 8 bits, entropy coded with its tables at its best rate."""

LOSSY_CODECS = frozenset({QUANTISED_CODEC, RANGE_CODEC, BOTTLENECK_CODEC})
"""What they carry is not what the model computed."""

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProfileKey(_Data):
    """Where and how times were taken; a model version has at most one profile per key."""

    node: str = Field(min_length=1)
    """The node's name in discovery."""
    backend: str = Field(min_length=1)
    """Execution provider, such as ``CPUExecutionProvider``."""
    precision: str = "float32"
    """Of the arithmetic."""
    threads: int = Field(ge=1)
    """Inside one operator."""
    batch: int = Field(default=1, ge=1)
    """Samples per run."""


class PictureProfile(_Data):
    """What sending the whole picture costs with one image codec."""

    wire_bytes: Size
    """Mean over the calibration pictures."""
    encode_ms: Milliseconds = 0.0
    decode_ms: Milliseconds = 0.0
    agreement: Share | None = None
    """Share of samples where the model names the same class for the decoded picture as for the original; None: unknown."""


class NodeProfile(_Data):
    """One operator of the graph that depends on the input's values, in topological order."""

    name: str
    """Its first output that others read, in the model's own names."""
    sources: tuple[int, ...]
    """Indices of the entries whose outputs it reads, ascending; -1: an input of the model."""
    head_ms: Milliseconds
    """Its share of fused head times: those of a head's operators add up to the head's time."""
    tail_ms: Milliseconds
    """Its share of fused tail times."""
    weight_bytes: int = Field(ge=0)
    """Initialisers that it reads; one that several read counts at the first."""
    wire_bytes: dict[str, Size]
    """By codec, of the outputs that others read; estimated from the nearest measured cut unless it is one. Empty: they
    cannot cross."""
    operator: str = ""
    """Its type, such as ``Conv``, with the domain before a dot unless it is ONNX's own; empty: not noted."""


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
    head_p99_ms: Milliseconds | None = None
    """Of the head: what a deadline has to reckon with. None: the profile was taken before this was noted."""
    tail_p99_ms: Milliseconds | None = None
    measured: bool
    """False: the four times are interpolated between measured cuts."""
    live_runs: int = Field(default=0, ge=0)
    """Runs in production that the times were corrected by; 0: none."""
    head_bytes: Size
    """The head's operators and weights as a file."""
    raw_bytes: Size
    """The cut's tensors, uncompressed, as the model computes them."""
    wire_bytes: dict[str, Size] = Field(min_length=1)
    """By codec, mean over the samples."""
    encode_ms: dict[str, Milliseconds]
    """By codec: entropy coding, and what rounding to 8 bits adds to the head."""
    decode_ms: dict[str, Milliseconds]
    escalation: Share | None = None
    """Share of samples that an exit here would leave to the tail; None: no exit was tried here."""
    agreement: dict[str, Share] = Field(default_factory=dict)
    """By lossy codec: share of samples where head + tail name the same class as the whole; absent: not measured."""
    leakage: Share | None = None
    """Structural similarity (SSIM) of the best known reconstruction of the picture from the tensors as they are, or the
    most there can be; None: unknown. Also the most there can be of whatever is made of them alone."""
    codec_leakage: dict[str, Share] = Field(default_factory=dict, exclude=True)
    """The same of what crosses, by lossy codec where it was measured. A version's manifest has it, so it is put in when
    that is planned and not stored."""

    def leaks(self, codec: str) -> float | None:
        """Leakage of what crosses in this codec, or the most there can be; None: unknown."""
        return self.codec_leakage.get(codec, self.leakage)


class Profile(_Data):
    """A model's times and sizes on one node."""

    schema_version: Literal[1] = 1
    key: ProfileKey
    whole_ms: Milliseconds
    """Median of the whole model as one session."""
    whole_p90_ms: Milliseconds
    whole_p99_ms: Milliseconds | None = None
    """What a deadline has to reckon with; None: not noted."""
    whole_bytes: Size
    """The serialised model."""
    cuts: tuple[CutProfile, ...]
    nodes: tuple[NodeProfile, ...] = ()
    """The graph, for plans over every cut; empty where it was not surveyed."""
    pictures: dict[str, PictureProfile] = Field(default_factory=dict)
    """By image codec, such as ``jpeg q90``: sending the picture instead; empty for inputs that are no pictures."""
    repeats: int = Field(ge=1)
    """Timed runs behind each median, at most."""
    samples: int = Field(ge=1)
    """Different inputs behind the wire sizes."""
    calibration: Literal["random", "real"]
    """``random``: the inputs were noise, so wire sizes say little about pictures."""
    host: str
    """Processor, cores and runtime the times belong to."""
    complete: bool = True
    """False: the budget ended before every wanted cut was timed; measuring again goes on from here."""

    @model_validator(mode="after")
    def _nodes_in_order(self) -> Profile:
        for index, node in enumerate(self.nodes):
            if any(not -1 <= source < index for source in node.sources):
                raise ValueError(f"nodes[{index}] reads a node that does not come before it")
        return self

    def to_json(self) -> str:
        """The profile as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def sha256(self) -> str:
        """Of what it says, in whatever order it says it; a profile that was measured again has another."""
        told = self.model_dump(mode="json")
        for entry in (told, *told["cuts"]):
            for name in [name for name, value in entry.items() if name.endswith("_p99_ms") and value is None]:
                del entry[name]  # as the profile was hashed before these were noted
        text = json.dumps(told, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str | bytes) -> Profile:
        """Read a profile; MeshError FIELD_INVALID names every wrong field."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise invalid_profile(error) from error


def invalid_profile(error: ValidationError) -> MeshError:
    """FIELD_INVALID, with every wrong field."""
    problems = [
        (".".join(str(part) for part in problem["loc"]) or "profile", problem["msg"])
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return MeshError(
        Reason.FIELD_INVALID, f"the profile is not valid: {problems[0][0]}: {problems[0][1]}", fields=problems
    )
