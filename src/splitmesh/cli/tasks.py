"""``splitmesh tasks``: what hosts are told to do one by one: deploy, profile, collect."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.deploying import INTERRUPTED, FollowOption
from splitmesh.cli.fleet_live import follow_task, trouble
from splitmesh.cli.fleet_options import (
    GroupOption,
    LabelOption,
    LineOption,
    SiteOption,
    named_target,
    required_target,
    seconds,
)
from splitmesh.cli.fleet_shown import TASKS, task_rows
from splitmesh.cli.models_aliases import ByOption
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.who import who
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_nodes import Target
from splitmesh.client.fleet_tasks import CollectWork, ProfileWork, TaskInfo, TaskKind, TaskState

app = typer.Typer(help="Tasks of hosts. Without a command: list them.")

IdArgument = Annotated[str, typer.Argument(help="As `tasks list` shows it.")]
OneNodeOption = Annotated[
    str, typer.Option("--node", help="The host; otherwise any one of those named by the options below.")
]
MOST = 50


@app.callback(invoke_without_command=True)
def tasks(context: typer.Context, json: JsonOption = False) -> None:
    """List the newest tasks; go on to one of the commands below where one is named."""
    if context.invoked_subcommand is None:
        _list("", None, None, "", MOST, json)


@app.command("list")
def list_(
    node: Annotated[str, typer.Option(help="Only of this host.")] = "",
    state: Annotated[
        list[TaskState] | None,
        typer.Option(case_sensitive=False, help="Only in this state; may be given several times."),
    ] = None,
    kind: Annotated[TaskKind | None, typer.Option(case_sensitive=False, help="Only of this kind.")] = None,
    deployment: Annotated[str, typer.Option(help="Only of this deployment.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = MOST,
    json: JsonOption = False,
) -> None:
    """List tasks, the newest first."""
    if kind is TaskKind.UNKNOWN:
        raise typer.BadParameter("name a kind of work")
    _list(node, state, kind, deployment, limit, json)


def _list(
    node: str, states: list[TaskState] | None, kind: TaskKind | None, deployment: str, limit: int, json: bool
) -> None:
    async def ask() -> list[TaskInfo]:
        async with channels() as opened:
            client = FleetClient(opened)
            return await client.tasks(node=node, states=states or (), kind=kind, deployment_id=deployment, limit=limit)

    found = run(ask())
    if json:
        show_json(found)
    else:
        show_table("", TASKS, task_rows(found))


@app.command()
def show(task: IdArgument, json: JsonOption = False) -> None:
    """Show one."""

    async def ask() -> TaskInfo:
        async with channels() as opened:
            return await FleetClient(opened).task(task)

    _show(run(ask()), json)


@app.command()
def watch(task: IdArgument, json: JsonOption = False) -> None:
    """Follow one until it has ended; 0 when it is done, 1 otherwise."""
    _follow(task, json)


@app.command()
def cancel(task: IdArgument, json: JsonOption = False) -> None:
    """End one; what runs is told to stop."""

    async def ask() -> TaskInfo:
        async with channels() as opened:
            return await FleetClient(opened).cancel_task(task)

    _show(run(ask()), json)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")],
    node: OneNodeOption = "",
    site: SiteOption = None,
    line: LineOption = None,
    group: GroupOption = None,
    label: LabelOption = None,
    budget: Annotated[str, typer.Option(help="Longest time of measuring.")] = "5m",
    by: ByOption = "",
    follow: FollowOption = True,
    json: JsonOption = False,
) -> None:
    """Time a version's pieces on a host itself; the profile goes to the registry, where `splitmesh plan` finds it."""

    async def ask() -> TaskInfo:
        target = _one_of(node, named_target(None, site, line, group, label))
        async with channels() as opened:
            version = await find_version(registry_of(opened), model)
            work = ProfileWork(version.model, version.version, seconds("budget", budget))
            return await FleetClient(opened).submit(work, node=node, target=target, created_by=by or who())

    _started(run(ask()), follow, json)


@app.command()
def collect(
    dataset: Annotated[str, typer.Argument(help="Of the dataset that gets a version.")],
    node: OneNodeOption = "",
    site: SiteOption = None,
    line: LineOption = None,
    group: GroupOption = None,
    label: LabelOption = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only samples of this model; may be given several times.")
    ] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Samples without a label too.")] = False,
    max_samples: Annotated[int, typer.Option(min=0, help="Most samples; 0: all.")] = 0,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    by: ByOption = "",
    follow: FollowOption = True,
    json: JsonOption = False,
) -> None:
    """Make a version of a dataset of the samples that a host keeps; pictures leave it only as its site's own rule allows."""

    async def ask() -> TaskInfo:
        target = _one_of(node, named_target(None, site, line, group, label))
        work = CollectWork(dataset, tuple(model or ()), unlabelled, max_samples, description)
        async with channels() as opened:
            return await FleetClient(opened).submit(work, node=node, target=target, created_by=by or who())

    _started(run(ask()), follow, json)


def _one_of(node: str, target: Target | None) -> Target | None:
    if node and target is not None:
        raise typer.BadParameter("--node names the host: leave --site, --line, --group and --label out")
    return None if node else required_target(target)


def _started(task: TaskInfo, follow: bool, json: bool) -> None:
    if follow:
        _follow(task.id, json)
    else:
        _show(task, json)


def _follow(task_id: str, json: bool) -> None:
    async def ask() -> TaskInfo | None:
        async with channels() as opened:
            return await follow_task(FleetClient(opened).watch_task(task_id, trouble), json=json)

    try:
        ended = run(ask())
    except KeyboardInterrupt:
        print(f"splitmesh: it goes on in the fleet: splitmesh tasks watch {task_id}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if ended is None or ended.state is not TaskState.DONE:
        raise typer.Exit(1)


def _show(task: TaskInfo, json: bool) -> None:
    if json:
        show_json(task)
    else:
        show_table("", TASKS, task_rows([task]))
