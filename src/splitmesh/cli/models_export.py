"""``splitmesh models export``: a version for other tools, as an OCI image layout or in an MLflow registry."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitmesh.cli.connect import channels, find_version, registry_of
from splitmesh.cli.models_pull import LimitOption, pull_to
from splitmesh.cli.output import JsonOption, how_to_install, run, show_json
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.export.oci import Written, add_version
from splitmesh.export.oci_format import require_tag
from splitmesh.export.oci_staging import staging

if TYPE_CHECKING:
    from splitmesh.client.export_mlflow import MlflowVersion


def export(
    model: Annotated[str, typer.Argument(help="NAME, NAME:VERSION or NAME@ALIAS.")],
    oci: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of an OCI image layout; what is in it stays.")
    ] = None,
    mlflow: Annotated[str, typer.Option(help="Address of an MLflow server, such as http://mlflow:5000.")] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", help="For --oci: names in the layout, else NAME-VERSION and NAME-ALIAS."),
    ] = None,
    limit_mbit: LimitOption = None,
    json: JsonOption = False,
) -> None:
    """Write a version to an OCI layout or an MLflow registry; doing it again changes nothing."""
    if (oci is None) == (not mlflow):
        raise typer.BadParameter("give --oci FOLDER or --mlflow URI")
    if tag and oci is None:
        raise typer.BadParameter("--tag is for --oci")
    if oci is not None:
        version, done = run(_to_oci(model, oci, tag or [], limit_mbit))
        if json:
            show_json({"model": version.model, "version": version.version, "oci": oci, **_written(done)})
            return
        print(f"{version.model} version {version.version} is {done.digest} in {oci}: {', '.join(done.tags)}")
        return
    made, place = run(_to_mlflow(model, mlflow, limit_mbit))
    if json:
        show_json(made)
        return
    state = "registered" if made.created else "was there already"
    print(
        f"{made.model} version {made.version} {state}: version {made.mlflow_version} of {made.mlflow_model} in {place}"
    )


async def _to_oci(
    reference: str, layout: Path, tags: Sequence[str], limit_mbit: float | None
) -> tuple[VersionInfo, Written]:
    for one in tags:
        require_tag(one)
    async with channels() as opened:
        registry = registry_of(opened, limit_mbit)
        version = await find_version(registry, reference)
        wanted = tags or [f"{version.model}-{name}" for name in (version.version, *version.aliases)]
        # Inside the layout, so that an export that was cut off goes on where it stopped.
        with staging(layout, f"{version.model}-{version.version}") as folder:
            record = await pull_to(registry, version, folder)
            files = {name: folder / name for name in version.artifacts}
            done = await asyncio.to_thread(add_version, layout, record, files, wanted)
    return version, done


async def _to_mlflow(reference: str, uri: str, limit_mbit: float | None) -> tuple[MlflowVersion, str]:
    """Also what to call the server in front of people."""
    try:
        from splitmesh.client.export_mlflow import export_to_mlflow, without_secrets
    except ModuleNotFoundError as error:
        if error.name != "mlflow":
            raise
        raise MeshError(Reason.EXTRA_MISSING, f"--mlflow needs mlflow-skinny: {how_to_install('mlflow')}") from error
    async with channels() as opened:
        registry = registry_of(opened, limit_mbit)
        version = await find_version(registry, reference)
        with _scratch() as folder:
            record = await pull_to(registry, version, folder)
            return await asyncio.to_thread(export_to_mlflow, uri, record, folder), without_secrets(uri)


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="splitmesh-export-") as folder:
        yield Path(folder)


def _written(done: Written) -> dict[str, object]:
    return {"digest": done.digest, "tags": done.tags, "new_bytes": done.new_bytes, "signatures": done.signatures}
