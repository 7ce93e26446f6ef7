"""Where the `splitmesh samples` commands find samples: at heads, over the wire, or in a head's own folder on its host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from splitmesh.cli.connect import channels
from splitmesh.client.heads import listed_heads
from splitmesh.client.sample_messages import CONTENTS, FEATURES_MEDIA_TYPE
from splitmesh.client.samples import Content, SampleClient, SampleCounts, SampleInfo
from splitmesh.errors import field_error
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX
from splitmesh.samples.beside import Beside, folders_of
from splitmesh.samples.kept import Filter, LabelEntry
from splitmesh.samples.record import SampleRecord
from splitmesh.samples.tables import FILE
from splitmesh.samples.thumbnail import MEDIA_TYPE, thumbnail

MAX_PIXELS = 1 << 28
"""Of a picture that is made small here: what was kept has passed its head's own limit, which this host does not know."""


class Source(Protocol):
    """What a command may ask. :class:`SampleClient` is one."""

    def all(self, wanted: Filter | None = None) -> AsyncGenerator[SampleInfo]:
        """Newest first."""
        ...

    async def get(self, sample_id: str) -> tuple[SampleInfo, Sequence[LabelEntry]]:
        """With the history of its labels."""
        ...

    async def content(self, sample_id: str, kind: Content = "picture") -> tuple[str, bytes]:
        """Media type and bytes."""
        ...

    async def label(self, labels: Mapping[str, str | None], by: str) -> int:
        """All or none; how many say anything new."""
        ...

    async def counts(self) -> Sequence[SampleCounts]:
        """Of each head."""
        ...


async def records_of(source: Source, wanted: Filter) -> list[SampleRecord]:
    """All at once."""
    async with aclosing(source.all(wanted)) as samples:
        return [sample.record async for sample in samples]


class Here:
    """A head's folders on this host. A head that runs goes on: reading takes no lock, and labels are short transactions."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._samples = Beside(lambda: _folders(data_dir))

    async def all(self, wanted: Filter | None = None) -> AsyncGenerator[SampleInfo]:
        """Newest first."""
        token = ""
        while True:
            page = await asyncio.to_thread(self._samples.list, wanted, page_token=token, page_size=500)
            for sample in page.samples:
                yield SampleInfo(sample.record, sample.duplicates)
            token = page.next_page_token
            if not token:
                return

    async def get(self, sample_id: str) -> tuple[SampleInfo, Sequence[LabelEntry]]:
        """With the history of its labels."""
        sample, history = await asyncio.to_thread(self._samples.with_history, sample_id)
        return SampleInfo(sample.record, sample.duplicates), history

    async def content(self, sample_id: str, kind: Content = "picture") -> tuple[str, bytes]:
        """Media type and bytes; everything is allowed to who may read the folder."""
        return await asyncio.to_thread(self._content, sample_id, kind)

    async def label(self, labels: Mapping[str, str | None], by: str) -> int:
        """All or none; how many say anything new."""
        return await asyncio.to_thread(self._samples.label_all, labels, by, datetime.now(UTC))

    async def counts(self) -> Sequence[SampleCounts]:
        """Of the folders together, by the name of the `data_dir`."""
        found = await asyncio.to_thread(self._samples.counts)
        evicted = {f"EVICTED_{what.upper()}": n for what, n in found.evicted.items()}
        return [
            SampleCounts(
                head=str(self._data_dir),
                samples=found.records,
                labelled=found.labelled,
                content_bytes=found.content_bytes,
                duplicates=found.duplicates,
                dropped={**found.dropped, **evicted},
                by_camera=found.by_camera,
                by_label=found.by_label,
                allowed=tuple(sorted(CONTENTS)),
            )
        ]

    def _content(self, sample_id: str, kind: Content) -> tuple[str, bytes]:
        if kind == "features":
            return FEATURES_MEDIA_TYPE, self._samples.features(sample_id)
        picture = self._samples.picture(sample_id)
        if kind == "thumbnail":
            return MEDIA_TYPE, thumbnail(picture, max_pixels=MAX_PIXELS)
        return self._samples.get(sample_id).record.media_type, picture


@asynccontextmanager
async def samples_of(heads: str, data_dir: Path | None) -> AsyncIterator[Source]:
    """The samples of a `data_dir` on this host, else of the heads named, else of those of SPLITMESH_HEAD, else of all that
    discovery knows, on this machine without any setting.

    MeshError FIELD_INVALID for both, and for a folder without samples.
    """
    if data_dir is not None:
        if heads:
            raise field_error("data-dir", "stands beside --head: samples come from a folder or from heads")
        if not _folders(data_dir):
            raise field_error("data-dir", f"{data_dir} holds no samples: there is no {Path('samples', FILE)} in it")
        yield Here(data_dir)
        return
    heads = heads or os.environ.get(f"{ENV_PREFIX}HEAD", "")
    if not heads:
        async with channels() as opened:
            yield SampleClient(opened)
        return
    opened = Channels(listed_heads(heads))
    try:
        yield SampleClient(opened)
    finally:
        await opened.close()
        await opened.discovery.close()


def _folders(data_dir: Path) -> list[Path]:
    """Those that hold samples; ``data_dir`` may be the folder of the samples itself."""
    return [folder for folder in (data_dir, *folders_of(data_dir)) if (folder / FILE).is_file()]
