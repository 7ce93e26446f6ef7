"""``splitmesh nodes``: the hosts of the fleet, what they can do and serve, and what their applications may use."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from splitmesh.cli.connect import channels
from splitmesh.cli.fleet_options import (
    AllOption,
    GroupOption,
    LabelOption,
    LineOption,
    NodeOption,
    SiteOption,
    app_share,
    labels_of,
    named_target,
    required_target,
    size_bytes,
)
from splitmesh.cli.fleet_shown import CHOICES, NODES, backend_rows, choice_rows, node_lines, node_rows, serving_line
from splitmesh.cli.output import PIPE_WIDTH, JsonOption, make_table, run, show_json, show_line, show_table
from splitmesh.client.fleet import PASSING, FleetClient
from splitmesh.client.fleet_nodes import HostPolicy, NodeInfo, NodeState, Target
from splitmesh.errors import MeshError

app = typer.Typer(help="The hosts of the fleet: those whose agents have said hello. Without a command: list them.")

EVERY_S = 1.0

NodeArgument = Annotated[str, typer.Argument(help="Host by name, as `splitmesh nodes` shows it.")]


@app.callback(invoke_without_command=True)
def nodes(
    context: typer.Context,
    node: NodeOption = None,
    site: SiteOption = None,
    line: LineOption = None,
    group: GroupOption = None,
    label: LabelOption = None,
    state: Annotated[
        NodeState | None, typer.Option(case_sensitive=False, help="Only those that are connected, or are not.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted, once a second.")] = False,
    json: JsonOption = False,
) -> None:
    """List hosts with what they serve; go on to one of the commands below where one is named."""
    if context.invoked_subcommand is not None:
        return
    try:
        run(_list(_Asked(node, site, line, group, label, state), watch, json))
    except KeyboardInterrupt:  # how a watch is ended
        return


class _Asked:
    """Which hosts a listing is of."""

    def __init__(
        self,
        node: list[str] | None,
        site: list[str] | None,
        line: list[str] | None,
        group: list[str] | None,
        label: list[str] | None,
        state: NodeState | None,
    ) -> None:
        self._options = (node, site, line, group, label)
        self._state = state

    async def of(self, client: FleetClient) -> list[NodeInfo]:
        """The hosts now."""
        return await client.nodes(named_target(*self._options), state=self._state)


async def _list(asked: _Asked, watch: bool, json: bool) -> None:
    async with channels() as opened:
        client = FleetClient(opened)
        if not watch:
            found = await asked.of(client)
            if json:
                show_json(found)
            elif found:
                show_table("", NODES, node_rows(found, datetime.now(UTC)))
            else:
                print("no host: agents say hello to services/fleet when they start (docs/fleet.md)")
            return
        if json or not sys.stdout.isatty():
            async for news in _again(client, asked):
                _tell(news, json)
            return
        last = Group()
        with Live(auto_refresh=False) as live:
            async for news in _again(client, asked):
                if isinstance(news, MeshError):
                    live.update(Group(last, escape(_away(news))), refresh=True)
                else:
                    live.update(last := Group(_table(news)), refresh=True)


def _tell(news: Sequence[NodeInfo] | MeshError, json: bool) -> None:
    if isinstance(news, MeshError):
        print(_away(news), file=sys.stderr, flush=True)
    elif json:
        show_line(news)
    else:
        Console(width=PIPE_WIDTH).print(_table(news))


def _table(found: Sequence[NodeInfo]) -> Table:
    return make_table("", NODES, node_rows(found, datetime.now(UTC)))


async def _again(client: FleetClient, asked: _Asked) -> AsyncIterator[list[NodeInfo] | MeshError]:
    """Errors that waiting may heal too, once the fleet has answered: before that an address may be wrong."""
    answered = False
    while True:
        try:
            found = await asked.of(client)
        except MeshError as error:
            if not answered or error.reason not in PASSING:
                raise
            yield error
        else:
            answered = True
            yield found
        await asyncio.sleep(EVERY_S)


def _away(error: MeshError) -> str:
    return f"splitmesh: the fleet does not answer, trying again: {error.reason.value}: {error.message}"


@app.command()
def show(node: NodeArgument, json: JsonOption = False) -> None:
    """Show all that is known of one host: what it can do, what was measured there, what it serves."""

    async def ask() -> NodeInfo:
        async with channels() as opened:
            return await FleetClient(opened).node(node)

    found = run(ask())
    if json:
        show_json(found)
        return
    for text in node_lines(found):
        print(text)
    for serving in found.serving:
        print(f"{serving.head or found.node}: {serving_line(serving)}")
        if serving.wanted is not None and serving.wanted.message:
            print(f"  {serving.wanted.message}")
    show_table("", ["back end", "version", "numbers", "usable"], backend_rows(found))
    if rows := choice_rows(found):
        show_table("measured here", CHOICES, rows)


@app.command()
def label(
    node: NodeArgument,
    labels: Annotated[list[str], typer.Argument(help="key=value each; key= takes one away.")],
    json: JsonOption = False,
) -> None:
    """Set labels of a host, beside those of its own settings."""

    async def ask() -> NodeInfo:
        wanted = labels_of(labels, removable=True)
        async with channels() as opened:
            return await FleetClient(opened).set_labels(node, wanted)

    found = run(ask())
    if json:
        show_json(found)
        return
    print(f"{found.node}: {', '.join(f'{key}={value}' for key, value in sorted(found.labels.items())) or 'no label'}")


@app.command()
def remove(node: NodeArgument) -> None:
    """Forget a host that is offline, with its tasks and assignments; one whose agent comes back is a new host."""

    async def ask() -> None:
        async with channels() as opened:
            await FleetClient(opened).remove_node(node)

    run(ask())
    print(f"{node} is forgotten")


@app.command()
def policy(
    node: NodeOption = None,
    site: SiteOption = None,
    line: LineOption = None,
    group: GroupOption = None,
    label: LabelOption = None,
    every: AllOption = False,
    application: Annotated[
        list[str] | None,
        typer.Option("--app", help="joints=priority:5,cpu:2,memory:512MiB; may be given several times."),
    ] = None,
    memory: Annotated[str, typer.Option(help="Most that all versions on a host may take together, such as 4GiB.")] = "",
    json: JsonOption = False,
) -> None:
    """State what the applications of hosts may use, in place of what was stated before; without --app and --memory: defaults.

    Priority (0 to 9) says whose frames go first, cpu is a part of the computing time beside the others' where there is
    not enough, memory the most that an application's versions may take. Hosts that come later and fit get it too.
    """

    async def ask() -> tuple[Target, HostPolicy, list[str]]:
        target = required_target(named_target(node, site, line, group, label, every))
        wanted = HostPolicy(tuple(app_share(text) for text in application or ()), size_bytes("memory", memory or "0"))
        async with channels() as opened:
            return target, wanted, await FleetClient(opened).set_policy(target, wanted)

    target, wanted, names = run(ask())
    if json:
        show_json({"target": target, "policy": wanted, "nodes": names})
        return
    print(f"{target}: {len(names):,} hosts have the policy from now on{f': {_some(names)}' if names else ''}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10:,} more" if len(names) > 10 else "")
