"""What a node gives so that the protocol can be spoken for it, and the values that pass between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from splitmesh.errors import MeshError
from splitmesh.model.manifest import Manifest
from splitmesh.oip.parameters import Value
from splitmesh.oip.request import Call
from splitmesh.tensor.spec import Array


class VersionMovedError(MeshError):
    """Another version answers now than when :meth:`Backend.served` was asked; it may be asked again."""


@dataclass(frozen=True, slots=True)
class Served:
    """A version that requests are answered with."""

    model: str
    version: int
    manifest: Manifest
    max_batch: int
    """Most samples of a request; 0: the first dimension is the model's own."""
    backend: str
    """What executes it, such as ``CPUExecutionProvider``."""
    max_queue: int
    """Most samples waiting."""
    max_delay_us: int
    """Longest wait for company, microseconds; 0: nothing waits for that."""
    default_timeout_us: int
    """Of a request that says nothing."""
    priority_levels: int
    """Of requests, 1 the most urgent; 0: priorities are not told apart."""
    facts: Mapping[str, str]
    """Whatever else there is to say."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a request's time went, nanoseconds; of several samples the longest of each."""

    queue_ns: int = 0
    input_ns: int = 0
    """Decoding and preparing."""
    infer_ns: int = 0
    """Computing, with links where there are any."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples computed together, in part for this request."""

    id: int
    """Different for every computation of the node."""
    size: int
    """Samples of all requests in it."""
    infer_ns: int


@dataclass(frozen=True, slots=True)
class Inferred:
    """The answer to a call."""

    outputs: Mapping[str, Array]
    """Each ``[n, ...]``, in the model's order."""
    labels: Mapping[str, Sequence[str]]
    """Names of classes, by output."""
    parameters: Mapping[str, Value]
    spent: Spent
    batches: Sequence[Batch]


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of the node's index."""

    model: str
    version: str
    """Empty while none is known."""
    ready: bool
    reason: str = ""


class Backend(Protocol):
    """A node that answers. Everything raises MeshError."""

    async def ready(self) -> bool:
        """Whether every model that the node was told to serve can be asked."""
        ...

    async def served(self, model: str, version: str) -> Served:
        """The version that a request for this model (empty: the first one) and version (a number, an alias, or empty) is answered
        with; loads it where the node loads on demand. MODEL_NOT_FOUND, VERSION_NOT_FOUND, ALIAS_NOT_FOUND, NOT_READY."""
        ...

    async def infer(self, served: Served, call: Call) -> Inferred:
        """The answer; ``call.samples`` is within the version's limit. VersionMovedError when it is not this version's."""
        ...

    async def index(self) -> Sequence[Listed]:
        """Every model, by name."""
        ...

    async def load(self, model: str) -> None:
        """Make it ready."""
        ...

    async def unload(self, model: str) -> None:
        """Let it go."""
        ...
