"""Profiling: a version's whole model, head and tail are timed on this host's own head; the profile goes to the registry.

The host has no means to cut a model (no onnx package is here). What it can do is to time what the version brings, and to take
over every other cut from a profile of another node of the same model, scaled by what the whole takes here against there. Such
cuts are marked as not measured; without a profile to take them from there are none until the task is given again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge.agent.runners.port import Tell, progress
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.client.node_profiler import NodeInfo, NodeProfiler
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import HEAD, MANIFEST, TAIL, WHOLE, Manifest
from splitmesh.model.profile_data import CutProfile, Profile, ProfileKey
from splitmesh.runtime.timing import Timing

log = logging.getLogger(__name__)

DEFAULT_BUDGET_S = 300.0
MAX_BUDGET_S = 3600.0
MAX_PIECE_S = 10.0
REPEATS = 20
BATCH = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What was timed here; milliseconds of one sample."""

    key: ProfileKey
    host: str
    whole: Timing
    whole_bytes: int
    cut: frozenset[str] = frozenset()
    """Tensors between the version's head and tail; empty: it is not cut in two."""
    head: Timing | None = None
    tail: Timing | None = None


class ProfileRunner:
    """A :class:`~edge.agent.runners.port.Runner`.

    Args:
        registry: has the version and takes the profile.
        profiler: has pieces timed.
        addresses: of this host's heads that answer.
    """

    at_once = False

    def __init__(
        self, registry: RegistryClient, profiler: NodeProfiler, addresses: Callable[[], Sequence[str]]
    ) -> None:
        self._registry = registry
        self._profiler = profiler
        self._addresses = addresses

    async def run(self, task: fleet_pb2.Task, tell: Tell) -> Mapping[str, str]:
        """The profile's place in the registry.

        Raises MeshError FIELD_INVALID; MODEL_NOT_FOUND, VERSION_NOT_FOUND; MODEL_INCOMPLETE (no whole model); SERVICE_UNAVAILABLE
        (no head answers); what the head refuses to time and the registry to give.
        """
        work = task.profile
        budget_s = work.budget_s or DEFAULT_BUDGET_S
        if not (math.isfinite(budget_s) and 0 < budget_s <= MAX_BUDGET_S):
            raise field_error(
                "profile.budget_s", f"is {budget_s}, expected above 0 and at most {MAX_BUDGET_S:g} seconds"
            )
        tell(progress("fetching", 0.0))
        info = await self._registry.get_version(work.model, work.version)
        if WHOLE not in info.artifacts:
            raise MeshError(
                Reason.MODEL_INCOMPLETE,
                f"version {info.version} of {info.model!r} has no {WHOLE}, so nothing to profile",
            )
        node = await self._head()
        measured = await self._measure(info, node, budget_s, tell)
        tell(progress("storing", 0.95))
        stored = await self._registry.list_profiles(info.model, info.version)
        profile = made_of(measured, _reference(stored, measured.key))
        await self._registry.put_profile(info.model, info.version, profile)
        return {
            "model": info.model,
            "version": str(info.version),
            "node": profile.key.node,
            "backend": profile.key.backend,
            "threads": str(profile.key.threads),
            "whole_ms": f"{profile.whole_ms:.3f}",
            "cuts": str(len(profile.cuts)),
            "sha256": profile.sha256,
        }

    async def _head(self) -> NodeInfo:
        """The first one by name: several processes of a head share one host."""
        own = set(self._addresses())
        nodes = [node for node in await self._profiler.nodes() if node.address in own]
        if not nodes:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "no head of this host answers", retry_after_s=10.0)
        return nodes[0]

    async def _measure(self, info: VersionInfo, node: NodeInfo, budget_s: float, tell: Tell) -> Measured:
        cut = await self._cut(info)
        names = [WHOLE, HEAD, TAIL] if cut else [WHOLE]
        piece_s = min(MAX_PIECE_S, budget_s / len(names))
        timings: dict[str, Timing] = {}
        size_bytes, host = 0, ""
        for done, name in enumerate(names):
            tell(progress("timing", 0.1 + 0.8 * done / len(names), name))
            piece = await self._registry.fetch(info, name)
            size_bytes = len(piece) if name == WHOLE else size_bytes
            timings[name], host = await self._profiler.time_piece(
                node.address,
                piece,
                batch=BATCH,
                threads=node.threads,
                backend=node.backend,
                repeats=REPEATS,
                budget_s=piece_s,
            )
        key = ProfileKey(node=node.node, backend=node.backend, threads=max(1, node.threads), batch=BATCH)
        return Measured(key, host, timings[WHOLE], size_bytes, cut, timings.get(HEAD), timings.get(TAIL))

    async def _cut(self, info: VersionInfo) -> frozenset[str]:
        """Where the version is cut, if it is cut in two."""
        if MANIFEST not in info.artifacts or not {HEAD, TAIL} <= info.artifacts.keys():
            return frozenset()
        split = Manifest.from_json(await self._registry.fetch(info, MANIFEST)).split
        if split is None or len(split.segments()) != 2:
            return frozenset()
        return frozenset(tensor.name for tensor in split.hops()[0].cut)


def made_of(measured: Measured, reference: Profile | None) -> Profile:
    """The profile of this node: what was timed, and the cuts of the reference at this node's pace."""
    whole = measured.whole
    if reference is None:
        return Profile(
            key=measured.key,
            whole_ms=whole.median_ms,
            whole_p90_ms=whole.p90_ms,
            whole_bytes=measured.whole_bytes,
            cuts=(),
            repeats=max(1, whole.runs),
            samples=1,
            calibration="random",
            host=measured.host,
            complete=False,
        )
    pace = whole.median_ms / reference.whole_ms if reference.whole_ms > 0 else 1.0
    own = reference.key == measured.key
    cuts = tuple(_cut_here(cut, measured, pace, own) for cut in reference.cuts)
    nodes = tuple(
        node.model_copy(update={"head_ms": node.head_ms * pace, "tail_ms": node.tail_ms * pace})
        for node in reference.nodes
    )
    here = {
        "key": measured.key,
        "whole_ms": whole.median_ms,
        "whole_p90_ms": whole.p90_ms,
        "repeats": max(1, whole.runs),
        "host": measured.host,
        "complete": own and reference.complete,
        "cuts": cuts,
        "nodes": nodes,
    }
    return reference.model_copy(update=here)


def _cut_here(cut: CutProfile, measured: Measured, pace: float, own: bool) -> CutProfile:
    """One cut: as timed here where it is the version's own, else at this node's pace, and then not measured here."""
    head, tail = measured.head, measured.tail
    if head is not None and tail is not None and frozenset(cut.tensors) == measured.cut:
        times = (head.median_ms, head.p90_ms, tail.median_ms, tail.p90_ms)
        here = True
    else:
        times = (cut.head_ms * pace, cut.head_p90_ms * pace, cut.tail_ms * pace, cut.tail_p90_ms * pace)
        here = own and cut.measured
    names = ("head_ms", "head_p90_ms", "tail_ms", "tail_p90_ms")
    return cut.model_copy(update={**dict(zip(names, times, strict=True)), "measured": here, "live_runs": 0})


def _reference(stored: Sequence[Profile], key: ProfileKey) -> Profile | None:
    """This node's own where it has cuts; else the one with most cuts that were timed, of the same batch first."""
    with_cuts = [profile for profile in stored if profile.cuts]
    own = next((profile for profile in with_cuts if profile.key == key), None)
    if own is not None:
        return own
    return max(
        with_cuts,
        key=lambda one: (one.key.batch == key.batch, one.calibration == "real", sum(cut.measured for cut in one.cuts)),
        default=None,
    )
