"""What the models of this host may use, as it was told: kept on disk, and told on to those who keep to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.head.serving.assignments import NAME
from splitmesh.durable import write_file
from splitmesh.errors import MeshError, Reason, field_error

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 20
"""Of the file."""
MAX_SHARES = 1000

_Model = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
_Bytes = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HostShare(_Kept):
    """What one application of a host may use, see ``splitmesh.api.serving.v1.HostShare``."""

    priority: int = Field(default=0, ge=0, le=9)
    cpu_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    memory_bytes: _Bytes = 0
    """0: no limit of its own."""


class HostPolicy(_Kept):
    """What the applications of one host may use, see ``splitmesh.api.serving.v1.HostPolicy``."""

    generation: int = Field(default=0, ge=0, le=2**63 - 1)
    """0: none was set."""
    shares: dict[_Model, HostShare] = Field(default={}, max_length=MAX_SHARES)
    memory_bytes: _Bytes = 0
    """0: what the host has."""

    def of(self, model: str) -> HostShare:
        """One model's; the defaults where it is not named."""
        return self.shares.get(model, HostShare())


def policy_of(*, generation: int, shares: Mapping[str, HostShare], memory_bytes: int) -> HostPolicy:
    """MeshError FIELD_INVALID names what is wrong."""
    if generation < 1:
        raise field_error("policy.generation", "is 0, expected at least 1")
    try:
        return HostPolicy(generation=generation, shares=dict(shares), memory_bytes=memory_bytes)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("policy", *first["loc"]))
        raise field_error(where, first["msg"]) from error


class HostPolicyHolder:
    """Holds one policy; before :meth:`start` the defaults.

    Args:
        path: of the file.
        default_priority: of a model that the policy does not name.
    """

    def __init__(self, path: Path, default_priority: Callable[[str], int]) -> None:
        self._path = path
        self._default_priority = default_priority
        self._told: list[Callable[[HostPolicy], None]] = []
        self._setting = asyncio.Lock()
        self.policy = HostPolicy()

    async def start(self) -> None:
        """With what was kept."""
        kept = await asyncio.to_thread(_read, self._path)
        if kept is not None:
            self._put(kept)

    async def stop(self) -> None:
        """Nothing to end: it is on the disk."""

    def subscribe(self, told: Callable[[HostPolicy], None]) -> None:
        """``told`` is called with the policy now and with every one after it, on the event loop."""
        self._told.append(told)
        told(self.policy)

    def priority_of(self, model: str) -> int:
        """0 to 9: the policy's word, else the settings'."""
        share = self.policy.shares.get(model)
        return self._default_priority(model) if share is None else share.priority

    def weight_of(self, model: str) -> float:
        """Its part of the computing time beside the others' where there is not enough: each level of its priority counts as
        much as its weight once more."""
        return self.policy.of(model).cpu_weight * (1 + self.priority_of(model))

    async def set(self, policy: HostPolicy) -> int:
        """On disk and in force when it returns; one of a lower generation changes nothing. The generation that holds now.

        MeshError STORAGE_FULL: it is not in force.
        """
        async with self._setting:
            if policy.generation >= self.policy.generation and policy != self.policy:
                try:
                    await asyncio.to_thread(write_file, self._path, policy.model_dump_json().encode(), mode=0o644)
                except OSError as error:
                    raise MeshError(Reason.STORAGE_FULL, f"the policy cannot be kept: {error.strerror}") from error
                self._put(policy)
            return self.policy.generation

    def _put(self, policy: HostPolicy) -> None:
        self.policy = policy
        for told in self._told:
            try:
                told(policy)
            except Exception:
                log.exception("a policy of this host could not be kept to")


def _read(path: Path) -> HostPolicy | None:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return HostPolicy.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("the host's policy in %s cannot be read, the defaults hold until it is told anew: %s", path, error)
        return None
