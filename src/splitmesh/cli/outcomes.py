"""``splitmesh outcomes`` and ``tolerance``: who answered, as the router counts it, and how sure an exit must be to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.client.routing import NodeOutcomes, RoutingClient, ToleranceInfo

COLUMNS = (
    "node",
    "version",
    "edge exit",
    "cloud tail",
    "edge fallback",
    "edge whole",
    "tail disagreed",
    "refused",
    "last report",
)


def outcomes(model: Annotated[str, typer.Argument(help="Name of the model.")], json: JsonOption = False) -> None:
    """Show how many frames each node's exit, the tail or the whole model answered, per version."""

    async def ask() -> list[NodeOutcomes]:
        async with channels() as opened:
            return await RoutingClient(opened).get_outcomes(model)

    found = run(ask())
    if json:
        show_json(found)
    else:
        show_table("" if found else f"{model}: no reports yet", COLUMNS, [_row(entry) for entry in found])


def tolerance(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    max_disagreement: Annotated[float, typer.Option(help="Tolerated share of exit answers unlike the whole's.")],
    delta: Annotated[float, typer.Option(help="Probability that the bound is wrong; 0: the router's default.")] = 0.0,
    json: JsonOption = False,
) -> None:
    """State how often the exit may disagree with the full model; heads get the new threshold at once."""

    async def ask() -> ToleranceInfo:
        async with channels() as opened:
            return await RoutingClient(opened).set_tolerance(model, max_disagreement, delta=delta)

    info = run(ask())
    if json:
        show_json(info)
    else:
        print(f"{model}: at most {info.max_disagreement:.2%} disagreement, with confidence {1 - info.delta:.0%}")


def _row(entry: NodeOutcomes) -> list[object]:
    counts = entry.outcomes
    return [
        entry.node,
        entry.version,
        counts.edge_exit,
        counts.cloud_tail,
        _by_reason(counts.edge_fallback),
        counts.edge_whole,
        counts.tail_disagreed,
        _by_reason(counts.refused),
        f"{entry.last_report_time:%Y-%m-%d %H:%M:%S} UTC",
    ]


def _by_reason(reasons: Mapping[str, int]) -> object:
    """``7 (QUEUE_FULL 5, DEADLINE_EXPIRED 2)``."""
    if not reasons:
        return 0
    most_first = sorted(reasons.items(), key=lambda pair: -pair[1])
    return f"{sum(reasons.values()):,} ({', '.join(f'{reason} {count:,}' for reason, count in most_first)})"
