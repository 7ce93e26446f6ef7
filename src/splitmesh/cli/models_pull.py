"""``splitmesh models pull``: a version's files in a folder, with the record that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.models_shown import show_version, transfer
from splitmesh.cli.output import JsonOption, run
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.export.files import write_file
from splitmesh.export.record import RECORD, FileDigest, VersionRecord

LimitOption = Annotated[
    float | None,
    typer.Option("--limit-mbit", min=0.001, help="Take no more of the link than this, Mbit/s.", show_default=False),
]


def pull(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the artefacts.")],
    base: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder with another version: only what differs is fetched."),
    ] = None,
    limit_mbit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Download a version's artefacts; an interrupted pull goes on where it stopped."""

    async def fetch() -> VersionInfo:
        async with channels() as opened:
            registry = registry_of(opened, limit_mbit)
            version = await find_version(registry, model)
            await pull_to(registry, version, out, base)
            return version

    show_version(run(fetch()), json)


async def pull_to(registry: RegistryClient, version: VersionInfo, out: Path, base: Path | None = None) -> VersionRecord:
    """The version's files and its record in ``out``; raises as :meth:`RegistryClient.pull_version`."""
    with transfer(f"{version.model}:{version.version}") as on_progress:
        await registry.pull_version(version, out, base=base, on_progress=on_progress)
    record = record_of(version)
    write_file(out / RECORD, record.to_json())
    return record


def record_of(version: VersionInfo) -> VersionRecord:
    """What the registry knows, as a file."""
    return VersionRecord(
        model=version.model,
        version=version.version,
        parent=version.parent,
        artifacts={name: FileDigest(ref.sha256, ref.size_bytes) for name, ref in version.artifacts.items()},
        created_by=version.created_by,
        create_time=version.create_time,
        description=version.description,
        aliases=version.aliases,
        lineage=version.lineage,
        signatures=version.signatures,
    )
