"""``splitmesh datasets import | split``: a version of a dataset from another tool's files, or from another version."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from splitmesh.cli.connect import channels
from splitmesh.cli.datasets_options import (
    LOCAL,
    DatasetArgument,
    DescriptionOption,
    FolderOption,
    PushOption,
    SeedOption,
    SharingOption,
    checked_name,
    datasets_of,
    find_dataset,
    shares_of,
    sharing_of,
    site_folder,
)
from splitmesh.cli.datasets_shown import described, pictures, show_description, version_line
from splitmesh.cli.models_aliases import ByOption
from splitmesh.cli.output import JsonOption, run, show_json
from splitmesh.cli.samples_options import class_names
from splitmesh.cli.who import who
from splitmesh.datasets.divide import SHARES
from splitmesh.datasets.files import FORMS, Options, PictureItem, Read, read
from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import Item, items_of
from splitmesh.datasets.manifest import Dataset
from splitmesh.datasets.near import near_duplicates
from splitmesh.datasets.problems import Problems
from splitmesh.datasets.statistics import describe
from splitmesh.datasets.together import together
from splitmesh.errors import MeshError, field_error

if TYPE_CHECKING:
    from splitmesh.client.datasets import DatasetVersionInfo

KEEP = "keep"
MAX_ALIKE = 500_000
"""Pairs of pictures that look the same, of which all have to be known to be put together."""


def import_(
    source: Annotated[Path, typer.Argument(exists=True, help="A folder, or the file that describes one.")],
    name: Annotated[str, typer.Option(help="Of the dataset.")],
    form: Annotated[str, typer.Option(help=f"{', '.join(FORMS)}.")],
    task: Annotated[str, typer.Option(help="classification or detection; else what the form holds.")] = "",
    site: Annotated[str, typer.Option(help="Where the pictures are from, unless the form says.")] = "",
    camera: Annotated[str, typer.Option(help="Of all pictures, unless the form says.")] = "",
    exif: Annotated[bool, typer.Option("--exif", help="Take times and cameras from EXIF.")] = False,
    group_by: Annotated[
        str,
        typer.Option(
            help="What must not be parted: folder, camera-hour, column, or regex:PATTERN on names. Else the form's groups, the "
            "camera's hour, or each picture alone.",
            show_default=False,
        ),
    ] = "",
    group_column: Annotated[str, typer.Option(help="Of a table: the column of groups.", show_default=False)] = "",
    label_column: Annotated[str, typer.Option(help="Of a table: the column of labels.", show_default=False)] = "",
    split: Annotated[
        str, typer.Option(help="keep (the form's splits; the rest is drawn), or shares such as 0.8,0.1,0.1.")
    ] = KEEP,
    seed: SeedOption = 0,
    classes: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The labels there may be, in order: JSON list or one a line."),
    ] = None,
    labelled_by: Annotated[str, typer.Option(help="Who labelled it.")] = "",
    parent: Annotated[int, typer.Option(min=0, help="Version that this one derives from.")] = 0,
    description: DescriptionOption = "",
    by: ByOption = "",
    push: PushOption = True,
    folder: FolderOption = None,
    sharing: SharingOption = None,
    json: JsonOption = False,
) -> None:
    """Take a dataset in: pictures into this site's folder, the manifest into the registry; all of it or nothing."""
    options = Options(
        task=task,
        site=site,
        camera=camera,
        labelled_by=labelled_by,
        exif=exif,
        keep_splits=split == KEEP,
        group_by=group_by,
        label_column=label_column,
        group_column=group_column,
    )

    async def take() -> tuple[Dataset, DatasetVersionInfo | None]:
        checked_name(name)
        shares = SHARES if split == KEEP else shares_of(split)
        rules = sharing_of(sharing)
        if push and sharing is not None:
            rules.require_manifest(name)
        found = await asyncio.to_thread(_read, source, form, options)
        names = class_names(classes) or found.classes
        items = [one.item for one in found.pictures]
        dataset = freeze_items(items, task=found.task, seed=seed, shares=shares, classes=names)
        if not dataset.entries:
            raise field_error("source", f"{source.name!r} has no picture with a label")
        site_pictures = site_folder(folder)
        with site_pictures.taking_in():
            await asyncio.to_thread(_keep, dataset, found.pictures, site_pictures)
            sha256 = await asyncio.to_thread(site_pictures.keep_manifest, dataset)
        return dataset, await publish(dataset, sha256, name, parent, by or who(), description) if push else None

    show_made(*run(take()), json)


def split(
    dataset: DatasetArgument,
    shares: Annotated[str, typer.Option("--split", help="Shares of train, val and test.")] = "0.8,0.1,0.1",
    seed: SeedOption = 0,
    alike_together: Annotated[
        bool,
        typer.Option(
            "--alike-together", help="Put the groups of pictures that look the same together; see duplicates."
        ),
    ] = False,
    description: DescriptionOption = "",
    by: ByOption = "",
    push: PushOption = True,
    folder: FolderOption = None,
    sharing: SharingOption = None,
    json: JsonOption = False,
) -> None:
    """Divide a dataset anew into another version; what belongs together stays together."""

    async def divide() -> tuple[Dataset, DatasetVersionInfo | None]:
        wanted, site_pictures = shares_of(shares), site_folder(folder)
        with site_pictures.taking_in():
            async with channels() as opened:
                chosen = await find_dataset(dataset, site_pictures, datasets_of(opened))
            if push and chosen.info is None:
                raise field_error("dataset", "has no name: give NAME:VERSION, or --no-push")
            if push and sharing is not None:
                sharing_of(sharing).require_manifest(chosen.name)
            old = chosen.dataset
            items = list(items_of(old, keep_splits=False))
            if alike_together:
                items = await asyncio.to_thread(_alike_together, old, items, site_pictures)
            made = freeze_items(items, task=old.task, seed=seed, shares=wanted, classes=old.classes)
            sha256 = await asyncio.to_thread(site_pictures.keep_manifest, made)
        parent = chosen.info.version if chosen.info else 0
        text = description or f"divided {shares} with seed {seed}"
        return made, await publish(made, sha256, chosen.name, parent, by or who(), text) if push else None

    show_made(*run(divide()), json)


def _alike_together(dataset: Dataset, items: Sequence[Item], folder: PictureFolder) -> list[Item]:
    with pictures("comparing") as on_picture:
        near = near_duplicates(dataset.entries, folder.read, max_pairs=MAX_ALIKE, on_progress=on_picture)
    if near.found > len(near.pairs) or not near.complete:
        raise field_error("dataset", f"has {near.found} pairs that look the same, too many to put all of them together")
    if near.left_out:
        print(f"note: {near.left_out:,} pictures are not here or cannot be compared", file=sys.stderr)
    return together(items, near.pairs)


def _read(source: Path, form: str, options: Options) -> Read:
    with Problems("source", f"{source.name!r} cannot be imported") as problems, pictures("reading") as on_picture:
        return read(source, form, problems, options, on_picture)  # type: ignore[arg-type]  # it checks the form


def _keep(dataset: Dataset, found: Sequence[PictureItem], folder: PictureFolder) -> None:
    paths: Mapping[str, Path] = {one.item.picture: one.path for one in found}
    with pictures("keeping") as on_picture:
        for done, entry in enumerate(dataset.entries, 1):
            if not folder.renew(entry.picture):
                path = paths[entry.picture]
                try:
                    kept = folder.add(path.read_bytes())
                except OSError as error:
                    raise field_error("source", f"{path.name!r} cannot be read: {error.strerror}") from error
                if kept != entry.picture:
                    raise field_error("source", f"{path.name!r} changed while it was read")
            on_picture(done, len(dataset.entries))


async def publish(
    dataset: Dataset, sha256: str, name: str, parent: int, by: str, description: str
) -> DatasetVersionInfo:
    """Makes a version of a manifest that this site has kept."""
    try:
        async with channels() as opened:
            client = datasets_of(opened)
            return await client.create(name, dataset, created_by=by, parent=parent, description=description)
    except MeshError as error:
        error.message += f" (it is kept here: splitmesh datasets push {LOCAL}{sha256[:16]} --name {name})"
        raise


def show_made(dataset: Dataset, info: DatasetVersionInfo | None, json: bool) -> None:
    """What was made, and what was left out of it."""
    if json:
        left_out = dataset.statistics.model_dump(exclude={"splits"})
        show_json({"manifest": dataset.id, "version": info, "left_out": left_out, "statistics": described(dataset)})
        return
    print(version_line(info) if info else f"kept here, not in the registry: {LOCAL}{dataset.id}")
    show_description(describe(dataset))
    told = {"unlabelled": "without a label", "repeated": "the same picture again"}
    for field, words in told.items():
        if count := getattr(dataset.statistics, field):
            print(f"left out: {count:,} {words}")
