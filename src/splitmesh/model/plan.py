"""Compares every way to run a profiled model over a link and says which is best and why. Pure arithmetic, no I/O.

The candidates are edge only, cloud only with every image codec, and every profiled cut with every codec, with and
without an exit; all are priced from fused times and ranked, so the result is exact over them: a scan, not a search that
may miss one. Where the profile holds the graph, a minimum cut over all its operators adds the cut that the scan would
miss and certifies how far from the best the winner can be. Interpolated times, queues, a link that varies and the
(small) exit itself are outside the arithmetic. "Do not split" is a valid answer.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import fields

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_certificate import CLEARLY, GraphSearch, value_ms
from splitmesh.model.plan_costing import Costing
from splitmesh.model.plan_options import Certificate, Constraints, Kind, Link, Option, Stages, Workload
from splitmesh.model.plan_record import Plan
from splitmesh.model.profile_data import Profile

__all__ = [
    "Certificate",
    "Constraints",
    "Kind",
    "Link",
    "Objective",
    "Option",
    "Plan",
    "Stages",
    "Workload",
    "best_split",
    "explain",
    "make_plan",
    "rank",
    "require_known_tensors",
]

_STAGE_WORDS = {
    "edge_ms": "edge",
    "encode_ms": "encoding",
    "link_ms": "link",
    "rtt_ms": "round trip",
    "cloud_ms": "cloud",
}


_KINDS = list(Kind)


def make_plan(
    profile: Profile,
    link: Link,
    workload: Workload,
    constraints: Constraints,
    *,
    cloud: Profile | None = None,
    edge_slowdown: float = 1.0,
    cloud_speedup: float = 1.0,
    objective: Objective = Objective.LATENCY,
) -> Plan:
    """Rank every option over two tiers.

    Args:
        profile: times of the edge's host and sizes on the wire.
        link: from edge to cloud.
        workload: pictures, and the expected share of hard samples when there is an exit.
        constraints: what forbids an option.
        cloud: times of the cloud's host; None: those of ``profile``.
        edge_slowdown: how many times slower the edge is than the host of ``profile``.
        cloud_speedup: how many times faster the cloud is than the host of its profile, its queueing included.
        objective: what to rank by.

    Raises MeshError PLAN_INFEASIBLE, with the reasons, when every option is refused; FIELD_INVALID for bad values and
    for a tensor to keep on the edge that no cut of the profile sends.
    """
    require_known_tensors(profile, constraints)
    costing = Costing(profile, cloud or profile, link, workload, constraints, edge_slowdown, cloud_speedup)
    options, search = list(costing.options()), GraphSearch.of(costing, objective)
    if search is not None:
        best_ms = min((value_ms(option, objective) for option in options if option.feasible), default=math.inf)
        further = list(search.missing_options())
        if any(option.feasible and value_ms(option, objective) < best_ms * (1 - CLEARLY) for option in further):
            options += further
    options = rank(options, objective)
    certificate = search.certificate(options[0]) if search is not None else None
    why = explain(options, objective, certificate)
    return Plan(tuple(options), why, objective, certificate, (link,), workload, constraints)


def rank(options: Sequence[Option], objective: Objective) -> list[Option]:
    """Feasible ones first, best first; of equal ones that which sends less, then that which moves less.

    MeshError PLAN_INFEASIBLE, with the reasons, when every option is refused.
    """
    ranked = sorted(
        options,
        key=lambda option: (
            not option.feasible,
            value_ms(option, objective),
            option.latency_ms,
            option.uplink_bytes,
            _KINDS.index(option.kind),
            option.name,
        ),
    )
    if not ranked[0].feasible:
        raise _infeasible(ranked)
    return ranked


def require_known_tensors(profile: Profile, constraints: Constraints) -> None:
    """MeshError FIELD_INVALID for a tensor that is to stay but that no cut would send: a wrong name must not pass."""
    known = {name for cut in profile.cuts for name in cut.tensors} | {node.name for node in profile.nodes}
    if unknown := [name for name in constraints.kept_on_edge if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
        raise field_error("kept_on_edge", f"{unknown[0]!r} is in no cut of this model{hint}")


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


def explain(options: Sequence[Option], objective: Objective, certificate: Certificate | None) -> str:
    """Why the first of ranked options wins, in one sentence."""
    best, *others = options
    text = f"{best.name} {_price(best, objective)}"
    second = next((option for option in others if option.feasible), None)
    if second is None:
        text += "; no other option is feasible"
    else:
        text += f"; the runner-up, {second.name}, {_price(second, objective)}{_difference(best, second)}"
        other_kind = next((option for option in others if option.feasible and option.kind != best.kind), None)
        if other_kind is not None and other_kind is not second:
            text += f"; the best of another kind, {other_kind.name}, takes {other_kind.latency_ms:.2f} ms"
    limit = value_ms(best, objective)
    faster = min(
        (o for o in others if not o.feasible and value_ms(o, objective) < limit),
        key=lambda option: value_ms(option, objective),
        default=None,
    )
    if faster is not None:
        text += f"; {faster.name} would take {faster.latency_ms:.2f} ms but is refused: {faster.refused_because}"
    if certificate is not None:
        most = (
            f" by more than {math.ceil(certificate.gap_ms * 100) / 100:.2f} ms" if certificate.gap_ms >= 0.005 else ""
        )
        text += f"; no cut of the graph can beat it{most}, by these times ({certificate.method})"
    return text + "."


def _price(option: Option, objective: Objective) -> str:
    parts = [(_STAGE_WORDS[stage.name], getattr(option.stages, stage.name)) for stage in fields(Stages)]
    stages = ", ".join(f"{word} {value:.2f}" for word, value in parts if value > 0)
    sent = f"{option.uplink_bytes:.0f} bytes sent" if option.codec else "nothing sent"
    guess = "" if option.measured else ", interpolated"
    rate = f"carries {option.throughput_fps:.1f} frames/s and " if objective is Objective.THROUGHPUT else ""
    return f"{rate}takes {option.latency_ms:.2f} ms per sample ({stages}; {sent}{guess})"


def _difference(best: Option, second: Option) -> str:
    """Where the winner saves most."""
    saved = {s.name: getattr(second.stages, s.name) - getattr(best.stages, s.name) for s in fields(Stages)}
    stage = max(saved, key=lambda name: saved[name])
    if saved[stage] <= 0:
        return ", as much"
    return f", of which the winner saves {saved[stage]:.2f} ms of {_STAGE_WORDS[stage]} time"
