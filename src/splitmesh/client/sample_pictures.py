"""Pictures of samples from the heads that keep them into the folder of their site. Knows no dataset and no rule of sharing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from splitmesh.client.samples import Content
from splitmesh.datasets.folder import PictureFolder
from splitmesh.errors import MeshError, Reason
from splitmesh.samples.record import SampleRecord

LOST = frozenset({Reason.SAMPLE_NOT_FOUND, Reason.ARTIFACT_NOT_FOUND, Reason.DIGEST_MISMATCH})
"""What costs one picture and not the others: the head let go of it meanwhile, or its bytes are no longer its own."""


class Source(Protocol):
    """Who has pictures: :class:`splitmesh.client.samples.SampleClient`."""

    async def content(self, sample_id: str, kind: Content = "picture") -> tuple[str, bytes]:
        """Media type and bytes."""
        ...


async def keep_pictures(
    source: Source, records: Sequence[SampleRecord], folder: PictureFolder, on_picture: Callable[[int, int], None]
) -> set[str]:
    """Takes the labelled pictures into the folder; ids of samples whose picture cannot be had any more.

    MeshError CONTENT_NOT_ALLOWED where a head keeps its pictures to itself, and what the folder raises.
    """
    wanted = [record for record in records if record.label is not None and record.picture is not None]
    lost: set[str] = set()
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
