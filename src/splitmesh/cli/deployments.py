"""``splitmesh deployments``: what is on its way to hosts, and what was."""

from __future__ import annotations

from typing import Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.deploying import show_started, watch_until_ended
from splitmesh.cli.fleet_live import summary
from splitmesh.cli.fleet_shown import DEPLOYMENT_NODES, DEPLOYMENTS, deployment_node_rows, deployment_rows
from splitmesh.cli.models_aliases import ReasonOption
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_deployments import DeploymentInfo, DeploymentNode, DeploymentState

app = typer.Typer(help="Deployments, which go on in the fleet whoever looks. Without a command: list them.")

IdArgument = Annotated[str, typer.Argument(help="As `deployments list` shows it.")]
MOST = 50


@app.callback(invoke_without_command=True)
def deployments(context: typer.Context, json: JsonOption = False) -> None:
    """List the newest deployments; go on to one of the commands below where one is named."""
    if context.invoked_subcommand is None:
        _list("", MOST, json)


@app.command("list")
def list_(
    model: Annotated[str, typer.Argument(help="Only this model's.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = MOST,
    json: JsonOption = False,
) -> None:
    """List deployments, the newest first."""
    _list(model, limit, json)


def _list(model: str, limit: int, json: bool) -> None:
    async def ask() -> list[DeploymentInfo]:
        async with channels() as opened:
            return await FleetClient(opened).deployments(model, limit=limit)

    found = run(ask())
    if json:
        show_json(found)
    else:
        show_table("", DEPLOYMENTS, deployment_rows(found))


@app.command()
def show(deployment: IdArgument, json: JsonOption = False) -> None:
    """Show one with its hosts."""

    async def ask() -> tuple[DeploymentInfo, list[DeploymentNode]]:
        async with channels() as opened:
            return await FleetClient(opened).deployment(deployment)

    found, nodes = run(ask())
    if json:
        show_json({"deployment": found, "nodes": nodes})
        return
    for line in summary(found):
        print(line)
    show_table("", DEPLOYMENT_NODES, deployment_node_rows(nodes))


@app.command()
def watch(deployment: IdArgument, json: JsonOption = False) -> None:
    """Follow one until it has ended or waits for a person; 0 when it is done, 1 otherwise."""
    watch_until_ended(deployment, DeploymentState.DONE, json)


@app.command()
def pause(deployment: IdArgument, reason: ReasonOption = "", json: JsonOption = False) -> None:
    """Begin nothing more on any host; what is under way on one ends there."""

    async def ask() -> DeploymentInfo:
        async with channels() as opened:
            return await FleetClient(opened).pause(deployment, reason)

    show_started(run(ask()), json)


@app.command()
def resume(
    deployment: IdArgument,
    promote: Annotated[
        bool, typer.Option("--promote", help="Go on as if the trial had shown that the version is good: you say so.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Go on with one that was paused."""

    async def ask() -> DeploymentInfo:
        async with channels() as opened:
            return await FleetClient(opened).resume(deployment, promote=promote)

    show_started(run(ask()), json)
