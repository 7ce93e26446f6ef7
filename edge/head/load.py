"""A version's head opened, measured and run once, so that no frame pays for a first run.

Blocking work happens in threads: frames of the version before must not wait for it. Knows the cache and sessions, nothing
of links, gates or frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from edge.head.active import warm_up
from edge.head.config import HeadSettings
from edge.head.line import MOST_COMPANY
from edge.head.staged import StagedHead
from edge.head.together import Together
from edge.head.tune import Batching, describe, measure_batches, open_tuned
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo
from splitmesh.model.manifest import Manifest
from splitmesh.runtime import Session, open_session
from splitmesh.runtime.ort import CPU
from splitmesh.runtime.timing import LiveTimings

log = logging.getLogger(__name__)

LATENCY_SHARE = 0.25
"""Of a frame's deadline that its head may take at most, where threads are chosen."""


@dataclass(frozen=True, slots=True)
class OpenedHead:
    """A session and how it is best used."""

    session: Session
    threads: int
    """Inside an operator."""
    company: int
    """Most frames that it computes together."""
    idle_ms: float | None
    """What a frame takes; None: not known."""
    live: LiveTimings
    """What its runs take."""


async def open_head(
    cache: ModelCache, version: VersionInfo, manifest: Manifest, settings: HeadSettings, *, threads: int
) -> OpenedHead:
    """The whole model, the head, or the head in the pieces that end at its exits.

    ``threads`` 0: chosen by measuring. Raises what the cache and opening a session raise.
    """
    segment = manifest.whole if manifest.split is None else manifest.split.head
    contents = [await cache.part(version, piece.artifact) for piece in manifest.stages or (segment,)]
    return await asyncio.to_thread(_open, contents, version, settings, threads, staged=bool(manifest.stages))


def _open(
    contents: Sequence[bytes], version: VersionInfo, settings: HeadSettings, threads: int, *, staged: bool
) -> OpenedHead:
    def open_with(count: int) -> Session:
        return _session(contents, count, settings, staged=staged)

    measured: dict[int, float] = {}
    if threads:
        session = open_with(threads)
    else:
        latency_ms = LATENCY_SHARE * settings.default_deadline_ms
        session, threads, measured = open_tuned(
            open_with, workers=settings.workers, latency_ms=latency_ms, cores=settings.usable_cores()
        )
    try:
        idle_ms = warm_up(session)
        # A head in pieces stops at the first exit that is sure: its frames part, and a batch would have to wait for all.
        batching = Batching(1, {}) if staged else measure_batches(session, idle_ms)
    except BaseException:
        session.close()
        raise
    log.info(
        "%s version %d runs with %d threads (%s), up to %d frames together (a frame %s)",
        version.model, version.version, threads, describe(measured) or "not measured", batching.most,
        describe(batching.per_frame_ms) or "not measured",
    )  # fmt: skip
    live = LiveTimings()
    if batching.most > 1:
        # Beside a processor one batch at a time: its own threads are the other ones' places.
        at_once = (
            max(1, min(settings.workers, settings.usable_cores() // threads)) if session.providers[0] == CPU else 1
        )
        session = Together(session, max_batch=batching.most, at_once=at_once, on_run=live.record)
    return OpenedHead(session, threads, batching.most, idle_ms, live)


def _session(contents: Sequence[bytes], threads: int, settings: HeadSettings, *, staged: bool) -> Session:
    compute = settings.compute(settings.data_dir, MOST_COMPANY)
    opened: list[Session] = []
    try:
        for content in contents:
            opened.append(open_session(content, threads=threads, max_run_s=settings.max_run_s, compute=compute))
    except BaseException:
        for session in opened:
            session.close()
        raise
    return StagedHead(opened) if staged else opened[0]
