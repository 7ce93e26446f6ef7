"""``splitmesh datasets``: which pictures, labelled and divided how; at this site and in the registry."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitmesh.cli import datasets_files, datasets_import, datasets_sync
from splitmesh.cli.connect import channels
from splitmesh.cli.datasets_diff import Difference, difference, show_difference
from splitmesh.cli.datasets_options import (
    LOCAL,
    Chosen,
    DatasetArgument,
    FolderOption,
    datasets_of,
    find_dataset,
    local_manifest,
    name_and_version,
    site_folder,
)
from splitmesh.cli.datasets_shown import described, pictures, show_description, show_light, version_line
from splitmesh.cli.models_aliases import ByOption, ReasonOption
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.cli.who import who
from splitmesh.datasets.folder import UNREADABLE, PictureFolder
from splitmesh.datasets.statistics import Light, describe, measure_light
from splitmesh.errors import MeshError, field_error

if TYPE_CHECKING:
    from splitmesh.client.datasets import DatasetInfo, DatasetVersionInfo

app = typer.Typer(
    no_args_is_help=True, help="Datasets: import, export, divide, compare, and sync between sites and cloud."
)
app.command("import")(datasets_import.import_)


@app.command("list")
def list_(
    dataset: Annotated[str, typer.Argument(help="Only this dataset's versions.")] = "",
    here: Annotated[bool, typer.Option("--here", help="Manifests at this site instead; needs no registry.")] = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """List datasets, or the versions of one, or what is at this site."""
    if here:
        run(_list_here(folder, json))
        return

    async def work() -> tuple[list[DatasetInfo], list[DatasetVersionInfo]]:
        async with channels() as opened:
            client = datasets_of(opened)
            return ([], list(await client.versions(dataset))) if dataset else (await client.list(), [])

    found, versions = run(work())
    if json:
        show_json(versions if dataset else found)
    elif dataset:
        columns = ["version", "parent", "task", "pictures", "train", "val", "test", "MB", "made by", "made (UTC)"]
        show_table(dataset, [*columns, "description"], [_version_row(one) for one in versions])
    else:
        rows = [[one.name, one.latest_version, f"{one.create_time:%Y-%m-%d %H:%M:%S}"] for one in found]
        show_table("" if rows else "no datasets", ["dataset", "latest", "first made (UTC)"], rows)


async def _list_here(folder: Path | None, json: bool) -> None:
    kept = site_folder(folder)
    rows = [await asyncio.to_thread(_row_here, kept, digest) for digest in kept.manifests()]
    if json:
        show_json(rows)
        return
    table = [
        [
            str(row["manifest"])[:23],
            row.get("task", ""),
            row.get("pictures", ""),
            row.get("pictures_here", ""),
            row.get("problem") or ", ".join(row["classes"][:10]),
        ]
        for row in rows
    ]
    show_table("" if rows else "nothing here", ["manifest", "task", "pictures", "here", "classes"], table)


def _row_here(kept: PictureFolder, digest: str) -> dict[str, Any]:
    row: dict[str, Any] = {"manifest": f"{LOCAL}{digest}"}
    try:
        one = kept.manifest(digest)
    except MeshError as error:
        if error.reason not in UNREADABLE:
            raise
        return {**row, "problem": f"cannot be read: {error.message}"}
    here = len(one.entries) - len(kept.missing(entry.picture for entry in one.entries))
    figures = {"task": one.task, "pictures": len(one.entries), "pictures_here": here}
    return {**row, **figures, "classes": list(one.classes)}


def _version_row(one: DatasetVersionInfo) -> list[object]:
    counts = {split.split: split.pictures for split in one.splits}
    splits = [counts.get(split, 0) for split in ("train", "val", "test")]
    made = f"{one.create_time:%Y-%m-%d %H:%M:%S}"
    figures = [one.version, one.parent or "", one.task, one.pictures, *splits, one.picture_bytes / 1e6]
    return [*figures, one.created_by, made, one.description]


@app.command()
def show(
    dataset: DatasetArgument,
    light: Annotated[bool, typer.Option("--light", help="Also brightness and contrast of the pictures here.")] = False,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Show a version: splits, classes, sites, cameras, sizes, and where its pictures are."""

    async def work() -> tuple[Chosen, int, Light | None]:
        here = site_folder(folder)
        async with channels() as opened:
            chosen = await find_dataset(dataset, here, datasets_of(opened), count_pictures=True)
        missing = await asyncio.to_thread(here.missing, [entry.picture for entry in chosen.dataset.entries])
        if not light:
            return chosen, len(missing), None
        with pictures("looking") as on_progress:
            measured = await asyncio.to_thread(measure_light, chosen.dataset, here.read, on_progress=on_progress)
        return chosen, len(missing), measured

    chosen, missing, measured = run(work())
    total = len(chosen.dataset.entries)
    if json:
        figures = {"manifest": chosen.sha256, "pictures_at_site": total - missing, "light": measured}
        show_json({"version": chosen.info, **figures, "statistics": described(chosen.dataset)})
        return
    print(version_line(chosen.info) if chosen.info else f"{LOCAL}{chosen.sha256}")
    show_description(describe(chosen.dataset))
    if measured is not None:
        show_light(measured)
    there = chosen.info.pictures_here if chosen.info else None
    known = f", {there:,} in the registry" if there is not None else ""
    print(f"of {total:,} pictures {total - missing:,} are at this site{known}")
    if chosen.info and there is None:
        print("how many are in the registry takes longer to count: ask again later")


@app.command()
def diff(
    one: DatasetArgument,
    other: DatasetArgument,
    most: Annotated[int, typer.Option(min=0, help="Pictures that are told of each kind.")] = 20,
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Compare two versions: pictures added, removed, labelled otherwise, moved between splits."""

    async def work() -> tuple[Chosen, Chosen, Difference]:
        here = site_folder(folder)
        async with channels() as opened:
            client = datasets_of(opened)
            first, second = await find_dataset(one, here, client), await find_dataset(other, here, client)
        return first, second, difference(first.dataset, second.dataset)

    first, second, found = run(work())
    if json:
        show_json({"one": first.title, "other": second.title, "difference": found})
        return
    show_difference(f"{first.title} -> {second.title}", found, most)


@app.command()
def delete(
    dataset: DatasetArgument,
    reason: ReasonOption = "",
    even_if_used: Annotated[
        bool, typer.Option("--even-if-used", help="Also when a model's lineage names it: somebody's pictures must go.")
    ] = False,
    by: ByOption = "",
    folder: FolderOption = None,
    json: JsonOption = False,
) -> None:
    """Take a version away, in the registry and, where no other version names it, its manifest here; or, by its digest, only a
    manifest here. Pictures go with `gc`, in the registry by themselves."""

    async def work() -> tuple[str, bool]:
        here = site_folder(folder)
        if dataset.startswith(LOCAL):
            sha256 = local_manifest(dataset, here)
            return f"{LOCAL}{sha256[:16]}", here.drop_manifest(sha256)
        name, version = name_and_version(dataset)
        if not version:
            raise field_error("dataset", f"say which version: {dataset}:VERSION")
        async with channels() as opened:
            client = datasets_of(opened)
            sha256 = (await client.get(name, version)).manifest.sha256
            kept_at = here.kept_at(sha256)
            unused = await client.delete(
                name, version, deleted_by=by or who(), reason=reason, even_if_used=even_if_used
            )
        # Whoever keeps the manifest again meanwhile is making another version of it.
        return dataset, unused and bool(kept_at) and here.drop_manifest(sha256, kept_at=kept_at)

    title, dropped = run(work())
    if json:
        show_json({"dataset": title, "deleted": True, "manifest_dropped": dropped})
        return
    gone = "pictures that only it named go with the next collection" if dropped else "no manifest was dropped here"
    print(f"{title} is deleted; {gone}")


app.command()(datasets_import.split)
app.command()(datasets_files.export)
app.command()(datasets_files.duplicates)
app.command()(datasets_files.verify)
app.command()(datasets_files.gc)
app.command()(datasets_sync.push)
app.command()(datasets_sync.pull)
