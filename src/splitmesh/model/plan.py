"""Compares every way to run a profiled model over a link and says which is best and why. Pure arithmetic, no I/O.

The candidates are edge only, cloud only, and every profiled cut with every codec, with and without an exit; all are
priced and ranked, so the result is exact *over these candidates and the profile's times*: a scan, not a search that
may miss one. It is no optimum over all cuts of the graph, and interpolated times, queues, a link that varies, the
(small) exit itself and accuracy are outside the arithmetic. "Do not split" is a valid answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from splitmesh.errors import MeshError, Reason
from splitmesh.model.plan_options import Constraints, Costing, Kind, Link, Option, Stages, Workload
from splitmesh.model.profile_data import Profile

__all__ = ["Constraints", "Kind", "Link", "Option", "Plan", "Stages", "Workload", "best_split", "make_plan"]

_STAGE_WORDS = {
    "edge_ms": "edge",
    "encode_ms": "encoding",
    "link_ms": "link",
    "rtt_ms": "round trip",
    "cloud_ms": "cloud",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Every option, the best first, and what they were priced for."""

    options: tuple[Option, ...]
    """Feasible before refused; by mean latency, then by bytes on the uplink. The first is feasible."""
    why: str
    """One sentence: why the first option wins, with the numbers and the runner-up."""
    link: Link
    workload: Workload
    constraints: Constraints
    edge_slowdown: float
    cloud_speedup: float

    @property
    def best(self) -> Option:
        """The first option."""
        return self.options[0]

    def to_json(self) -> str:
        """The plan as indented JSON; an unlimited throughput is null."""
        content = asdict(self)
        for entry, option in zip(content["options"], self.options, strict=True):
            entry |= {"name": option.name, "latency_ms": option.latency_ms, "feasible": option.feasible}
            if math.isinf(option.throughput_fps):
                entry["throughput_fps"] = None
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def make_plan(
    profile: Profile,
    link: Link,
    workload: Workload,
    constraints: Constraints,
    *,
    edge_slowdown: float = 1.0,
    cloud_speedup: float = 1.0,
) -> Plan:
    """Rank every option.

    Args:
        profile: times of one host and sizes on the wire.
        link: from edge to cloud.
        workload: pictures, and the expected share of hard samples when there is an exit.
        constraints: what forbids an option.
        edge_slowdown: how many times slower the edge is than the profile's host.
        cloud_speedup: how many times faster the cloud is, its queueing included.

    Raises MeshError PLAN_INFEASIBLE, with the reasons, when every option is refused; FIELD_INVALID for bad values.
    """
    costing = Costing(profile, link, workload, constraints, edge_slowdown, cloud_speedup)
    options = sorted(costing.options(), key=lambda o: (not o.feasible, o.latency_ms, o.uplink_bytes))
    if not options[0].feasible:
        raise _infeasible(options)
    return Plan(tuple(options), _why(options), link, workload, constraints, edge_slowdown, cloud_speedup)


def best_split(plan: Plan) -> Option:
    """The best option that cuts the model, for a user who wants one even where it does not win.

    MeshError PLAN_INFEASIBLE when every cut is refused.
    """
    cuts = [option for option in plan.options if option.cut]
    if not cuts or not cuts[0].feasible:
        raise _infeasible(cuts)
    return cuts[0]


def _infeasible(options: Sequence[Option]) -> MeshError:
    """Names, of every kind and codec, the fastest option's reasons: hundreds of cuts are refused alike."""
    fastest: dict[tuple[Kind, str], Option] = {}
    for option in options:
        fastest.setdefault((option.kind, option.codec), option)
    if not fastest:
        return MeshError(Reason.PLAN_INFEASIBLE, "the profile holds no cut")
    reasons = " | ".join(f"{option.name}: {option.refused_because}" for option in fastest.values())
    return MeshError(Reason.PLAN_INFEASIBLE, f"all {len(options)} options are refused: {reasons}")


def _why(options: Sequence[Option]) -> str:
    best, *others = options
    text = f"{best.name} takes {_price(best)}"
    second = next((option for option in others if option.feasible), None)
    if second is None:
        text += "; no other option is feasible"
    else:
        text += f"; the runner-up, {second.name}, takes {_price(second)}{_difference(best, second)}"
        other_kind = next((option for option in others if option.feasible and option.kind != best.kind), None)
        if other_kind is not None and other_kind is not second:
            text += f"; the best of another kind, {other_kind.name}, takes {other_kind.latency_ms:.2f} ms"
    faster = next((o for o in others if not o.feasible and o.latency_ms < best.latency_ms), None)
    if faster is not None:
        text += f"; {faster.name} would take {faster.latency_ms:.2f} ms but is refused: {faster.refused_because}"
    return text + "."


def _price(option: Option) -> str:
    parts = [(_STAGE_WORDS[stage.name], getattr(option.stages, stage.name)) for stage in fields(Stages)]
    stages = ", ".join(f"{word} {value:.2f}" for word, value in parts if value > 0)
    sent = f"{option.uplink_bytes:.0f} bytes sent" if option.codec else "nothing sent"
    guess = "" if option.measured else ", interpolated"
    return f"{option.latency_ms:.2f} ms per sample ({stages}; {sent}{guess})"


def _difference(best: Option, second: Option) -> str:
    """Where the winner saves most."""
    saved = {s.name: getattr(second.stages, s.name) - getattr(best.stages, s.name) for s in fields(Stages)}
    stage = max(saved, key=lambda name: saved[name])
    if saved[stage] <= 0:
        return ", as much"
    return f", of which the winner saves {saved[stage]:.2f} ms of {_STAGE_WORDS[stage]} time"
