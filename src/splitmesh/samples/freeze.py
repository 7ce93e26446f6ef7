"""Samples to a dataset: which of them are pictures that somebody labelled. Knows records; dividing and the manifest are
``splitmesh.datasets``'."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from splitmesh.datasets.divide import SHARES, Split
from splitmesh.datasets.freeze import freeze_items
from splitmesh.datasets.item import Item
from splitmesh.datasets.manifest import Dataset
from splitmesh.samples.record import SampleRecord


def item_from_record(record: SampleRecord) -> Item | None:
    """The picture of a sample with what is said of it; None without a picture."""
    if record.picture is None:
        return None
    return Item(
        picture=record.picture,
        picture_bytes=record.picture_bytes,
        media_type=record.media_type,
        width=record.width,
        height=record.height,
        label=record.label or "",
        site=record.site,
        camera=record.camera,
        captured_at=record.captured_at,
        group=record.group,
        provenance=f"sample {record.id}",
        sample=record.id,
        labelled_by=record.labelled_by or "",
        name=record.id,
    )


def freeze(
    records: Iterable[SampleRecord],
    *,
    seed: int,
    shares: Mapping[Split, float] = SHARES,
    classes: Sequence[str] = (),
) -> Dataset:
    """A dataset of the records that have a label and a picture; arguments and errors as :func:`freeze_items`."""
    found = [item_from_record(record) for record in records]
    items = [item for item in found if item is not None]
    return freeze_items(items, seed=seed, shares=shares, classes=classes, without_picture=len(found) - len(items))
