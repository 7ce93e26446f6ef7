"""What computes a head on this host: remembered, or measured in a child process among all back ends that are installed.

Which is best is said by ``splitmesh.runtime.candidates``; here is who asks, what is kept, and what happens where measuring fails:
then the reference computes, as it does where no other back end is installed. Knows bytes of heads, nothing of frames.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from edge.head.config import HeadSettings
from edge.head.line import MOST_COMPANY
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.child_env import child_environment
from splitmesh.kernel.jobs import run_job
from splitmesh.runtime.candidates import (
    REFERENCE,
    REFERENCE_BACKEND,
    Candidate,
    Measured,
    Wish,
    candidates,
    choose,
)
from splitmesh.runtime.choices import Choice, ChoiceKey, ChoiceStore, digest_of
from splitmesh.runtime.host import HostFacts, describe_host_apart
from splitmesh.runtime.measure import FINALISTS, measure_pieces
from splitmesh.runtime.ort import CPU
from splitmesh.runtime.ov import PACKAGE
from splitmesh.runtime.providers import preferred
from splitmesh.runtime.room import free_memory_bytes

log = logging.getLogger(__name__)

LATENCY_SHARE = 0.25
"""Of a frame's deadline that its head may take at most."""
LOAD_MARGIN_S = 60.0
"""On top of the budget: starting the process, the first opening of each candidate."""
ENGINE_MARGIN_S = 600.0
"""For TensorRT to make its engine."""
CHECK_BUDGET_S = 2.0
"""For one candidate, beside a version that answers frames meanwhile."""
COPIES = 2
"""Of a segment's file: what a back end takes for it in memory, where that was not measured."""
CHILD_BYTES = 400 * 1024 * 1024
"""Of the process that measures, its libraries included."""
NO_LIMIT_BYTES = 1 << 50
"""A GPU's driver reserves far more of the address space than it uses."""

_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""Heads of one process measured side by side would measure each other."""
_HOST: list[HostFacts] = []
_HOST_LOCK = threading.Lock()


def wish_of(settings: HeadSettings) -> Wish:
    """What this head asks of a back end."""
    return Wish(
        cores=settings.usable_cores(),
        workers=settings.workers,
        latency_ms=LATENCY_SHARE * settings.default_deadline_ms,
        backends=settings.backend_names(),
        precisions=settings.precision_names(),
        provider=settings.providers,
        threads=settings.segment_threads,
        batch=MOST_COMPANY,
    )


async def choose_backend(
    contents: Sequence[bytes], settings: HeadSettings, *, threads: int, like: Choice | None
) -> Choice | None:
    """How to open a head; None: by the reference, with threads as ever.

    Args:
        contents: its pieces.
        settings: what may be used.
        threads: of the version that answers frames meanwhile, which must not be disturbed; 0 without one.
        like: what computes that version.

    Raises MeshError FIELD_INVALID or EXTRA_MISSING for settings that ask for what is not here, MODEL_OPERATOR_UNSUPPORTED where
    the reference may not compute and nothing else can.
    """
    wish = wish_of(settings)
    if not _is_a_question(wish):
        return None
    lock = _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with lock:
        try:
            return await _chosen(contents, settings, wish, threads, like)
        except MeshError as error:
            if not settings.reference_may() or error.reason in (Reason.FIELD_INVALID, Reason.EXTRA_MISSING):
                raise
            log.warning("no back end is chosen by measuring, %s computes: %s", REFERENCE_BACKEND, error.message)
            return None


async def _chosen(
    contents: Sequence[bytes], settings: HeadSettings, wish: Wish, threads: int, like: Choice | None
) -> Choice | None:
    host = await asyncio.to_thread(this_host)
    key = ChoiceKey(await asyncio.to_thread(digest_of, contents), host.fingerprint, wish)
    store = ChoiceStore(settings.data_dir / "choices")
    if (remembered := await asyncio.to_thread(store.read, key)) is not None:
        return remembered
    found, refused = candidates(wish, host.backends)
    beside = like is not None or bool(threads and not settings.segment_threads)
    budget_s = settings.choice_budget_s
    if beside:
        serving = REFERENCE if like is None else like.chosen.candidate
        if settings.reference_may() and (like is None or serving.backend == REFERENCE_BACKEND or serving not in found):
            return None
        # Its way, if the new version's answers hold too: all candidates would take the frames' cores for too long.
        found, budget_s = [serving] if serving in found else found, CHECK_BUDGET_S
    elif {one.way for one in found} == {REFERENCE.way}:
        return None
    _require_room_to_measure(contents, settings)
    measured = await run_job(
        measure_pieces,
        list(contents),
        found,
        wish,
        settings.compute(settings.data_dir, MOST_COMPANY),
        budget_s,
        settings.max_run_s,
        beside,
        deadline_s=budget_s + LOAD_MARGIN_S + (ENGINE_MARGIN_S if _builds_engines(found) else 0.0),
        max_memory_bytes=settings.max_profile_memory_bytes
        if all(one.on_processor for one in found)
        else NO_LIMIT_BYTES,
    )
    choice = _of(measured, refused, wish)
    log.info("%s computes: %s", choice.chosen.candidate, describe_candidates(choice.candidates))
    if not beside:
        await asyncio.to_thread(store.write, key, choice)
    return choice


def _of(measured: Sequence[Measured], refused: Sequence[Measured], wish: Wish) -> Choice:
    if all(one.refused for one in measured):
        raise MeshError(
            Reason.MODEL_OPERATOR_UNSUPPORTED, f"no back end may compute this head: {describe_candidates(measured)}"
        )
    return Choice(choose(measured, wish.latency_ms), (*measured, *refused))


def this_host() -> HostFacts:
    """Looked at once in a process's life, by a child. Blocking; MeshError NOT_READY where that fails."""
    with _HOST_LOCK:
        if not _HOST:
            _HOST.append(describe_host_apart(child_environment(os.environ)))
        return _HOST[0]


def _is_a_question(wish: Wish) -> bool:
    """Whether there may be more than one way; told without loading any back end."""
    if wish.provider not in ("auto", "cpu"):
        return False  # one way, by name
    if wish.backends == ("auto",):
        return importlib.util.find_spec(PACKAGE) is not None or preferred(wish.provider) != CPU
    return any(one not in ("onnxruntime", REFERENCE_BACKEND) for one in wish.backends) or (
        "onnxruntime" in wish.backends and preferred(wish.provider) != CPU
    )


def _builds_engines(found: Sequence[Candidate]) -> bool:
    return any(one.backend == "onnxruntime-tensorrt" for one in found)


def needed_bytes(contents: Sequence[bytes], choice: Choice | None) -> int:
    """Memory that a head will take: as it was measured, or by its size."""
    measured = 0 if choice is None else choice.chosen.memory_bytes
    return measured or COPIES * sum(map(len, contents))


def require_room(contents: Sequence[bytes], choice: Choice | None, settings: HeadSettings) -> None:
    """Raise MeshError HOST_TOO_SMALL where the host has not as much memory to spare as the head will take."""
    needed, free = needed_bytes(contents, choice), free_memory_bytes()
    if needed > free - settings.memory_reserve_bytes:
        raise MeshError(
            Reason.HOST_TOO_SMALL,
            f"the head takes about {needed >> 20} MiB; this host has {free >> 20} MiB free, of which "
            f"{settings.memory_reserve_bytes >> 20} MiB are kept back",
            metadata={"needed_bytes": str(needed), "free_bytes": str(free)},
            retry_after_s=60.0,
        )


def _require_room_to_measure(contents: Sequence[bytes], settings: HeadSettings) -> None:
    needed = CHILD_BYTES + (FINALISTS + 1) * COPIES * sum(map(len, contents))
    if needed > free_memory_bytes() - settings.memory_reserve_bytes:
        raise MeshError(Reason.HOST_TOO_SMALL, f"measuring takes about {needed >> 20} MiB, which are not free here")


def describe_candidates(measured: Sequence[Measured]) -> str:
    """For logs and people."""
    return "; ".join(
        f"{one.candidate}: {one.refused}"
        if one.refused
        else f"{one.candidate}: {one.p50_ms:.2f} ms, at most {one.p99_ms:.2f}, {one.frames_per_s:.0f} frames/s"
        for one in measured
    )


def backend_message(choice: Choice) -> serving_pb2.BackendChoice:
    """A choice as others are told of it."""
    return serving_pb2.BackendChoice(
        chosen=_message(choice.chosen),
        candidates=[_message(one) for one in choice.candidates],
        remembered=choice.remembered,
    )


def _message(one: Measured) -> serving_pb2.BackendCandidate:
    return serving_pb2.BackendCandidate(
        backend=one.candidate.backend,
        precision=one.candidate.precision,
        threads=one.candidate.threads,
        p50_ms=one.p50_ms,
        p99_ms=one.p99_ms,
        frames_per_s=one.frames_per_s,
        error=one.error,
        refused=one.refused,
    )
