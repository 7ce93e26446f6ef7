"""``splitmesh route site`` and ``shares``: what the applications of a site may use together, and who gets what of it now."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape

from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, make_table, run, show_json, show_line, show_table
from splitmesh.client.shares import PERMANENT, ApplicationShare, ShareClient, SiteBudget, SiteShares
from splitmesh.errors import MeshError, field_error

COLUMNS = ("node", "application", "weight", "min", "asked/s", "allowed/s", "kbit/s", "ms/s", "least worth", "why")
PLACES = ("application", "weight", "min share")
BYTES_PER_S = 125_000.0
"""Of a megabit per second."""
EVERY_S = 1.0


def site(
    name: Annotated[str, typer.Argument(help="Name of the site, as its heads' SPLITMESH_SITE.")],
    uplink_mbps: Annotated[
        float | None, typer.Option(help="What its uplink may carry; 0: no limit but what the link carries.")
    ] = None,
    cloud_ms_per_s: Annotated[
        float | None,
        typer.Option(help="Milliseconds of tail time that it may take per second; 0: what the tails take."),
    ] = None,
    app: Annotated[
        list[str] | None,
        typer.Option(help="An application's place: solder-joints=weight:5,min:0.1; may be given several times."),
    ] = None,
    reset: Annotated[bool, typer.Option(help="Forget what is not given; otherwise it stays as it was.")] = False,
    json: JsonOption = False,
) -> None:
    """State what the applications of a site may use together; without options, show it."""

    async def ask() -> SiteBudget:
        places = [_place(text) for text in app or []]
        async with channels() as opened:
            client = ShareClient(opened)
            found = await client.get_shares(name)
            before = _budget(found[0]) if found and not reset else SiteBudget(name)
            if uplink_mbps is None and cloud_ms_per_s is None and not places and not reset:
                return before
            await client.set_site(budget := _changed(before, uplink_mbps, cloud_ms_per_s, places))
        return budget

    budget = run(ask())
    if json:
        show_json(budget)
        return
    print(f"{budget.site}: {_stated(budget.bytes_per_s, budget.cloud_ms_per_s)}")
    if budget.applications:
        show_table("", PLACES, [[one.application, one.weight, f"{one.min_share:.1%}"] for one in budget.applications])


def shares(
    site: Annotated[str, typer.Argument(help="Name of the site; all of them where it is left out.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted, once a second.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what each node's applications ask for, and what of it may cross now."""
    try:
        run(_watch(site, json=json) if watch else _once(site, json=json))
    except KeyboardInterrupt:  # how a watch is ended
        return


async def _once(site: str, *, json: bool) -> None:
    async with channels() as opened:
        found = await ShareClient(opened).get_shares(site)
    if json:
        show_json(found)
        return
    if not found:
        print(_nothing(site))
    for entry in found:
        print(_about(entry))
        if entry.shares:
            show_table("", COLUMNS, _rows(entry))


async def _watch(site: str, *, json: bool) -> None:
    """As JSON a line each time; on a terminal in place, in a pipe one table below the other. Of a router that does not answer it
    is said so, and it goes on."""
    if json or not sys.stdout.isatty():
        async for found in _again(site):
            if isinstance(found, MeshError):
                print(_away(found), file=sys.stderr, flush=True)
            elif json:
                show_line(found)
            else:
                Console(width=160).print(_picture(site, found))
        return
    last = Group()
    with Live(auto_refresh=False) as live:
        async for found in _again(site):
            if isinstance(found, MeshError):
                live.update(Group(last, escape(_away(found))), refresh=True)
            else:
                live.update(last := _picture(site, found), refresh=True)


async def _again(site: str) -> AsyncIterator[list[SiteShares] | MeshError]:
    """Errors that waiting may heal too, once the router has answered: before that an address may be wrong."""
    answered = False
    async with channels() as opened:
        client = ShareClient(opened)
        while True:
            try:
                found = await client.get_shares(site)
            except MeshError as error:
                if not answered or error.reason in PERMANENT:
                    raise
                yield error
            else:
                answered = True
                yield found
            await asyncio.sleep(EVERY_S)


def _away(error: MeshError) -> str:
    return f"splitmesh: the router does not answer, trying again: {error.reason.value}: {error.message}"


def _picture(site: str, found: Sequence[SiteShares]) -> Group:
    if not found:
        return Group(escape(_nothing(site)))
    return Group(*(make_table(_about(entry), COLUMNS, _rows(entry)) for entry in found))


def _nothing(site: str) -> str:
    return f"no budget is stated for {site or 'any site'}, and no head shares an uplink there"


def _about(entry: SiteShares) -> str:
    parts = [f"{entry.site}: {_stated(entry.bytes_per_s, entry.cloud_ms_per_s)}"]
    if entry.why:
        parts.append(entry.why)
    if entry.price_per_byte or entry.price_per_ms:
        parts.append(f"a kilobyte costs {entry.price_per_byte * 1000:.3g}, a millisecond {entry.price_per_ms:.3g}")
    return "; ".join(parts)


def _stated(bytes_per_s: float, cloud_ms_per_s: float) -> str:
    uplink = f"{bytes_per_s / BYTES_PER_S:.4g} Mbit/s of uplink" if bytes_per_s else "no limit of the uplink"
    cloud = f"{cloud_ms_per_s:.4g} ms/s of the tails' time" if cloud_ms_per_s else "none of the tails' time"
    return f"{uplink}, {cloud}"


def _rows(entry: SiteShares) -> list[list[object]]:
    return [
        [
            share.node,
            share.application,
            share.weight,
            f"{share.min_share:.1%}",
            share.asked_per_s,
            share.allowed_per_s,
            share.bytes_per_s * 8 / 1000,
            share.cloud_ms_per_s,
            "none crosses" if share.least_worth > 1 else f"{share.least_worth:.3f}",
            share.why,
        ]
        for share in entry.shares
    ]


def _budget(entry: SiteShares) -> SiteBudget:
    return SiteBudget(entry.site, entry.bytes_per_s, entry.cloud_ms_per_s, entry.applications)


def _changed(
    before: SiteBudget, uplink_mbps: float | None, cloud_ms_per_s: float | None, places: Sequence[ApplicationShare]
) -> SiteBudget:
    """What is not given stays as it was."""
    known = {place.application: place for place in before.applications} | {one.application: one for one in places}
    return replace(
        before,
        bytes_per_s=before.bytes_per_s if uplink_mbps is None else uplink_mbps * BYTES_PER_S,
        cloud_ms_per_s=before.cloud_ms_per_s if cloud_ms_per_s is None else cloud_ms_per_s,
        applications=tuple(known[name] for name in sorted(known)),
    )


def _place(text: str) -> ApplicationShare:
    """``solder-joints=weight:5,min:0.1``; either part may be left out. MeshError FIELD_INVALID for anything else."""
    application, _, rest = text.partition("=")
    values = {"weight": 1.0, "min": 0.0}
    for part in rest.split(",") if rest else []:
        key, _, value = (one.strip() for one in part.partition(":"))
        if key not in values:
            raise _no_place(text)
        try:
            values[key] = float(value)
        except ValueError:
            raise _no_place(text) from None
    if not application or not math.isfinite(values["weight"]) or values["weight"] <= 0:
        raise _no_place(text)
    return ApplicationShare(application.strip(), values["weight"], values["min"])


def _no_place(text: str) -> Exception:
    return field_error("app", f"{text!r} is not an application's place, such as solder-joints=weight:5,min:0.1")
