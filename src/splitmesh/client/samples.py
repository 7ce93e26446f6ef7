"""An operator's side of the samples that heads keep: list, look at, label. All heads that discovery knows are one collection.

Processes behind one port answer for each other, so a sample may be told by several; it is one here. A head that keeps no samples
(UNIMPLEMENTED) is passed over, unless it is the only one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeVar

import grpc

from splitmesh.api.samples.v1 import samples_pb2 as pb
from splitmesh.api.samples.v1 import samples_pb2_grpc
from splitmesh.client.sample_messages import CONTENT_OF, CONTENTS, change_of, filter_to, record_of
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.samples.kept import Filter, LabelEntry
from splitmesh.samples.record import SampleRecord

T = TypeVar("T")

Content = Literal["picture", "thumbnail", "features"]

SERVICE = "head"
PAGE = 500
"""Records asked for at once."""
MAX_CONTENT_BYTES = 64 << 20
"""A head that sends more breaks its word."""
CONTENT_S = 60.0
"""For one content."""
MAX_LABELS = 10_000
"""In one request."""
ASKED_AT_ONCE = 16
LEAST_TELLING = {Reason.UNIMPLEMENTED: 0, Reason.SAMPLE_NOT_FOUND: 1}
"""Of the errors of several heads, the first to be passed over for another one."""


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """One sample that a head keeps."""

    record: SampleRecord
    duplicates: int
    """Others like it, which are not kept."""


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """What a head keeps."""

    head: str
    """Its node name, without the number of a process."""
    samples: int
    labelled: int
    content_bytes: int
    duplicates: int
    dropped: Mapping[str, int]
    """Not kept, or let go for a worthier one, by reason."""
    by_camera: Mapping[str, int]
    by_label: Mapping[str, int]
    allowed: tuple[str, ...]
    """What leaves the head on demand: ``picture``, ``thumbnail``, ``features``."""


class SampleClient:
    """Calls SampleService on every head. Every method raises the service's MeshErrors, see its proto, and SERVICE_UNAVAILABLE
    when no head is known or one does not answer: a list that silently lacks a head would be taken for all there is."""

    def __init__(self, channels: Channels, *, service: str = SERVICE) -> None:
        """``service``: the heads' name in discovery."""
        self._channels = channels
        self._service = service

    async def list(self, wanted: Filter | None = None, *, limit: int = 100) -> Sequence[SampleInfo]:
        """The newest, newest first, at most ``limit``."""
        if limit < 1:
            raise field_error("limit", f"is {limit}, expected at least 1")
        found: list[SampleInfo] = []
        async with aclosing(self.all(wanted, page=min(limit, PAGE))) as samples:
            async for sample in samples:
                found.append(sample)
                if len(found) == limit:
                    break
        return found

    async def all(self, wanted: Filter | None = None, *, page: int = PAGE) -> AsyncGenerator[SampleInfo]:
        """Newest first; what comes or goes meanwhile may be there or not."""
        message = filter_to(wanted or Filter())
        stubs = await self._stubs()
        streams = [_pages(stub, message, page, only=len(stubs) == 1) for stub in stubs]
        try:
            heads = [await anext(stream, None) for stream in streams]
            last = ""
            while any(head is not None for head in heads):
                newest = max(range(len(heads)), key=lambda n: _order(heads[n]))
                sample = heads[newest]
                heads[newest] = await anext(streams[newest], None)
                if sample is not None and sample.record.id != last:
                    last = sample.record.id
                    yield sample
        finally:
            for stream in streams:
                await stream.aclose()

    async def get(self, sample_id: str) -> tuple[SampleInfo, Sequence[LabelEntry]]:
        """With the history of its labels, oldest first. SAMPLE_NOT_FOUND when no head has it."""

        async def ask(stub: samples_pb2_grpc.SampleServiceStub) -> pb.GetSampleResponse:
            async with mesh_errors():
                found: pb.GetSampleResponse = await stub.GetSample(pb.GetSampleRequest(id=sample_id))
            return found

        response = await self._first(ask)
        return _info(response.sample), [change_of(change) for change in response.history]

    async def content(self, sample_id: str, kind: Content = "picture") -> tuple[str, bytes]:
        """Media type and bytes. SAMPLE_NOT_FOUND; ARTIFACT_NOT_FOUND without such a content; CONTENT_NOT_ALLOWED."""
        if kind not in CONTENTS:
            raise field_error("kind", f"{kind!r} is none of {', '.join(CONTENTS)}")
        request = pb.GetContentRequest(id=sample_id, kind=CONTENTS[kind])

        async def ask(stub: samples_pb2_grpc.SampleServiceStub) -> tuple[str, bytes]:
            async with mesh_errors():
                return await _received(stub.GetContent(request, timeout=CONTENT_S))

        return await self._first(ask)

    async def label(self, labels: Mapping[str, str | None], by: str) -> int:
        """State what samples show; None takes a label back. How many were not labelled so already.

        SAMPLE_NOT_FOUND changes nothing. Each head takes 10,000 at once, all or none; what breaks between two of these requests
        leaves the earlier ones done, and repeating the call completes it.
        """
        changed = 0
        for stub, its in await self._divided(labels):
            for at in range(0, len(its), MAX_LABELS):
                choices = [pb.LabelChoice(id=key, label=labels[key] or "") for key in its[at : at + MAX_LABELS]]
                async with mesh_errors():
                    response = await stub.LabelSample(pb.LabelSampleRequest(labels=choices, by=by))
                changed += response.changed
        return changed

    async def counts(self) -> Sequence[SampleCounts]:
        """Of each head, by its name."""

        stubs = await self._stubs()

        async def ask(stub: samples_pb2_grpc.SampleServiceStub) -> SampleCounts | None:
            try:
                async with mesh_errors():
                    return _counts(await stub.GetSampleCounts(pb.GetSampleCountsRequest()))
            except MeshError as error:
                if len(stubs) == 1 or error.reason is not Reason.UNIMPLEMENTED:
                    raise
                return None

        found = await asyncio.gather(*(ask(stub) for stub in stubs))
        return [one for _, one in sorted({one.head: one for one in found if one is not None}.items())]

    async def _divided(
        self, labels: Mapping[str, object]
    ) -> Sequence[tuple[samples_pb2_grpc.SampleServiceStub, Sequence[str]]]:
        """Which head is told of which samples."""
        stubs = await self._stubs()
        if len(stubs) == 1 and len(labels) <= MAX_LABELS:
            return [(stubs[0], list(labels))]
        turns = asyncio.Semaphore(ASKED_AT_ONCE)

        async def where(sample_id: str) -> int:
            async with turns:
                has = await asyncio.gather(*(_has(stub, sample_id) for stub in stubs))
            if not any(has):
                raise MeshError(Reason.SAMPLE_NOT_FOUND, f"no head has the sample {sample_id[:40]!r}")
            return has.index(True)

        homes = dict(zip(labels, await asyncio.gather(*(where(key) for key in labels)), strict=True))
        return [(stub, its) for n, stub in enumerate(stubs) if (its := [key for key in labels if homes[key] == n])]

    async def _first(self, ask: Callable[[samples_pb2_grpc.SampleServiceStub], Awaitable[T]]) -> T:
        """The answer of the first head that has the sample; when none has, the error that says most."""
        errors = []
        for stub in await self._stubs():
            try:
                return await ask(stub)
            except MeshError as error:
                errors.append(error)
        raise max(errors, key=lambda error: LEAST_TELLING.get(error.reason, len(LEAST_TELLING)))

    async def _stubs(self) -> Sequence[samples_pb2_grpc.SampleServiceStub]:
        instances = await self._channels.discovery.resolve(self._service)
        if not instances:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, f"no head is known as {self._service!r}", retry_after_s=1.0)
        return [samples_pb2_grpc.SampleServiceStub(self._channels.at(instance.address)) for instance in instances]


async def _pages(
    stub: samples_pb2_grpc.SampleServiceStub, wanted: pb.SampleFilter, page: int, *, only: bool
) -> AsyncGenerator[SampleInfo]:
    token = ""
    while True:
        request = pb.ListSamplesRequest(filter=wanted, page_size=page, page_token=token)
        try:
            async with mesh_errors():
                response = await stub.ListSamples(request)
        except MeshError as error:
            if only or error.reason is not Reason.UNIMPLEMENTED:
                raise
            return
        for message in response.samples:
            yield _info(message)
        token = response.next_page_token
        if not token:
            return


async def _has(stub: samples_pb2_grpc.SampleServiceStub, sample_id: str) -> bool:
    try:
        async with mesh_errors():
            await stub.GetSample(pb.GetSampleRequest(id=sample_id))
    except MeshError as error:
        if error.reason in LEAST_TELLING:
            return False
        raise
    return True


async def _received(call: grpc.aio.UnaryStreamCall[pb.GetContentRequest, pb.GetContentResponse]) -> tuple[str, bytes]:
    media_type, size, chunks, received = "", -1, list[bytes](), 0
    async for chunk in call:
        if size < 0:
            media_type, size = chunk.media_type, chunk.size_bytes
        received += len(chunk.data)
        if received > min(size, MAX_CONTENT_BYTES):
            call.cancel()
            raise MeshError(Reason.PROTOCOL_VIOLATION, f"the head sends more than the {size} bytes it announced")
        chunks.append(chunk.data)
    if received != size:
        raise MeshError(Reason.PROTOCOL_VIOLATION, f"the head sent {received} of {size} bytes")
    return media_type, b"".join(chunks)


def _order(sample: SampleInfo | None) -> str:
    return "" if sample is None else sample.record.id


def _info(message: pb.Sample) -> SampleInfo:
    return SampleInfo(record_of(message), message.duplicates)


def _counts(message: pb.GetSampleCountsResponse) -> SampleCounts:
    return SampleCounts(
        head=message.head,
        samples=message.samples,
        labelled=message.labelled,
        content_bytes=message.bytes,
        duplicates=message.duplicates,
        dropped=dict(message.dropped),
        by_camera=dict(message.by_camera),
        by_label=dict(message.by_label),
        allowed=tuple(CONTENT_OF[kind] for kind in message.allowed if kind in CONTENT_OF),
    )
