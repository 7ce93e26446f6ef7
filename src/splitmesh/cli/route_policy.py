"""``splitmesh route goals``, ``policy``, ``why`` and ``decide``: what may go wrong, what follows from it, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.output import JsonOption, run, show_json
from splitmesh.cli.route_shown import show_consequence, show_decision, show_goals, show_policy, show_why, why_of
from splitmesh.cli.stated_goals import NONE, costs_of, limits_of, numbers_of
from splitmesh.client.routing import Decision, Goals, GoalsInForce, NodeOutcomes, PolicyInfo, RoutingClient
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels
from splitmesh.model.manifest import MANIFEST, Manifest
from splitmesh.routing.finding import FINDINGS

PRODUCTION = "production"
ModelArgument = Annotated[str, typer.Argument(help="Name of the model.")]


def goals(
    model: ModelArgument,
    max_disagreement: Annotated[
        float | None,
        typer.Option(help="Tolerated share of samples that an exit answers otherwise than the whole model."),
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Probability that a promise does not hold.")] = None,
    max_missed: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="Of a class's samples, those an exit may call another; 0: any."),
    ] = None,
    max_false_alarms: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="Of other classes' samples, those an exit may call this; 0: any."),
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="What the threshold is compared with; auto: what keeps most samples at the edge.")
    ] = None,
    parameter: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the score.")] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRUE:SAID=COST", help="What naming SAID costs where TRUE is right, others 1; none: no costs."
        ),
    ] = None,
    audit_share: Annotated[
        float | None, typer.Option(help="Share of the exits' answers that the tail is asked to check, 0..0.5.")
    ] = None,
    escalate_unusual: Annotated[
        bool | None, typer.Option(help="Whether samples unlike the calibration's escalate.")
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Everything but the tolerated disagreement is back at its default first.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """State what may go wrong with a model; what is not named stays as it is. Without options: show the goals in force.

    Heads have what follows from it at once; for the version in production, where there is one, it is shown.
    """
    plain = {
        "max_disagreement": max_disagreement,
        "delta": delta,
        "audit_share": audit_share,
        "escalate_unusual": escalate_unusual,
    }
    stated = {name: value for name, value in plain.items() if value is not None}
    asked = bool(stated or max_missed or max_false_alarms or score is not None or parameter or cost or reset)

    async def state() -> tuple[GoalsInForce, PolicyInfo | None]:
        async with channels() as opened:
            routing = RoutingClient(opened)
            known = await routing.get_goals(model)
            if not asked:
                return known, None
            wanted = Goals(known.goals.max_disagreement) if reset else known.goals
            limits = limits_of(wanted.classes, max_missed or (), max_false_alarms or ())
            wanted = replace(wanted, **stated, classes=limits)  # type: ignore[arg-type]
            if score is not None:
                wanted = replace(wanted, score=score, parameters={}, costs=())
            if parameter:
                wanted = replace(wanted, parameters=numbers_of("parameter", parameter))
            if cost:
                table = () if cost == [NONE] else costs_of(await _labels(opened, model), cost)
                wanted = replace(wanted, costs=table, score="" if score is None else score, parameters={})
            found = GoalsInForce(await routing.set_goals(model, wanted), stated=True)
            return found, await _in_production(opened, model)

    found, follows = run(state())
    if json:
        show_json({"goals": found.goals, "stated": found.stated, "policy": follows})
    else:
        show_goals(model, found)
    if follows is not None:
        show_consequence(follows, quiet=json)


def policy(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS; production where neither is given.")],
    version: Annotated[int | None, typer.Option(help="Number of the version.")] = None,
    json: JsonOption = False,
) -> None:
    """Show how heads decide with a version: threshold, score, every promise, what has drifted, and why."""

    async def ask() -> PolicyInfo:
        async with channels() as opened:
            name, number = await _version(opened, model, version)
            return await RoutingClient(opened).get_policy(name, number)

    found = run(ask())
    show_json(found) if json else show_policy(found)


def why(model: ModelArgument, json: JsonOption = False) -> None:
    """Show per node who answered, why samples were hard, and why hard samples stayed at the edge."""

    async def ask() -> list[NodeOutcomes]:
        async with channels() as opened:
            return await RoutingClient(opened).get_outcomes(model)

    found = [why_of(entry) for entry in run(ask())]
    show_json(found) if json else show_why(model, found)


def decide(
    policy: Annotated[str, typer.Option(metavar="MODEL:VERSION", help="Decide by a version's policy.")] = "",
    score: Annotated[str, typer.Option(help="Decide by this score, also by a name of Sedna's, and --threshold.")] = "",
    threshold: Annotated[float | None, typer.Option(help="Easy from here on, 0..1.")] = None,
    parameter: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of the score.")] = None,
    probabilities: Annotated[str | None, typer.Option(help="A classifier's row, such as 0.7,0.3.")] = None,
    logits: Annotated[str | None, typer.Option(help="Of the same classes, for scores that read them.")] = None,
    features: Annotated[
        str | None, typer.Option(help="Pooled, for scores that read them and to tell what is unusual.")
    ] = None,
    boxes: Annotated[
        str | None, typer.Option(help="Scores of a detector's boxes, such as 0.9,0.2; '' for none.")
    ] = None,
    camera: Annotated[str, typer.Option(help="Which camera took it.")] = "",
    site: Annotated[str, typer.Option(help="Where it would cross, to see whether its budget lets it.")] = "",
    application: Annotated[str, typer.Option(help="Within the site; the policy's model where it is not given.")] = "",
    size_bytes: Annotated[int, typer.Option(help="Bytes that would cross.", min=0)] = 0,
    json: JsonOption = False,
) -> None:
    """Try one sample by hand: is it hard, and may it cross?"""
    if bool(policy) == bool(score):
        raise typer.BadParameter("give --policy, or --score and --threshold")
    if bool(score) != (threshold is not None):
        raise typer.BadParameter("--score and --threshold go together")
    if (probabilities is None) == (boxes is None):
        raise typer.BadParameter("give --probabilities or --boxes")

    async def ask() -> Decision:
        row, raw, pooled = _row("probabilities", probabilities), _row("logits", logits), _row("features", features)
        scores, own = _row("boxes", boxes), numbers_of("parameter", parameter or ())
        async with channels() as opened:
            routing = RoutingClient(opened)
            if threshold is not None:
                return await routing.decide(
                    score,
                    threshold,
                    probabilities=row,
                    logits=raw,
                    boxes=scores,
                    parameters=own,
                    camera_id=camera,
                    site=site,
                    application=application,
                    size_bytes=size_bytes,
                )
            if row is None:
                raise field_error("boxes", "need a rule of their own: --score and --threshold")
            name, number = await _version(opened, policy, None)
            return await routing.decide_by_policy(
                name,
                number,
                row,
                logits=raw,
                features=pooled,
                camera_id=camera,
                site=site,
                application=application,
                size_bytes=size_bytes,
            )

    found = run(ask())
    show_json(found) if json else show_decision(found)
    if found.why == "UNUSUAL" and features is None and not json:
        print("the policy lets unusual samples escalate, and only --features tell which are")


async def _in_production(opened: Channels, model: str) -> PolicyInfo | None:
    """What follows from goals that were just stated; None where nothing is in production, or nobody can say."""
    try:
        return await RoutingClient(opened).get_policy(*await _version(opened, f"{model}@{PRODUCTION}", None))
    except MeshError as error:
        if error.reason not in (Reason.MODEL_NOT_FOUND, Reason.ALIAS_NOT_FOUND):
            detail = f"{error.reason.value}: {error.message}"
            print(f"splitmesh: stated; what follows for {model}@{PRODUCTION} is not known: {detail}", file=sys.stderr)
        return None


async def _version(opened: Channels, model: str, version: int | None) -> tuple[str, int]:
    """What a person means by a version; the one in production where nothing else is said."""
    if version is not None:
        return model, version
    reference = model if ":" in model or "@" in model else f"{model}@{PRODUCTION}"
    found = await find_version(registry_of(opened), reference)
    return found.model, found.version


async def _labels(opened: Channels, model: str) -> Sequence[str]:
    """Classes that the exits of the model's newest version name."""
    registry = registry_of(opened)
    manifest = Manifest.from_json(await registry.fetch(await registry.get_version(model), MANIFEST))
    finding = manifest.exit is not None and manifest.exit.finding is not None
    return FINDINGS if finding else manifest.labels


def _row(option: str, text: str | None) -> list[float] | None:
    """Numbers between commas; none of them where the text is empty."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")] if text.strip() else []
    except ValueError:
        raise field_error(option, f"{text[:80]!r} is not a list of numbers such as 0.7,0.3") from None
