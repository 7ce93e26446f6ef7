"""``splitmesh samples freeze``: labelled samples become a version of a dataset, and their pictures part of the site's folder."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from splitmesh.cli.datasets_import import publish, show_made
from splitmesh.cli.datasets_options import (
    DescriptionOption,
    FolderOption,
    PushOption,
    SeedOption,
    SharingOption,
    checked_name,
    shares_of,
    sharing_of,
    site_folder,
)
from splitmesh.cli.datasets_shown import pictures
from splitmesh.cli.models_aliases import ByOption
from splitmesh.cli.output import JsonOption, run
from splitmesh.cli.samples_options import (
    CameraOption,
    ClassesOption,
    DataDirOption,
    HeadOption,
    KindOption,
    ModelOption,
    SinceOption,
    UntilOption,
    class_names,
    filter_of,
)
from splitmesh.cli.samples_source import records_of, samples_of
from splitmesh.cli.who import who
from splitmesh.client.sample_pictures import keep_pictures
from splitmesh.datasets.manifest import Dataset
from splitmesh.samples.freeze import freeze as freeze_records

if TYPE_CHECKING:
    from splitmesh.client.datasets import DatasetVersionInfo


def freeze(
    name: Annotated[str, typer.Argument(help="Of the dataset.")],
    shares: Annotated[str, typer.Option("--split", help="Shares of train, val and test.")] = "0.8,0.1,0.1",
    seed: SeedOption = 0,
    model: ModelOption = "",
    camera: CameraOption = None,
    kind: KindOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    classes: ClassesOption = None,
    parent: Annotated[int, typer.Option(min=0, help="Version that this one derives from.")] = 0,
    description: DescriptionOption = "",
    by: ByOption = "",
    push: PushOption = True,
    folder: FolderOption = None,
    sharing: SharingOption = None,
    head: HeadOption = "",
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version of a dataset of all labelled pictures, which go on lying in this site's folder when heads let go of them."""

    async def make() -> tuple[Dataset, int, DatasetVersionInfo | None]:
        checked_name(name)
        wanted_shares, names = shares_of(shares), class_names(classes)
        if push and sharing is not None:
            sharing_of(sharing).require_manifest(name)
        wanted = filter_of(model, camera, kind, None, None, since, until)
        site_pictures = site_folder(folder)
        with site_pictures.taking_in():
            async with samples_of(head, data_dir) as source:
                records = await records_of(source, wanted)
                with pictures("keeping") as on_picture:
                    lost = await keep_pictures(source, records, site_pictures, on_picture)
            found = [record for record in records if record.id not in lost]
            dataset = freeze_records(found, seed=seed, shares=wanted_shares, classes=names)
            sha256 = await asyncio.to_thread(site_pictures.keep_manifest, dataset)
        info = await publish(dataset, sha256, name, parent, by or who(), description) if push else None
        return dataset, len(lost), info

    dataset, lost, info = run(make())
    show_made(dataset, info, json)
    if lost and not json:
        print(f"left out: {lost:,} whose picture was gone or damaged where it was kept")
