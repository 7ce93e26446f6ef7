"""The question every solver of this package answers, and what an answer looks like.

Operators in topological order are placed on tiers 0..K-1 (device, edge, ..., cloud). Along every arc the tier never
falls: nothing is shipped back. Hop ``h`` leads from tier ``h`` to ``h + 1``. An output that any operator on a later
tier reads crosses every hop between once, however many read it.

An output without time and bytes on a hop makes a cut there free: leaving out figures that are unknown is the caller's
mistake, and no solver can see it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from splitmesh.errors import field_error
from splitmesh.model.placement.figures import Figures


class Objective(StrEnum):
    """What a placement is to be best at."""

    LATENCY = "LATENCY"
    """Time of one sample from the camera to its answer."""
    THROUGHPUT = "THROUGHPUT"
    """Samples per second in steady flow: the time of the busiest tier or hop. A round trip is waiting, not work."""


@dataclass(frozen=True, slots=True)
class Vertex:
    """One operator with its outputs; the first one of a problem is the model's input, bound to tier 0 by its costs."""

    name: str
    sources: tuple[int, ...]
    """Indices of the earlier vertices it reads."""
    cost_ms: tuple[float, ...]
    """Its time per tier; infinite: it may not run there."""
    transfer_ms: tuple[float, ...]
    """Time of its outputs per hop, coding and message overhead included, the round trip not; infinite: they may not
    cross."""
    memory_bytes: tuple[float, ...] = ()
    """What it holds per tier (weights); empty: nothing."""
    wire_bytes: tuple[float, ...] = ()
    """What its outputs put on each hop; empty: nothing."""
    survival: float = 1.0
    """Share of samples that get here, 0..1: an early exit before it has answered the others. Never more than that of
    what it reads. Weighs its time; its outputs cross a hop as often as they are read beyond: by the largest survival
    there."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A graph and its tiers. MeshError FIELD_INVALID for lengths and values that do not fit."""

    vertices: tuple[Vertex, ...]
    rtt_ms: tuple[float, ...]
    """Per hop; paid once, by the largest survival of what lies beyond, when anything runs beyond the hop."""
    max_memory_bytes: tuple[float, ...] = ()
    """Per tier; infinite: any. Empty: no tier is limited."""
    max_wire_bytes: tuple[float, ...] = ()
    """Mean bytes per sample on each hop; infinite: any. Empty: no hop is limited."""
    figures: Figures = field(init=False, repr=False, compare=False)
    """The same as arrays."""

    @property
    def tiers(self) -> int:
        """How many there are."""
        return len(self.rtt_ms) + 1

    @property
    def limited(self) -> bool:
        """Whether any memory or wire limit can refuse a placement."""
        return any(limit < math.inf for limit in (*self.max_memory_bytes, *self.max_wire_bytes))

    def __post_init__(self) -> None:
        tiers, hops, vertices = self.tiers, len(self.rtt_ms), self.vertices
        if not vertices or tiers < 2:
            raise field_error("vertices", "a problem has at least one vertex and two tiers")
        for name, length in (("cost_ms", tiers), ("transfer_ms", hops)):
            if {len(getattr(vertex, name)) for vertex in vertices} != {length}:
                raise field_error(name, f"every vertex needs {length} of them")
        for name, length in (("memory_bytes", tiers), ("wire_bytes", hops)):
            if not {len(getattr(vertex, name)) for vertex in vertices} <= {0, length}:
                raise field_error(name, f"a vertex needs {length} of them, or none")
        if len(self.max_memory_bytes) not in (0, tiers) or len(self.max_wire_bytes) not in (0, hops):
            raise field_error("max_memory_bytes", f"needs {tiers} entries, and max_wire_bytes {hops}")
        figures = Figures.of(self)
        if (wrong := figures.first_unordered()) is not None:
            raise field_error("sources", f"of {vertices[wrong].name!r} do not all come before it")
        if (wrong := figures.first_negative()) is not None:
            raise field_error("cost_ms", f"{vertices[wrong].name!r} has a negative or undefined figure")
        if (wrong := figures.first_wrong_survival()) is not None:
            share = vertices[wrong].survival
            raise field_error("survival", f"of {vertices[wrong].name!r} is {share}, expected 0..that of what it reads")
        if not all(value >= 0 for value in (*self.rtt_ms, *self.max_memory_bytes, *self.max_wire_bytes)):
            raise field_error("rtt_ms", "or a limit is negative or undefined")
        object.__setattr__(self, "figures", figures)


@dataclass(frozen=True, slots=True)
class Placement:
    """A tier for every vertex, and how good that is at least."""

    tiers: tuple[int, ...]
    value_ms: float
    """The objective at this placement, computed from the problem's own figures."""
    lower_bound_ms: float
    """No placement is better: the value of a flow, or of the relaxation a solver left."""
    method: str

    @property
    def gap_ms(self) -> float:
        """How far from the best it can be."""
        return max(0.0, self.value_ms - self.lower_bound_ms)
