"""What the heads of one host say of one model, read against what the host was told. Pure.

A host has as many heads as it has processes: all of them have to serve a version before the host does, and one that cannot is
enough for the host to have failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.transfer import is_passing
from splitmesh.errors import MeshError, Reason

States = Sequence[serving_pb2.ServingState]
FAILED = serving_pb2.PHASE_FAILED
SERVING = serving_pb2.PHASE_SERVING


def of_model(states: Iterable[serving_pb2.ServingState], model: str) -> list[serving_pb2.ServingState]:
    """Those about one model."""
    return [state for state in states if state.model == model]


def serves(states: States, version: int, generation: int) -> bool:
    """Every head has the order, or a later one, and answers with the version."""
    return bool(states) and all(one.generation >= generation and one.active_version == version for one in states)


def tries(states: States, version: int, generation: int) -> bool:
    """Every head has the order and computes with the candidate."""
    return bool(states) and all(
        one.generation >= generation and one.candidate.version == version and one.candidate.phase == SERVING
        for one in states
    )


def failure(states: States, version: int, generation: int) -> tuple[str, str] | None:
    """Reason and sentence of a head that has the order and cannot use the version; None: there is none.

    What may pass is none: the head tries again, and its host's time-out or the end of its task says when that was enough.
    """
    for one in states:
        if one.generation < generation or one.active_version == version:
            continue
        for found in (one.wanted, one.candidate):
            if found.version == version and found.phase == FAILED and not _may_pass(found.reason):
                return found.reason or "INTERNAL", found.message or "the head could not use the version"
    return None


def withdrawn(states: States, generation: int) -> bool:
    """Every head is without an assignment, or has a later order than the withdrawal."""
    return bool(states) and all(one.generation == 0 or one.generation >= generation for one in states)


def answering(states: States) -> int:
    """The version that answers now; 0: none. Of several heads that differ the lowest, which is the one from before."""
    return min((one.active_version for one in states if one.active_version), default=0)


def generations(states: States) -> tuple[int, int]:
    """The lowest and highest order that heads have; 0, 0 where no head speaks of the model."""
    found = [one.generation for one in states]
    return (min(found), max(found)) if found else (0, 0)


def of_version(states: States, version: int) -> serving_pb2.VersionState | None:
    """How far the version is, on the head where it is least far; None: no head speaks of it."""
    found = [
        state for one in states for state in (one.wanted, one.candidate) if state.version == version and state.phase
    ]
    if failed := [state for state in found if state.phase == FAILED]:
        return failed[0]
    return min(found, key=lambda state: state.phase, default=None)


def _may_pass(reason: str) -> bool:
    if reason not in Reason.__members__:
        return False
    known = Reason(reason)
    return known is Reason.STORAGE_FULL or is_passing(MeshError(known, ""))
