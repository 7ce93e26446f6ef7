"""A version's head opened by the back end that suits it, measured and run once, so that no frame pays for a first run.

Blocking work happens in threads: frames of the version before must not wait for it. Knows the cache and sessions, nothing
of links, gates or frames.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge.head.active import warm_up
from edge.head.chosen import LATENCY_SHARE, choose_backend, require_room, wish_of
from edge.head.config import HeadSettings
from edge.head.line import MOST_COMPANY
from edge.head.staged import StagedHead
from edge.head.together import Together
from edge.head.tune import Batching, describe, measure_batches, open_tuned, time_singles
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import VersionInfo
from splitmesh.errors import MeshError
from splitmesh.model.manifest import Manifest
from splitmesh.runtime import Session, open_session
from splitmesh.runtime.candidates import REFERENCE_BACKEND, Candidate, Measured
from splitmesh.runtime.choices import Choice
from splitmesh.runtime.host_backends import FP32
from splitmesh.runtime.measure import resident_bytes
from splitmesh.runtime.opening import open_pieces
from splitmesh.runtime.ort import CPU
from splitmesh.runtime.providers import CUDA, TENSORRT
from splitmesh.runtime.timing import LiveTimings

log = logging.getLogger(__name__)

_NAMES = {CPU: REFERENCE_BACKEND, CUDA: "onnxruntime-cuda", TENSORRT: "onnxruntime-tensorrt"}


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
    choice: Choice
    """What computes it, and what else was looked at."""
    memory_bytes: int
    """That it takes, about; other things this process did meanwhile are counted too."""


async def open_head(
    cache: ModelCache,
    version: VersionInfo,
    manifest: Manifest,
    settings: HeadSettings,
    *,
    threads: int,
    like: Choice | None = None,
) -> OpenedHead:
    """The whole model, the head, or the head in the pieces that end at its exits.

    Args:
        cache: where its parts are.
        version: which one.
        manifest: the version's.
        settings: what may be used.
        threads: 0: chosen by measuring.
        like: what computes the version that answers meanwhile; measuring beside it would disturb its frames, so the same is used
            here where the answers are right, unless a choice is remembered.

    Raises HOST_TOO_SMALL where this host has not the memory, and what the cache and opening a session raise.
    """
    segment = manifest.whole if manifest.split is None else manifest.split.head
    contents = [await cache.part(version, piece.artifact) for piece in manifest.stages or (segment,)]
    choice = await choose_backend(contents, settings, threads=threads, like=like)
    require_room(contents, choice, settings)
    return await asyncio.to_thread(_open, contents, version, settings, threads, choice, staged=bool(manifest.stages))


def _open(
    contents: Sequence[bytes],
    version: VersionInfo,
    settings: HeadSettings,
    threads: int,
    choice: Choice | None,
    *,
    staged: bool,
) -> OpenedHead:
    before = resident_bytes()
    session = None if choice is None else _as_chosen(contents, settings, choice, staged=staged)
    if choice is None or session is None:
        session, choice = _by_reference(contents, settings, threads, staged=staged)
    threads = choice.chosen.candidate.threads
    try:
        idle_ms = warm_up(session)
        if not choice.chosen.p50_ms and idle_ms is not None:
            choice = _timed(session, choice, settings)
        # A head in pieces stops at the first exit that is sure: its frames part, and a batch would have to wait for all.
        batching = Batching(1, {}) if staged else measure_batches(session, idle_ms)
    except BaseException:
        session.close()
        raise
    log.info(
        "%s version %d runs on %s, up to %d frames together (a frame %s)",
        version.model, version.version, choice.chosen.candidate, batching.most,
        describe(batching.per_frame_ms) or "not measured",
    )  # fmt: skip
    live = LiveTimings()
    if batching.most > 1:
        # Beside a processor one batch at a time: its own threads are the other ones' places.
        at_once = max(1, min(settings.workers, settings.usable_cores() // threads))
        session = Together(
            session,
            max_batch=batching.most,
            at_once=at_once if choice.chosen.candidate.on_processor else 1,
            on_run=live.record,
        )
    memory_bytes = max(resident_bytes() - before, sum(map(len, contents)))
    return OpenedHead(session, threads, batching.most, idle_ms, live, choice, memory_bytes)


def _as_chosen(contents: Sequence[bytes], settings: HeadSettings, choice: Choice, *, staged: bool) -> Session | None:
    """None where it cannot be opened any more and the reference may stand in."""
    candidate = choice.chosen.candidate
    try:
        opened = open_pieces(
            contents,
            candidate,
            lanes=wish_of(settings).lanes(candidate),
            max_run_s=settings.max_run_s,
            compute=settings.compute(settings.data_dir, MOST_COMPANY),
        )
    except MeshError as error:
        if not settings.reference_may():
            raise
        log.warning("%s was chosen and cannot be opened: %s", candidate, error.message)
        return None
    return StagedHead(opened) if staged else opened[0]


def _by_reference(
    contents: Sequence[bytes], settings: HeadSettings, threads: int, *, staged: bool
) -> tuple[Session, Choice]:
    """By onnxruntime, with the threads given or those that suit it best."""

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
        log.debug("threads: %s", describe(measured) or "not measured")
    name = _NAMES.get(session.providers[0], session.providers[0])
    chosen = Measured(Candidate(name, FP32, threads))
    others = [
        Measured(Candidate(name, FP32, count), p50_ms=ms, runs=1) for count, ms in measured.items() if count != threads
    ]
    return session, Choice(chosen, (chosen, *others))


def _timed(session: Session, choice: Choice, settings: HeadSettings) -> Choice:
    """The choice with the figures of a few runs."""
    times_ms = time_singles(session)
    if not times_ms:
        return choice
    median, worst = float(np.median(times_ms)), float(np.percentile(times_ms, 99))
    lanes = wish_of(settings).lanes(choice.chosen.candidate)
    chosen = replace(
        choice.chosen, p50_ms=median, p99_ms=worst, frames_per_s=lanes * 1e3 / max(median, 1e-3), runs=len(times_ms)
    )
    return replace(choice, chosen=chosen, candidates=(chosen, *choice.candidates[1:]))


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
