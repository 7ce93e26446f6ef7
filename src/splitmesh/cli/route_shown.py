"""Goals, policies, decisions, and what came of them, as tables and sentences for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from splitmesh.cli.output import show_table
from splitmesh.client.routing import Decision, Goals, GoalsInForce, NodeOutcomes, PolicyInfo


@dataclass(frozen=True, slots=True)
class NodeWhy:
    """Why samples of one version on one node were answered where they were."""

    node: str
    version: int
    decided: int
    """Samples that were answered."""
    edge_exit: int
    """By a sure exit."""
    cloud_tail: int
    edge_whole: int
    """By the whole model at the edge: the version is not split."""
    hard: Mapping[str, int]
    """Why samples were hard, by ``RouteReason`` without its prefix."""
    stayed: Mapping[str, int]
    """Why hard samples were answered by the exit all the same, by reason code."""


def why_of(entry: NodeOutcomes) -> NodeWhy:
    """What the router's sums say."""
    counts = entry.outcomes
    stayed = sum(counts.edge_fallback.values())
    return NodeWhy(
        node=entry.node,
        version=entry.version,
        decided=counts.edge_exit + counts.cloud_tail + counts.edge_whole + stayed,
        edge_exit=counts.edge_exit,
        cloud_tail=counts.cloud_tail,
        edge_whole=counts.edge_whole,
        hard=counts.hard,
        stayed=counts.edge_fallback,
    )


def show_goals(model: str, found: GoalsInForce) -> None:
    """A row a goal."""
    goals = found.goals
    rows: list[list[object]] = [
        ["disagreement", f"at most {goals.max_disagreement:.2%} of samples exit and disagree"],
        ["confidence", f"{1 - goals.delta:.2%}"],
        ["score", _score(goals)],
        ["audited", f"{goals.audit_share or 0:.2%} of the exits' answers"],
        ["unusual samples", _UNUSUAL[goals.escalate_unusual]],
    ]
    for limit in goals.classes:
        if limit.max_missed:
            rows.append([f"{limit.label} missed", f"at most {limit.max_missed:.2%} of its samples"])
        if limit.max_false_alarms:
            rows.append(
                [f"{limit.label} falsely named", f"at most {limit.max_false_alarms:.2%} of the others' samples"]
            )
    show_table(f"{model}: {'stated' if found.stated else 'nobody stated any, the defaults hold'}", ("goal", "is"), rows)


def show_consequence(found: PolicyInfo, *, quiet: bool = False) -> None:
    """What follows from goals for one version, and a warning where everything escalates; ``quiet``: the warning alone."""
    about = f"{found.model}:{found.version}, in production"
    if found.threshold > 1:
        print(f"splitmesh: warning: {about}: {_escalating(found.why)}", file=sys.stderr)
    elif not quiet:
        print(f"{about}: from {found.threshold:.6g} up an exit's answer stands; {found.why}")


def _escalating(why: str) -> str:
    return why if "everything escalates" in why else f"everything escalates: {why}"


def show_policy(found: PolicyInfo) -> None:
    """What heads do, what is promised, and what has drifted."""
    state = "everything escalates" if found.threshold > 1 else f"from {found.threshold:.6g} up an exit's answer stands"
    rows: list[list[object]] = [
        ["threshold", state],
        ["score", found.score + _parameters(found.parameters)],
        ["coverage", f"{found.coverage:.1%} of {found.calibration_samples} calibration samples"],
        ["audited", f"{found.audit_share:.2%} of the exits' answers"],
        ["unusual samples", "escalate" if found.escalate_unusual else "are not looked at"],
        ["why", found.why],
    ]
    show_table(f"{found.model}:{found.version}, policy {found.revision}", ("policy", "is"), rows)
    if found.bounds:
        bounds = [
            [bound.constraint, f"{bound.limit:.2%}", f"{bound.bound:.2%}", bound.events, bound.n]
            for bound in found.bounds
        ]
        title = f"Promised with a probability of {1 - found.delta:g}"
        show_table(title, ("what", "at most", "bound", "seen", "of"), bounds)
    if found.overrides:
        drifted = [
            [
                one.camera or "all",
                one.label or "all",
                "escalates" if one.threshold > 1 else f"{one.threshold:.6g}",
                one.why,
            ]
            for one in found.overrides
        ]
        show_table("Where things have drifted", ("camera", "class", "threshold", "why"), drifted)


def show_why(model: str, found: list[NodeWhy]) -> None:
    """Who answered, and the reasons."""
    columns = ("node", "version", "decided", "edge exit", "cloud tail", "edge whole", "edge fallback")
    rows = [
        [
            each.node,
            each.version,
            each.decided,
            *(
                _share(count, each.decided)
                for count in (each.edge_exit, each.cloud_tail, each.edge_whole, sum(each.stayed.values()))
            ),
        ]
        for each in found
    ]
    show_table("" if found else f"{model}: no reports yet", columns, rows)
    _show_reasons("Why samples were hard", [(each, each.hard) for each in found])
    _show_reasons("Why hard samples were not escalated", [(each, each.stayed) for each in found])


def show_decision(found: Decision) -> None:
    """A sentence."""
    ease = "the ease is undefined" if found.ease is None else f"its ease is {found.ease:.6g}"
    where = "it crosses" if found.escalate else found.refused or "it stays"
    says = "" if found.label is None else f", says class {found.label}"
    hard = "hard" if found.hard else "easy"
    print(f"{hard} ({found.why}): {ease}, the threshold {found.threshold:.6g}, worth {found.worth:.3g}{says}; {where}")


def _show_reasons(title: str, given: list[tuple[NodeWhy, Mapping[str, int]]]) -> None:
    rows = [
        [each.node, each.version, reason, count, _share(count, sum(reasons.values()))]
        for each, reasons in given
        for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])
    ]
    if rows:
        show_table(title, ("node", "version", "why", "samples", "share"), rows)


def _score(goals: Goals) -> str:
    name = goals.score or ("expected_cost" if goals.costs else "what keeps most samples at the edge")
    return name + _parameters(goals.parameters) + (f", {_costs(goals.costs)}" if goals.costs else "")


def _costs(costs: tuple[float, ...]) -> str:
    classes = round(len(costs) ** 0.5)
    return f"mistakes of {classes} classes cost {min(cost for cost in costs if cost):g} to {max(costs):g}"


def _parameters(parameters: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {value:g}' for name, value in parameters.items())})" if parameters else ""


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if of else "0"


_UNUSUAL = {None: "escalate where the version can tell them", True: "escalate", False: "do not escalate for it"}
