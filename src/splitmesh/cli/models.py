"""``splitmesh models``: what is in the registry, and the table of commands about it."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated

import typer

from splitmesh.cli import (
    models_aliases,
    models_export,
    models_import,
    models_keep,
    models_lineage,
    models_pull,
    models_trust,
)
from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.models_shown import parts_rows, show_lineage, show_version, time_text
from splitmesh.cli.models_signers import Signer, known_keyring, signers
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.plan_files import fetch_plan, plan_lines, plan_value
from splitmesh.client.registry import ModelInfo, VersionInfo
from splitmesh.model.manifest import MANIFEST, Manifest
from splitmesh.model.plan_record import PlanRecord

app = typer.Typer(no_args_is_help=True, help="Models, versions and aliases in the registry.")

ModelArgument = Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")]


@app.command("list")
def list_(
    model: Annotated[str, typer.Argument(help="Only this model's versions.")] = "", json: JsonOption = False
) -> None:
    """List models, or the versions of one model."""

    async def ask() -> list[ModelInfo] | list[VersionInfo]:
        async with channels() as opened:
            registry = registry_of(opened)
            return await registry.list_versions(model) if model else await registry.list_models()

    found = run(ask())
    if json:
        show_json(found)
    elif model:
        columns = ["version", "parent", "made by", "aliases", "signed", "made (UTC)", "description"]
        show_table(model, columns, [_version_row(one) for one in found if isinstance(one, VersionInfo)])
    else:
        rows = [
            [one.name, one.latest_version, ", ".join(f"{alias}={at}" for alias, at in sorted(one.aliases.items()))]
            for one in found
            if isinstance(one, ModelInfo)
        ]
        show_table("", ["model", "latest", "aliases"], rows)


@app.command()
def show(model: ModelArgument, json: JsonOption = False) -> None:
    """Show one version: its parts, what it was made from, who signed it and who holds it."""

    async def look() -> tuple[VersionInfo, Manifest, list[Signer], PlanRecord | str | None]:
        async with channels() as opened:
            registry = registry_of(opened)
            version = await find_version(registry, model)
            # By digest, and not as one who uses it: an unsigned version must be there to be looked at.
            manifest = Manifest.from_json(await registry.pull_artifact(version.artifact(MANIFEST)))
            signed = signers(version, await known_keyring(registry))
            return version, manifest, signed, await fetch_plan(registry, version)

    version, manifest, signed, plan = run(look())
    if json:
        parts = {"version": version, "manifest": jsonlib.loads(manifest.to_json()), "signers": signed}
        show_json({**parts, "plan": plan_value(plan)})
        return
    show_version(version, False)
    if version.description:
        print(version.description)
    show_table("", ["part", "artefact", "bytes", "sha256"], parts_rows(version, manifest))
    _show_manifest(manifest)
    for line in plan_lines(plan, version.artifact(manifest.whole.artifact).sha256):
        print(line)
    show_lineage(version)
    if signed:
        rows = [[one.key_id[:16], one.name or "?", one.signed_at, one.verdict] for one in signed]
        show_table("", ["signed by key", "name", "at", "which is"], rows)
    else:
        print("not signed")
    if version.holders:
        print(f"held by {', '.join(version.holders)}")


def _version_row(version: VersionInfo) -> list[object]:
    return [
        *(version.version, version.parent or "", version.created_by, ", ".join(version.aliases)),
        *(len(version.signatures) or "", time_text(version.create_time), version.description),
    ]


def _show_manifest(manifest: Manifest) -> None:
    print(f"task {manifest.task}, classes: {', '.join(manifest.labels) or '-'}")
    if manifest.split:
        for hop in manifest.split.hops():
            wire = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in hop.wire)
            print(f"cut at {', '.join(t.name for t in hop.cut)}; crosses: {wire}")
        segments = "head + tail" if not manifest.split.middle else f"{len(manifest.split.segments())} segments"
        print(f"{segments} against the whole: max error {manifest.split.verification.max_abs_error:.2e}")
    for one in manifest.exits():
        print(f"exit: agrees on {one.holdout_agreement:.1%} of {one.holdout_samples} held-out samples")


app.command("import")(models_import.import_)
app.command()(models_pull.pull)
app.command()(models_export.export)
app.command()(models_lineage.lineage)
app.command()(models_aliases.promote)
app.command()(models_aliases.demote)
app.command()(models_aliases.history)
app.command()(models_keep.log)
app.command()(models_keep.hold)
app.command()(models_keep.release)
app.command()(models_keep.delete)
app.command()(models_keep.gc)
app.command()(models_trust.sign)
app.command()(models_trust.verify)
