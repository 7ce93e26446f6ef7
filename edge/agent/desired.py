"""What this host's heads are to serve and may use: the newest assignment of each model, the newest policy, on disk.

A level and no queue: whatever head comes, and however often it restarts, it is brought to what stands here. Knows no head.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError

from edge.agent.store import AgentStore
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)

MAX_MODELS = 1000
"""More assignments are refused with QUEUE_FULL; for a new one the oldest that ended is forgotten."""
MAX_NAME = 200
_POLICY = "policy"
_ASSIGNMENT = "assignment/"


class Desired:
    """Of one host.

    Args:
        store: keeps it.
    """

    def __init__(self, store: AgentStore) -> None:
        self._store = store
        self._assignments: dict[str, serving_pb2.Assignment] = {}
        self._policy: serving_pb2.HostPolicy | None = None
        self._observers: list[Callable[[], None]] = []
        self._writing = asyncio.Lock()

    @property
    def assignments(self) -> Mapping[str, serving_pb2.Assignment]:
        """By model; one without a version ends the assignments before it."""
        return self._assignments

    @property
    def policy(self) -> serving_pb2.HostPolicy | None:
        """None until there was one."""
        return self._policy

    def observe(self, changed: Callable[[], None]) -> None:
        """Tell it, in the event loop, after every change."""
        self._observers.append(changed)

    async def load(self) -> None:
        """What was kept; one that cannot be read is left out, and the fleet sends it again with the next deployment."""
        for name, value in (await asyncio.to_thread(self._store.kept)).items():
            try:
                if name == _POLICY:
                    self._policy = serving_pb2.HostPolicy.FromString(value)
                elif name.startswith(_ASSIGNMENT):
                    assignment = serving_pb2.Assignment.FromString(value)
                    self._assignments[assignment.model] = assignment
            except DecodeError:
                log.error("%s cannot be read any more", name)

    async def assign(self, assignment: serving_pb2.Assignment) -> None:
        """On disk when it returns, and told to heads from then on; the same one again changes nothing.

        Raises MeshError FIELD_INVALID; CANCELLED when a newer one is held; QUEUE_FULL; STORAGE_FULL, SERVICE_UNAVAILABLE.
        """
        model = assignment.model
        if not model or len(model) > MAX_NAME or not model.isprintable():
            raise field_error("assignment.model", f"is not 1 to {MAX_NAME} printable characters")
        if not assignment.generation:
            raise field_error("assignment.generation", "is 0; generations count from 1")
        async with self._writing:
            held = self._assignments.get(model)
            if held is not None and held.generation > assignment.generation:
                raise superseded(model, held.generation)
            over = self._to_forget() if held is None else ()
            if held != assignment:
                forgotten = [f"{_ASSIGNMENT}{name}" for name in over]
                await asyncio.to_thread(
                    self._store.keep, f"{_ASSIGNMENT}{model}", assignment.SerializeToString(), forgotten
                )
                for name in (model, *over):
                    self._assignments.pop(name, None)
                self._assignments[model] = assignment  # the newest is the last one
        self._tell()

    async def set_policy(self, policy: serving_pb2.HostPolicy) -> None:
        """On disk when it returns; an older one than is held changes nothing. STORAGE_FULL, SERVICE_UNAVAILABLE."""
        async with self._writing:
            if self._policy is not None and self._policy.generation >= policy.generation:
                return
            await asyncio.to_thread(self._store.keep, _POLICY, policy.SerializeToString())
            self._policy = policy
        self._tell()

    def _to_forget(self) -> list[str]:
        """Models whose assignments ended longest ago, as many as must go for one more. QUEUE_FULL."""
        too_many = len(self._assignments) + 1 - MAX_MODELS
        if too_many <= 0:
            return []
        ended = [name for name, assignment in self._assignments.items() if not assignment.version]
        if len(ended) < too_many:
            raise MeshError(Reason.QUEUE_FULL, f"{MAX_MODELS} models have assignments on this host already")
        return ended[:too_many]

    def _tell(self) -> None:
        for changed in self._observers:
            changed()


def superseded(model: str, generation: int) -> MeshError:
    """A newer assignment stands in its place."""
    return MeshError(
        Reason.CANCELLED,
        f"assignment {generation} of {model!r} stands in its place",
        metadata={"generation": str(generation)},
    )
