"""``splitmesh outcomes``: who answered, node by node, as the router counts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.client.routing import NodeOutcomes, RoutingClient

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
