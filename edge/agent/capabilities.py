"""What this host can do, as a message: found by a child process, looked at again now and then.

A back end or a driver may be installed while the agent runs; the fleet hears of it, and measurements are made again where the
fingerprint has changed. Knows the facts of a host; chooses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence

from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import MeshError
from splitmesh.kernel.child_env import child_environment
from splitmesh.runtime.host import HostFacts, describe_host, describe_host_apart

log = logging.getLogger(__name__)

FIRST_S = 30.0
"""Longest that a connection waits for the first look; the host is then told without its back ends, and with them later."""
AGAIN_S = 30.0
"""After a look that failed."""

Look = Callable[[], HostFacts]


def look_apart() -> HostFacts:
    """By a child process. Blocking."""
    return describe_host_apart(child_environment(os.environ))


def look_without_backends() -> HostFacts:
    """What needs no library. Blocking, for as long as ``nvidia-smi`` takes."""
    return describe_host(backends=tuple)


class HostCapabilities:
    """A part of an app.

    Args:
        kinds: of tasks that the agent takes.
        every_s: between two looks, seconds.
        changed: awaited when there is something new.
        look: finds out; raises MeshError.
        look_quickly: the same without back ends.
    """

    def __init__(
        self,
        kinds: Sequence[fleet_pb2.TaskKind.ValueType],
        every_s: float,
        changed: Callable[[], Awaitable[None]],
        *,
        look: Look = look_apart,
        look_quickly: Look = look_without_backends,
    ) -> None:
        self._kinds = tuple(kinds)
        self._every_s = every_s
        self._changed = changed
        self._look, self._look_quickly = look, look_quickly
        self._facts: HostFacts | None = None
        self._found = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to look; returns at once."""
        self._task = asyncio.create_task(self._for_ever())

    async def stop(self) -> None:
        """Looks no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def message(self, within_s: float = FIRST_S) -> fleet_pb2.Capabilities:
        """As last seen; without back ends when the first look takes longer than ``within_s``."""
        try:
            async with asyncio.timeout(within_s):
                await self._found.wait()
        except TimeoutError:
            log.warning("what computes segments on this host is not known yet")
        facts = self._facts
        if facts is None:
            facts = await asyncio.to_thread(self._look_quickly)
        return capabilities_message(facts, self._kinds)

    async def _for_ever(self) -> None:
        while True:
            try:
                facts = await asyncio.to_thread(self._look)
            except MeshError as error:
                log.warning("%s", error.message)
                await asyncio.sleep(min(AGAIN_S, self._every_s))
                continue
            if facts != self._facts:
                before, self._facts = self._facts, facts
                self._found.set()
                for backend in facts.backends:
                    log.info(
                        "%s %s: %s", backend.name, backend.version, backend.unusable or ", ".join(backend.precisions)
                    )
                if before is not None:
                    log.warning("this host has changed: its fingerprint is %s", facts.fingerprint[:16])
                await self._changed()
            await asyncio.sleep(self._every_s)


def capabilities_message(facts: HostFacts, kinds: Sequence[fleet_pb2.TaskKind.ValueType]) -> fleet_pb2.Capabilities:
    """The facts of a host as a message."""
    return fleet_pb2.Capabilities(
        cpu_model=facts.cpu_model,
        cpu_flags=facts.cpu_flags,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        architecture=facts.architecture,
        os=facts.os,
        gpus=[fleet_pb2.Gpu(name=gpu.name, memory_bytes=gpu.memory_bytes, driver=gpu.driver) for gpu in facts.gpus],
        backends=[
            fleet_pb2.Backend(name=one.name, version=one.version, precisions=one.precisions, unusable=one.unusable)
            for one in facts.backends
        ],
        task_kinds=kinds,
        fingerprint=facts.fingerprint,
    )
