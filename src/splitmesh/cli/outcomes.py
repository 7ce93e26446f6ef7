"""``splitmesh outcomes``: who answered, as the router counts it, and how crowded the tails are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.client.routing import NodeOutcomes, RoutingClient, UplinkLoad

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
LOAD_COLUMNS = ("node", "version", "tails", "tail backlog", "goodput", "round trip", "resent")


def outcomes(model: Annotated[str, typer.Argument(help="Name of the model.")], json: JsonOption = False) -> None:
    """Show how many frames each node's exit, the tail or the whole model answered, per version, and how crowded its tails are."""

    async def ask() -> list[NodeOutcomes]:
        async with channels() as opened:
            return await RoutingClient(opened).get_outcomes(model)

    found = run(ask())
    if json:
        show_json(found)
    else:
        show_table("" if found else f"{model}: no reports yet", COLUMNS, [_row(entry) for entry in found])
        loads = [_load_row(entry, entry.load) for entry in found if entry.load is not None]
        if loads:
            show_table("The way to the tails, at the last report", LOAD_COLUMNS, loads)


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


def _load_row(entry: NodeOutcomes, load: UplinkLoad) -> list[object]:
    """What is not known is left out."""
    return [
        entry.node,
        entry.version,
        load.tails,
        f"{load.backlog_ms:.0f} ms",
        f"{load.goodput_mbps:.1f} Mbit/s" if load.goodput_mbps else "",
        f"{load.rtt_ms:.1f} ms" if load.rtt_ms else "",
        f"{load.loss:.2%}",
    ]


def _by_reason(reasons: Mapping[str, int]) -> object:
    """``7 (QUEUE_FULL 5, DEADLINE_EXPIRED 2)``."""
    if not reasons:
        return 0
    most_first = sorted(reasons.items(), key=lambda pair: -pair[1])
    return f"{sum(reasons.values()):,} ({', '.join(f'{reason} {count:,}' for reason, count in most_first)})"
