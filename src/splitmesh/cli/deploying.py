"""``splitmesh deploy`` and ``rollback``: a version brought to hosts step by step, and all of it back in one step."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.fleet_live import DeploymentShown, follow_deployment, summary, trouble
from splitmesh.cli.fleet_options import (
    AllOption,
    GroupOption,
    LabelOption,
    LineOption,
    NodeOption,
    SiteOption,
    above_0,
    named_target,
    percents,
    required_target,
    seconds,
)
from splitmesh.cli.models_aliases import ByOption, ReasonOption
from splitmesh.cli.output import JsonOption, run, show_json
from splitmesh.cli.who import who
from splitmesh.client.fleet import FleetClient
from splitmesh.client.fleet_deployments import DeploymentInfo, DeploymentState, Gate, Reference, Strategy
from splitmesh.client.fleet_nodes import Target

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

FollowOption = Annotated[
    bool, typer.Option("--follow/--detach", help="Show it until it has ended, or leave it to the fleet at once.")
]


def deploy(
    model: Annotated[str, typer.Argument(help="NAME:VERSION or NAME@ALIAS; NAME is its newest version.")],
    node: NodeOption = None,
    site: SiteOption = None,
    line: LineOption = None,
    group: GroupOption = None,
    label: LabelOption = None,
    every: AllOption = False,
    waves: Annotated[
        str, typer.Option(help="Percents of the hosts that have it at the end of each wave: 5,25,100.")
    ] = "",
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="Try it first: unseen beside the version before, then as a canary, then all."),
    ] = False,
    canary: Annotated[
        bool, typer.Option("--canary", help="Try it first: it answers a share of the frames from the first pair on.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="No trial: hosts switch at once. So it is without any of these.")
    ] = False,
    margin: Annotated[
        float,
        typer.Option(min=0, max=1, callback=above_0, help="How much more often it may be wrong, as a share of frames."),
    ] = 0.02,
    alpha: Annotated[
        float,
        typer.Option(
            min=0, max=0.5, callback=above_0, help="Probability of promoting one that is worse than the margin."
        ),
    ] = 0.05,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of answers before a shadow becomes a canary.")] = 100,
    max_pairs: Annotated[int, typer.Option(min=1, help="Pairs after which a person has to decide.")] = 20_000,
    canary_share: Annotated[
        float, typer.Option(min=0, max=1, callback=above_0, help="Of the frames, answered by a canary.")
    ] = 0.1,
    pair_share: Annotated[
        float, typer.Option(min=0, max=1, callback=above_0, help="Of the frames, computed by both versions.")
    ] = 0.1,
    max_time: Annotated[str, typer.Option(help="Longest time of the trial, such as 24h; then a person decides.")] = "",
    reference: Annotated[
        Reference, typer.Option(help="Who is right: the serving version's full model, or labels that people gave.")
    ] = Reference.FULL_MODEL,
    require_tail: Annotated[
        bool, typer.Option("--require-tail", help="Hosts switch only when a tail has accepted the version.")
    ] = False,
    alias: Annotated[str, typer.Option(help="Alias that points at the version when all is done.")] = "",
    max_failed: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a wave's hosts that may fail before everything goes back.")
    ] = 0.1,
    host_timeout: Annotated[str, typer.Option(help="A host that takes longer has failed; 10m unless set.")] = "",
    pause: Annotated[str, typer.Option(help="Between waves, such as 60s or 2h.")] = "0s",
    max_parallel: Annotated[int, typer.Option(min=0, help="Hosts that are told at once; 0: the fleet's own.")] = 0,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    by: ByOption = "",
    follow: FollowOption = True,
    json: JsonOption = False,
) -> None:
    """Bring a version to hosts, and show how far they are; it goes on in the fleet whoever looks.

    Ends with 0 when the version serves, and with 1 when no host serves it, it was rolled back or waits for a person.
    """
    if shadow + canary + now > 1:
        raise typer.BadParameter("--shadow, --canary and --now say different things: give one of them")

    async def ask() -> DeploymentInfo:
        target = required_target(named_target(node, site, line, group, label, every))
        gate = Gate(
            margin,
            alpha,
            1 if canary else pairs,
            canary_share,
            pair_share,
            max_pairs,
            reference,
            _time("max-time", max_time),
        )
        strategy = Strategy(
            wave_percents=percents(waves),
            gate=gate if shadow or canary else None,
            max_failed_share=max_failed,
            host_timeout_s=_time("host-timeout", host_timeout),
            pause_s=_time("pause", pause),
            require_tail=require_tail,
            max_parallel=max_parallel,
            alias=alias,
        )
        return await _deployed(model, target, strategy, by or who(), description)

    made = run(ask())
    if follow:
        watch_until_ended(made.id, DeploymentState.DONE, json)
    else:
        show_started(made, json)


def rollback(
    model: Annotated[str, typer.Argument(help="NAME: its newest deployment.", show_default=False)] = "",
    deployment: Annotated[str, typer.Option(help="This deployment instead.")] = "",
    reason: ReasonOption = "",
    follow: FollowOption = True,
    json: JsonOption = False,
) -> None:
    """Bring every host of a deployment back to the version it had before, from whatever state."""
    if bool(model) == bool(deployment):
        raise typer.BadParameter("name a model, or a deployment with --deployment")

    async def ask() -> DeploymentInfo:
        async with channels() as opened:
            return await FleetClient(opened).rollback(model, deployment_id=deployment, reason=reason)

    begun = run(ask())
    if follow:
        watch_until_ended(begun.id, DeploymentState.ROLLED_BACK, json)
    else:
        show_started(begun, json)


async def _deployed(model: str, target: Target, strategy: Strategy, by: str, description: str) -> DeploymentInfo:
    async with channels() as opened:
        version = await find_version(registry_of(opened), model)
        return await FleetClient(opened).deploy(
            version.model, version.version, target, strategy, created_by=by, description=description
        )


def watch_until_ended(deployment_id: str, wanted: DeploymentState, json: bool) -> None:
    """Shows a deployment until it has ended or waits for somebody; leaves with 1 unless it ended as wanted and serves."""

    async def ask() -> DeploymentInfo | None:
        with DeploymentShown(json=json) as shown:
            async with channels() as opened:
                return await follow_deployment(FleetClient(opened).watch_deployment(deployment_id, trouble), shown)

    try:
        ended = run(ask())
    except KeyboardInterrupt:
        print(f"splitmesh: it goes on in the fleet: splitmesh deployments watch {deployment_id}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if ended is None or ended.state is not wanted:
        _leave(ended)
    if wanted is DeploymentState.DONE and not ended.counts.serving:
        print(f"splitmesh: {ended.id} is done, and no host serves {ended.model}:{ended.version}", file=sys.stderr)
        raise typer.Exit(1)


def _leave(ended: DeploymentInfo | None) -> NoReturn:
    if ended is not None:
        state = ended.state.value.lower().replace("_", " ")
        print(f"splitmesh: {ended.id} is {state}{f': {ended.message}' if ended.message else ''}", file=sys.stderr)
        if ended.state is DeploymentState.PAUSED:
            print(
                f"splitmesh: go on with `splitmesh deployments resume {ended.id}`, "
                f"or back with `splitmesh rollback --deployment {ended.id}`",
                file=sys.stderr,
            )
    raise typer.Exit(1)


def show_started(made: DeploymentInfo, json: bool) -> None:
    """A deployment that nobody waits for."""
    if json:
        show_json(made)
        return
    for line in summary(made):
        print(line)


def _time(option: str, text: str) -> float:
    return seconds(option, text) if text else 0.0
