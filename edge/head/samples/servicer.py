"""SampleService on a head: what it has kept, for those who label and train.

Every process of a head has a folder of its own, and a call through their common port reaches any of them; so each serves the
folders of all, its own like its siblings': reading takes no lock, and labels are transactions of SQLite, which keeps several
writers apart (``splitmesh.samples.beside``). Pictures, thumbnails and features leave the head only where `sample_sharing` says
so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from edge.head.config import HeadSettings
from edge.head.disk import DiskCalls
from splitmesh.api.samples.v1 import samples_pb2 as pb
from splitmesh.api.samples.v1 import samples_pb2_grpc
from splitmesh.client.sample_messages import (
    CONTENT_OF,
    CONTENTS,
    FEATURES_MEDIA_TYPE,
    change_to,
    filter_of,
    sample_to,
)
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.server import Binding
from splitmesh.samples.beside import Beside, folders_beside
from splitmesh.samples.thumbnail import MEDIA_TYPE, thumbnail

T = TypeVar("T")

SERVICE = pb.DESCRIPTOR.services_by_name["SampleService"].full_name

DISK_S = 8.0
"""For what one call does on the disk: less than the ten seconds that a client waits when it says nothing else."""
IDLE_S = 30.0
THREADS = 2
CHUNK_BYTES = 1 << 20
DEFAULT_PAGE = 100
MAX_LABELS = 10_000
CONTENTS_AT_ONCE = 4
"""Contents held in memory."""


class SampleServicer(samples_pb2_grpc.SampleServiceServicer):
    """One head's samples. Every method raises UNIMPLEMENTED on a head that keeps none (`samples` is off), SERVICE_UNAVAILABLE
    when a folder cannot be read, and DEADLINE_EXPIRED when the disk takes too long.

    Args:
        settings: where the samples are, and what of them may leave.
        now: the time of a label, UTC.
        disk_s: longest wait for the disk, seconds.
        idle_s: longest wait for a client that reads nothing, seconds.
    """

    def __init__(
        self,
        settings: HeadSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        disk_s: float = DISK_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._settings = settings
        self._samples = Beside(lambda: folders_beside(settings.data_dir))
        self._allowed = settings.shared_contents()
        self._now = now
        self._disk_s = disk_s
        self._idle_s = idle_s
        self._disk = DiskCalls(THREADS, "samples-served")
        self._contents = asyncio.Semaphore(CONTENTS_AT_ONCE)

    async def start(self) -> None:
        """Nothing to begin: folders are opened by each call."""

    async def stop(self) -> None:
        """Nothing to end: whoever waits for the disk is cancelled with its call."""

    async def ListSamples(self, request: pb.ListSamplesRequest, context: Any) -> pb.ListSamplesResponse:
        """Newest first."""
        size = request.page_size or DEFAULT_PAGE
        wanted = filter_of(request.filter)
        page = await self._do(partial(self._samples.list, wanted, page_token=request.page_token, page_size=size))
        return pb.ListSamplesResponse(
            samples=[sample_to(sample.record, sample.duplicates) for sample in page.samples],
            next_page_token=page.next_page_token,
        )

    async def GetSample(self, request: pb.GetSampleRequest, context: Any) -> pb.GetSampleResponse:
        """With the history of its labels."""
        sample, history = await self._do(partial(self._samples.with_history, request.id))
        return pb.GetSampleResponse(
            sample=sample_to(sample.record, sample.duplicates), history=[change_to(entry) for entry in history]
        )

    async def GetContent(self, request: pb.GetContentRequest, context: Any) -> None:  # type: ignore[override]
        """Where it may leave, in chunks."""
        kind = CONTENT_OF.get(request.kind)
        if kind is None:
            raise field_error("kind", f"is {request.kind}, which is no kind of content")
        if kind not in self._allowed:
            raise MeshError(
                Reason.CONTENT_NOT_ALLOWED,
                f"{kind}s do not leave this head: `sample_sharing` allows {', '.join(sorted(self._allowed)) or 'nothing'}",
                metadata={"kind": kind},
            )
        async with self._turn():
            media_type, data = await self._do(partial(self._content, request.id, kind))
            first = pb.GetContentResponse(media_type=media_type, size_bytes=len(data), data=data[:CHUNK_BYTES])
            await self._send(context, first)
            for at in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
                await self._send(context, pb.GetContentResponse(data=data[at : at + CHUNK_BYTES]))

    async def LabelSample(self, request: pb.LabelSampleRequest, context: Any) -> pb.LabelSampleResponse:
        """All or none."""
        if len(request.labels) > MAX_LABELS:
            raise field_error("labels", f"has {len(request.labels)} entries; at most {MAX_LABELS} are taken at once")
        labels: dict[str, str | None] = {}
        for choice in request.labels:
            if labels.setdefault(choice.id, choice.label or None) != (choice.label or None):
                raise field_error("labels", f"names two labels for the sample {choice.id[:40]!r}")
        changed = await self._do(partial(self._samples.label_all, labels, request.by, self._now()))
        return pb.LabelSampleResponse(changed=changed)

    async def GetSampleCounts(self, request: pb.GetSampleCountsRequest, context: Any) -> pb.GetSampleCountsResponse:
        """Of all processes behind this port."""
        counts = await self._do(self._samples.counts)
        evicted = {f"EVICTED_{what.upper()}": n for what, n in counts.evicted.items()}
        return pb.GetSampleCountsResponse(
            samples=counts.records,
            labelled=counts.labelled,
            bytes=counts.content_bytes,
            duplicates=counts.duplicates,
            dropped={**counts.dropped, **evicted},
            by_camera=counts.by_camera,
            by_label=counts.by_label,
            allowed=[CONTENTS[kind] for kind in sorted(self._allowed)],
            head=self._head(),
        )

    def _head(self) -> str:
        """The node's name without the number that tells it from its siblings."""
        folder, node = self._settings.data_dir.name, self._settings.node
        return node.removesuffix(folder.removeprefix("replica")) if folder.startswith("replica-") else node

    def _content(self, sample_id: str, kind: str) -> tuple[str, bytes]:
        if kind == "features":
            return FEATURES_MEDIA_TYPE, self._samples.features(sample_id)
        picture = self._samples.picture(sample_id)
        if kind == "thumbnail":
            return MEDIA_TYPE, thumbnail(picture, max_pixels=self._settings.max_pixels)
        return self._samples.get(sample_id).record.media_type, picture

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._disk_s):
                await self._contents.acquire()
        except TimeoutError as error:
            raise MeshError(
                Reason.QUEUE_FULL, f"{CONTENTS_AT_ONCE} contents are on their way already", retry_after_s=1.0
            ) from error
        try:
            yield
        finally:
            self._contents.release()

    async def _send(self, context: Any, chunk: pb.GetContentResponse) -> None:
        try:
            async with asyncio.timeout(self._idle_s):
                await context.write(chunk)
        except TimeoutError as error:
            raise MeshError(Reason.DEADLINE_EXPIRED, f"the client read nothing for {self._idle_s:g} s") from error

    async def _do(self, work: Callable[[], T]) -> T:
        """In a thread, for as long as the disk is given."""
        if not self._settings.samples:
            raise MeshError(
                Reason.UNIMPLEMENTED, f"{self._settings.node!r} keeps no samples: its setting `samples` is off"
            )
        try:
            async with asyncio.timeout(self._disk_s):
                return await self._disk.do(work)
        except TimeoutError as error:
            raise MeshError(
                Reason.DEADLINE_EXPIRED, f"the disk of the samples did not answer in {self._disk_s:g} s"
            ) from error


def binding(servicer: SampleServicer) -> Binding:
    """The service for a server."""
    return Binding(SERVICE, lambda server: samples_pb2_grpc.add_SampleServiceServicer_to_server(servicer, server))
