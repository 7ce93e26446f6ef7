"""``splitmesh samples freeze``: labelled samples become a version of a dataset, and their pictures part of the site's folder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
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
from splitmesh.cli.samples_source import Source, records_of, samples_of
from splitmesh.cli.who import who
from splitmesh.datasets.folder import PictureFolder
from splitmesh.datasets.manifest import Dataset
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.freeze import freeze as freeze_records
from splitmesh.samples.record import SampleRecord

if TYPE_CHECKING:
    from splitmesh.client.datasets import DatasetVersionInfo

LOST = frozenset({Reason.SAMPLE_NOT_FOUND, Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH})
"""What costs one picture and not the others: the head let go of it meanwhile, or its bytes are no longer its own."""


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
                lost = await _keep(source, records, site_pictures)
            found = [record for record in records if record.id not in lost]
            dataset = freeze_records(found, seed=seed, shares=wanted_shares, classes=names)
            sha256 = await asyncio.to_thread(site_pictures.keep_manifest, dataset)
        info = await publish(dataset, sha256, name, parent, by or who(), description) if push else None
        return dataset, len(lost), info

    dataset, lost, info = run(make())
    show_made(dataset, info, json)
    if lost and not json:
        print(f"left out: {lost:,} whose picture was gone or damaged where it was kept")


async def _keep(source: Source, records: Sequence[SampleRecord], folder: PictureFolder) -> set[str]:
    """Takes the labelled pictures into the folder; ids of samples whose picture cannot be had any more.

    MeshError CONTENT_NOT_ALLOWED where a head keeps its pictures to itself.
    """
    wanted = [record for record in records if record.label is not None and record.picture is not None]
    lost: set[str] = set()
    with pictures("keeping") as on_picture:
        for done, record in enumerate(wanted, 1):
            if not await asyncio.to_thread(folder.renew, record.picture or ""):
                try:
                    _, data = await source.content(record.id)
                    kept = await asyncio.to_thread(folder.add, data)
                except MeshError as error:
                    if error.reason not in LOST:
                        raise
                    kept = ""
                if kept != record.picture:
                    lost.add(record.id)
            on_picture(done, len(wanted))
    return lost
