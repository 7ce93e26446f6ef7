"""What is to be said to the fleet: the newest word on each thing, so that a slow link gathers no queue. Knows no stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.fleet_bounds import MAX_STATES

AT_ONCE = min(256, MAX_STATES)
"""States, and models that are served no more, in one message."""


class Outbox:
    """Of one agent; methods are called in the event loop.

    Args:
        update: what is to be said of a task by its id; None: nothing.
    """

    def __init__(self, update: Callable[[str], pb.TaskUpdate | None]) -> None:
        self._update = update
        self._tasks: dict[str, None] = {}
        self._states: dict[tuple[str, str], serving_pb2.ServingState] = {}
        self._gone: dict[str, None] = {}
        self._capabilities: pb.Capabilities | None = None
        self._heartbeat: pb.Heartbeat | None = None
        self._wake = asyncio.Event()

    def clear(self) -> None:
        """A connection begins: hello says what waited here, but for tasks."""
        self._tasks.clear()
        self._states.clear()
        self._gone.clear()
        self._capabilities = self._heartbeat = None

    def task(self, task_id: str) -> None:
        """There is something to say of a task."""
        self._tasks[task_id] = None
        self._wake.set()

    def serving(self, states: Sequence[serving_pb2.ServingState], gone: Sequence[str]) -> None:
        """States that changed, and models that are served no more.

        A model that is served again stays among those that are gone: what other heads said of it before must go, and the fleet
        forgets before it takes what is new.
        """
        for state in states:
            self._states[state.model, state.node] = state
        for model in gone:
            for key in [key for key in self._states if key[0] == model]:
                del self._states[key]
            self._gone[model] = None
        self._wake.set()

    def capabilities(self, message: pb.Capabilities) -> None:
        """The host has changed."""
        self._capabilities = message
        self._wake.set()

    def heartbeat(self, message: pb.Heartbeat) -> None:
        """The host's figures."""
        self._heartbeat = message
        self._wake.set()

    async def next(self) -> pb.ConnectRequest:
        """What is to be said next; waits until there is something. It is no longer in here when it returns."""
        while True:
            message = self._take()
            if message is not None:
                return message
            self._wake.clear()
            await self._wake.wait()

    def _take(self) -> pb.ConnectRequest | None:
        # The heartbeat first: it is small, and what the fleet takes for a sign of life.
        if self._heartbeat is not None:
            beat, self._heartbeat = self._heartbeat, None
            return pb.ConnectRequest(heartbeat=beat)
        while self._tasks:
            task_id = next(iter(self._tasks))
            del self._tasks[task_id]
            update = self._update(task_id)
            if update is not None:
                return pb.ConnectRequest(task=update)
        if self._states or self._gone:
            gone = list(self._gone)[:AT_ONCE]
            for model in gone:
                del self._gone[model]
            # A state may not go before the word that its model was gone, which would take it away.
            keys = [key for key in self._states if key[0] not in self._gone][:AT_ONCE]
            states = [self._states.pop(key) for key in keys]
            return pb.ConnectRequest(serving=pb.ServingUpdate(states=states, gone=gone))
        if self._capabilities is not None:
            found, self._capabilities = self._capabilities, None
            return pb.ConnectRequest(capabilities=found)
        return None
