"""``splitmesh adapt``: one version that heads run in the cheapest of several ways."""

from __future__ import annotations

from typing import Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json
from splitmesh.client.partition import PartitionClient


def adapt(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    versions: Annotated[
        list[int], typer.Argument(help="Versions made from the same whole model; heads begin with the first.")
    ],
    uplink_mbps: Annotated[float, typer.Option(help="Expected rate from edge to cloud, Mbit/s.")] = 20.0,
    rtt_ms: Annotated[float, typer.Option(help="Expected round trip of an empty message, ms.")] = 20.0,
    json: JsonOption = False,
) -> None:
    """Make a version whose heads measure the link and change between these ways from one frame to the next."""

    async def ask() -> int:
        async with channels() as opened:
            return await PartitionClient(opened).adapt(model, versions, uplink_mbps=uplink_mbps, rtt_ms=rtt_ms)

    made = run(ask())
    if json:
        show_json({"model": model, "version": made})
    else:
        print(f"{model} version {made} adapts among versions {', '.join(map(str, versions))}")
