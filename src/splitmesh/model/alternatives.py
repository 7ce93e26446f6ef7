"""Several ways to run one model, kept ready side by side, and what each is expected to cost.

The list travels as an artefact beside a version's parts; a head that finds it loads every way and changes between two
frames when the link does. Data and arithmetic only: no onnx, so that a head can read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitmesh.errors import MeshError, Reason

ALTERNATIVES = "alternatives.json"
"""The artefact's name."""

MAX_ALTERNATIVES = 4
"""Each is a session in the head's memory and one in every tail's."""

MAX_ALTERNATIVES_BYTES = 64 * 1024
"""Of the list as text."""

FULL = 0.95
"""Share of a resource's time from which on it counts as overloaded: queues grow without end soon after."""

_OVERLOAD = 1000.0
"""Service times of waiting per unit of load above ``FULL``."""

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Alternative(_Data):
    """One way: a version of the same model. Times per sample on the profiled nodes; live timings correct them."""

    version: int = Field(ge=0)
    """0: the version that this list belongs to."""
    name: str
    """For people: ``cut at waist`` or ``edge only``."""
    edge_ms: Milliseconds
    """The head, or the whole model."""
    encode_ms: Milliseconds = 0.0
    uplink_bytes: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Payload of a sample that crosses; 0: none does."""
    cloud_ms: Milliseconds = 0.0
    share: float = Field(default=0.0, ge=0, le=1)
    """Of the samples that cross."""

    @model_validator(mode="after")
    def _crossing_has_bytes(self) -> Alternative:
        if (self.share > 0) != (self.uplink_bytes > 0):
            raise ValueError("samples cross exactly when there are bytes to send")
        return self


class AlternativeSet(_Data):
    """All of them and the link they were planned for, which a head believes until it has measured its own."""

    schema_version: Literal[1] = 1
    alternatives: tuple[Alternative, ...] = Field(min_length=2, max_length=MAX_ALTERNATIVES)
    uplink_mbps: float = Field(gt=0, allow_inf_nan=False)
    rtt_ms: Milliseconds

    @model_validator(mode="after")
    def _distinct(self) -> AlternativeSet:
        versions = [entry.version for entry in self.alternatives]
        if len(set(versions)) != len(versions):
            raise ValueError("a version is named twice")
        if versions[0] != 0:
            raise ValueError("the first alternative is the version itself, number 0")
        return self

    def to_json(self) -> str:
        """The list as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> AlternativeSet:
        """Read a list; MeshError MODEL_CORRUPT names the first problem."""
        if len(text) > MAX_ALTERNATIVES_BYTES:
            raise MeshError(
                Reason.MODEL_CORRUPT, f"the list of alternatives has more than {MAX_ALTERNATIVES_BYTES} bytes"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "alternatives"
            raise MeshError(
                Reason.MODEL_CORRUPT,
                f"the list of alternatives is not valid: {where}: {first['msg']}",
                metadata={"field": where},
            ) from error


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the way to the tail is like now."""

    bytes_per_ms: float
    """Goodput of the uplink; 0: nothing gets through."""
    rtt_ms: float
    """Round trip of a message without its transfer."""
    queue_ms: float = 0.0
    """Waiting in the tail."""
    wait_ms: float = 0.0
    """Waiting of a message for those before it to cross, as seen; what a figure of the load would predict is not in it."""


def expected_ms(way: Alternative, link: LinkState, frames_per_s: float, *, edge_workers: float = 1.0) -> float:
    """Mean latency of a sample that goes this way, waiting for the edge and the uplink included; infinite when nothing
    gets through.

    Waiting: M/D/1, rho / (2 (1 - rho)) of the service time, which many cameras with constant service times come close
    to. ``edge_workers`` is what the model can have of the edge, beside others. Above ``FULL`` a queue would grow without
    end; then the figure only says which way is overloaded less.
    """
    edge = _served(way.edge_ms, frames_per_s / edge_workers)
    if way.share == 0:
        return edge
    if link.bytes_per_ms <= 0:
        return math.inf
    transfer = _served(way.uplink_bytes / link.bytes_per_ms, way.share * frames_per_s)
    return edge + way.share * (way.encode_ms + transfer + link.rtt_ms + link.queue_ms + way.cloud_ms)


def _served(service_ms: float, per_s: float) -> float:
    load = service_ms * per_s / 1e3
    calm = min(load, FULL)
    return service_ms * (1 + calm / (2 * (1 - calm)) + _OVERLOAD * max(0.0, load - FULL))
