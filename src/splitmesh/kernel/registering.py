"""An entry of this instance in the catalogue of services. Knows no server and no health."""

from __future__ import annotations

import asyncio
import logging

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.discovery import Discovery, Instance, Registration

log = logging.getLogger(__name__)

REGISTER_RETRY_S = 2.0
"""Between attempts to register while the catalogue is away."""


class Registering:
    """An entry in discovery, or the attempt to make one: a service must answer also while the catalogue is away."""

    def __init__(self, discovery: Discovery, instance: Instance) -> None:
        self._discovery = discovery
        self._instance = instance
        self._registration: Registration | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Register; when the catalogue does not answer, go on trying in the background."""
        try:
            self._registration = await self._discovery.register(self._instance)
        except MeshError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            log.warning("not registered yet, serving all the same: %s", error)
            self._task = asyncio.create_task(self._keep_trying())

    async def _keep_trying(self) -> None:
        while self._registration is None:
            await asyncio.sleep(REGISTER_RETRY_S)
            try:
                self._registration = await self._discovery.register(self._instance)
            except MeshError as error:
                log.debug("still not registered: %s", error)
        log.info("registered as %s", self._instance.instance_id)

    async def stop(self) -> None:
        """Deregister, or give up trying."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._registration is not None:
            await self._registration.deregister()
