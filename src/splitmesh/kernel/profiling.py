"""Timing pieces of models on this node, the same for every node that runs segments: settings, limits, the stream.

The piece comes over the wire and is run in a child process with a deadline and a memory limit, one at a time. It is never
written to disk, and a piece that names files is refused. Knows no model: whoever cut the piece does.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from pydantic import Field

from splitmesh.api.segment.v1 import segment_pb2
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.config import ServiceSettings
from splitmesh.kernel.jobs import JobSlots, run_job
from splitmesh.runtime import Compute
from splitmesh.runtime.providers import Wish
from splitmesh.runtime.timing import LiveTiming, host_text, time_foreign

MESSAGE_TIMEOUT_S = 10.0
"""Between two messages of an upload: a stalled one must not keep others from being profiled."""
UPLOAD_TIMEOUT_S = 120.0
"""For the whole of an upload: nor must one that sends a byte now and then."""
LOAD_MARGIN_S = 60.0
"""On top of a piece's budget: starting the process, loading and optimising the piece, the least runs."""
MAX_BUDGET_S = 120.0
MAX_BATCH = 1024
MAX_REPEATS = 1000
MAX_THREADS = 256
DEFAULT_BUDGET_S = 10.0
DEFAULT_REPEATS = 20

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ProfilingSettings(ServiceSettings):
    """What computes on a node, and what profiling may take there."""

    providers: Wish = "auto"
    """What computes segments: `auto` is TensorRT, CUDA or the CPU, the first that works and answers as the CPU does; `cpu`,
    `cuda` and `tensorrt` are that one alone, refused where it does not work. GPUs need onnxruntime-gpu."""
    gpu_bytes: int = Field(default=0, ge=0)
    """Most GPU memory that each segment's arena may take, bytes; 0: no limit."""
    allow_profiling: bool = True
    """Time pieces of models that a partitioner sends. They run as this service's user, in a process of their own."""
    max_profile_bytes: int = Field(default=2 * 1024**3, ge=1)
    """Largest piece; held in memory twice while it is timed. A larger one is refused with MODEL_TOO_LARGE."""
    max_profile_memory_bytes: int = Field(default=16 * 1024**3, ge=256 * 1024**2)
    """Address space of the process that times a piece; one that needs more is refused with MODEL_TOO_LARGE. A GPU's
    driver reserves far more than it uses."""

    def compute(self, data_dir: Path, max_batch: int) -> Compute:
        """Where segments are to be computed; engines that were made for it are kept in ``data_dir``."""
        return Compute(self.providers, data_dir / "engines", max_batch=max_batch, gpu_bytes=self.gpu_bytes)


class PieceTimer:
    """Serves SegmentService.Profile on one node."""

    def __init__(self, settings: ProfilingSettings, threads: int, backend: str) -> None:
        self._settings = settings
        self._threads = threads
        self._backend = backend
        self._slots = JobSlots(running=1, waiting=0)

    async def serve(self, requests: AsyncIterator[segment_pb2.ProfileRequest]) -> segment_pb2.ProfileResponse:
        """Take the piece, check it, time it. Errors: see the proto; UNIMPLEMENTED where profiling is not allowed."""
        # Read before anything is refused: gRPC warns of a stream that nobody began to read.
        first = await _next(requests)
        if not self._settings.allow_profiling:
            raise MeshError(Reason.UNIMPLEMENTED, f"node {self._settings.node!r} does not allow profiling")
        if first is None or first.WhichOneof("message") != "start":
            raise MeshError(Reason.PROTOCOL_VIOLATION, "the first message must be start")
        start = first.start
        self._check(start)
        async with self._slots:
            piece = await _received(requests, start)
            budget_s = start.budget_s or DEFAULT_BUDGET_S
            timing = await run_job(
                time_foreign,
                piece,
                start.batch or 1,
                start.threads or self._threads,
                start.backend or self._backend,
                start.repeats or DEFAULT_REPEATS,
                budget_s,
                deadline_s=budget_s + LOAD_MARGIN_S,
                max_memory_bytes=self._settings.max_profile_memory_bytes,
            )
        return segment_pb2.ProfileResponse(
            node=self._settings.node,
            median_ms=timing.median_ms,
            p90_ms=timing.p90_ms,
            p99_ms=timing.p99_ms,
            runs=timing.runs,
            backend=timing.backend,
            threads=timing.threads,
            host=host_text(),
        )

    def _check(self, start: segment_pb2.ProfileStart) -> None:
        if not _DIGEST.fullmatch(start.sha256):
            raise field_error("sha256", "is not 64 lower-case hexadecimal digits")
        if start.size_bytes > self._settings.max_profile_bytes:
            raise MeshError(
                Reason.MODEL_TOO_LARGE,
                f"the piece has {start.size_bytes} bytes; this node times at most {self._settings.max_profile_bytes}",
                metadata={"size_bytes": str(start.size_bytes), "limit": str(self._settings.max_profile_bytes)},
            )
        if not start.size_bytes:
            raise field_error("size_bytes", "is 0: there is nothing to time")
        for name, most in (("batch", MAX_BATCH), ("threads", MAX_THREADS), ("repeats", MAX_REPEATS)):
            if getattr(start, name) > most:
                raise field_error(name, f"is {getattr(start, name)}, expected at most {most}")
        if not (math.isfinite(start.budget_s) and 0 <= start.budget_s <= MAX_BUDGET_S):
            raise field_error("budget_s", f"is {start.budget_s}, expected 0..{MAX_BUDGET_S:g} seconds")


def live_messages(timings: Iterable[LiveTiming]) -> list[segment_pb2.LiveTiming]:
    """Live timings as messages."""
    return [
        segment_pb2.LiveTiming(
            batch=one.batch, runs=one.runs, median_ms=one.median_ms, p90_ms=one.p90_ms, p99_ms=one.p99_ms
        )
        for one in timings
    ]


async def _received(requests: AsyncIterator[segment_pb2.ProfileRequest], start: segment_pb2.ProfileStart) -> bytes:
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            return await _receive(requests, start)
    except TimeoutError as error:
        raise MeshError(Reason.DEADLINE_EXPIRED, f"the piece was not there after {UPLOAD_TIMEOUT_S:g} s") from error


async def _receive(requests: AsyncIterator[segment_pb2.ProfileRequest], start: segment_pb2.ProfileStart) -> bytes:
    content = bytearray()
    while (request := await _next(requests)) is not None:
        if request.WhichOneof("message") != "data" or not request.data:
            raise MeshError(Reason.PROTOCOL_VIOLATION, "after start come messages with data")
        if len(content) + len(request.data) > start.size_bytes:
            raise MeshError(Reason.PROTOCOL_VIOLATION, f"more data came than the {start.size_bytes} bytes announced")
        content += request.data
    if len(content) < start.size_bytes:
        raise MeshError(Reason.UPLOAD_TRUNCATED, f"the piece ended after {len(content)} of {start.size_bytes} bytes")
    found = (await asyncio.to_thread(hashlib.sha256, content)).hexdigest()
    if found != start.sha256:
        raise MeshError(
            Reason.DIGEST_MISMATCH,
            f"the piece has SHA-256 {found}, announced was {start.sha256}",
            metadata={"sha256": start.sha256, "found": found},
        )
    return bytes(content)


async def _next(requests: AsyncIterator[segment_pb2.ProfileRequest]) -> segment_pb2.ProfileRequest | None:
    try:
        async with asyncio.timeout(MESSAGE_TIMEOUT_S):
            return await anext(requests, None)
    except TimeoutError as error:
        raise MeshError(
            Reason.DEADLINE_EXPIRED, f"no message of the piece came within {MESSAGE_TIMEOUT_S:g} s"
        ) from error
