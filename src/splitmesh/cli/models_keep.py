"""``splitmesh models hold | release | delete | gc | log``: what is kept, what goes, and who did what."""

from __future__ import annotations

from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.models_aliases import ByOption, MostOption, ReasonOption
from splitmesh.cli.models_shown import time_text
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.who import who
from splitmesh.client.registry import VersionInfo
from splitmesh.client.registry_values import Garbage, RegistryEvent
from splitmesh.errors import field_error

OneVersion = Annotated[str, typer.Argument(help="NAME:VERSION or NAME@ALIAS.")]
HolderOption = Annotated[str, typer.Option("--holder", help="Who holds it, such as deployment/line-4; else this user.")]
HOUR_S = 3600.0


def hold(
    model: OneVersion,
    holder: HolderOption = "",
    hours: Annotated[float, typer.Option(min=0, help="For so long; 0: until it is released.")] = 0.0,
    json: JsonOption = False,
) -> None:
    """Keep a version from being deleted while something uses it."""

    async def work() -> VersionInfo:
        async with channels() as opened:
            registry = registry_of(opened)
            version = await find_version(registry, _one(model))
            await registry.hold_version(version.model, version.version, holder or who(), hold_s=hours * HOUR_S)
            return version

    version = run(work())
    if json:
        show_json({"model": version.model, "version": version.version, "holder": holder or who(), "hours": hours})
        return
    until = f"for {hours:g} h" if hours else "until it is released"
    print(f"{version.model} version {version.version} is held by {holder or who()} {until}")


def release(model: OneVersion, holder: HolderOption = "", json: JsonOption = False) -> None:
    """Let a held version go."""

    async def work() -> VersionInfo:
        async with channels() as opened:
            registry = registry_of(opened)
            version = await find_version(registry, _one(model))
            await registry.release_version(version.model, version.version, holder or who())
            return await registry.get_version(version.model, version.version)

    version = run(work())
    if json:
        show_json({"model": version.model, "version": version.version, "holders": version.holders})
        return
    left = f"; still held by {', '.join(version.holders)}" if version.holders else ""
    print(f"{version.model} version {version.version} is not held by {holder or who()}{left}")


def delete(model: OneVersion, reason: ReasonOption = "", by: ByOption = "", json: JsonOption = False) -> None:
    """Delete a version for ever; refused while an alias points at it or somebody holds it."""

    async def work() -> VersionInfo:
        async with channels() as opened:
            registry = registry_of(opened)
            version = await find_version(registry, _one(model))
            await registry.delete_version(version.model, version.version, deleted_by=by or who(), reason=reason)
            return version

    version = run(work())
    if json:
        show_json({"model": version.model, "version": version.version, "deleted": True})
        return
    print(f"{version.model} version {version.version} is deleted; its contents go with the next collection")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False, json: JsonOption = False
) -> None:
    """Remove contents that no version and no dataset names; the registry does so by itself from time to time."""

    async def work() -> Garbage:
        async with channels() as opened:
            return await registry_of(opened).collect_garbage(dry_run=dry_run)

    found = run(work())
    if json:
        show_json(found)
        return
    verb = "would remove" if dry_run else "removed"
    young = f", {found.too_young} are too young to go" if found.too_young else ""
    print(f"{verb} {found.contents} contents of {found.size_bytes:,} bytes; {found.kept} are kept{young}")


def log(
    name: Annotated[str, typer.Argument(help="A model, a dataset or keyring; without it everything.")] = "",
    most: MostOption = 100,
    json: JsonOption = False,
) -> None:
    """Who did what and when, by which key and from where; the newest first."""

    async def ask() -> list[RegistryEvent]:
        async with channels() as opened:
            return await registry_of(opened).events(name, most=most)

    events = run(ask())
    if json:
        show_json(events)
        return
    rows = [
        [
            *(time_text(one.time), one.kind, one.subject, one.by),
            *(", ".join(key[:16] for key in one.key_ids), one.peer, one.detail),
        ]
        for one in events
    ]
    show_table("", ["at (UTC)", "what", "to", "by", "key", "from", "detail"], rows)


def _one(reference: str) -> str:
    """A version that was named: the newest one is no safe guess for what is about to go or stay."""
    if ":" not in reference and "@" not in reference:
        raise field_error("model", f"say which version: {reference}:VERSION or {reference}@ALIAS")
    return reference
