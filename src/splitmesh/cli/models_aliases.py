"""``splitmesh models promote | demote | history``: where aliases point, and where they pointed."""

from __future__ import annotations

from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.models_shown import time_text
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.who import who
from splitmesh.client.registry import VersionInfo
from splitmesh.client.registry_values import AliasMove

PRODUCTION = "production"

ReasonOption = Annotated[str, typer.Option(help="Why, for the history.")]
ByOption = Annotated[str, typer.Option("--by", help="Who does; without it this user.", show_default=False)]
ExpectOption = Annotated[
    int | None,
    typer.Option("--expect", min=0, help="Move only if the alias points at this version now; 0: nowhere."),
]
MostOption = Annotated[int, typer.Option("--most", min=1, max=100_000, help="Lines, the newest first.")]


def promote(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")],
    alias: Annotated[str, typer.Option(help="Alias to move.")] = PRODUCTION,
    expect: ExpectOption = None,
    reason: ReasonOption = "",
    by: ByOption = "",
    json: JsonOption = False,
) -> None:
    """Point an alias at a version; heads that follow it switch."""

    async def move() -> tuple[int, VersionInfo]:
        async with channels() as opened:
            registry = registry_of(opened)
            version = await find_version(registry, model)
            previous = await registry.set_alias(
                version.model, alias, version.version, expected=expect, moved_by=by or who(), reason=reason
            )
            return previous, version

    previous, version = run(move())
    if json:
        show_json({"model": version.model, "alias": alias, "previous_version": previous, "version": version.version})
        return
    print(f"{version.model}@{alias}: {previous or 'nowhere'} -> {version.version}")


def demote(
    model: Annotated[str, typer.Argument(help="NAME.")],
    alias: Annotated[str, typer.Option(help="Alias to take away.")] = PRODUCTION,
    expect: ExpectOption = None,
    reason: ReasonOption = "",
    by: ByOption = "",
    json: JsonOption = False,
) -> None:
    """Take an alias away; heads that follow it go on with what they have."""

    async def move() -> int:
        async with channels() as opened:
            return await registry_of(opened).set_alias(
                model, alias, 0, expected=expect, moved_by=by or who(), reason=reason
            )

    previous = run(move())
    if json:
        show_json({"model": model, "alias": alias, "previous_version": previous, "version": 0})
        return
    print(f"{model}@{alias}: {previous or 'nowhere'} -> nowhere")


def history(
    model: Annotated[str, typer.Argument(help="NAME.")],
    alias: Annotated[str, typer.Option(help="Only this alias.")] = "",
    most: MostOption = 100,
    json: JsonOption = False,
) -> None:
    """Where a model's aliases pointed, who moved them and why; the newest first."""

    async def ask() -> list[AliasMove]:
        async with channels() as opened:
            return await registry_of(opened).alias_moves(model, alias, most=most)

    moves = run(ask())
    if json:
        show_json(moves)
        return
    rows = [
        [
            *(one.alias, one.previous or "nowhere", one.version or "nowhere"),
            *(time_text(one.move_time), one.moved_by, one.reason),
        ]
        for one in moves
    ]
    show_table(model, ["alias", "from", "to", "at (UTC)", "by", "why"], rows)
