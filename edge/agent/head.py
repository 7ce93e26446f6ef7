"""One head process of this host: watched for as long as it is there, and brought to what it is to serve.

Told again after it restarts only what it does not hold any more. Knows one address; which heads there are, ``heads.py`` knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from edge.agent.desired import Desired
from edge.agent.together import together
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.serving import ServingClient
from splitmesh.client.transfer import Patience, is_passing
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

LONGEST_S = 2.0
"""Between two attempts to reach the head: one that restarts is reached soon after it is there."""
NOT_OURS_S = 60.0
"""Until a head of another host is asked for its name again: its address may be ours one day."""
REFUSED_S = 30.0
"""Until something is told again that the head has refused."""


class NotOurs(Exception):  # noqa: N818  no mistake
    """The head at this address belongs to another host."""


class HeadLink:
    """To one head process.

    Args:
        client: of its address.
        address: for logs.
        desired: what it is to serve.
        is_ours: whether a head of this name belongs to this host.
        changed: told with models whose state changed, and those that are no longer served.
    """

    def __init__(
        self,
        client: ServingClient,
        address: str,
        desired: Desired,
        is_ours: Callable[[str], bool],
        changed: Callable[[HeadLink, list[str], list[str]], None],
    ) -> None:
        self.address = address
        self.node = ""
        """Empty until it was reached once."""
        self.connected = False
        """Its states are what it serves now."""
        self.ours = True
        """False: it was reached, and belongs to another host."""
        self.states: dict[str, serving_pb2.ServingState] = {}
        self.policy_generation = 0
        self.problems: dict[str, MeshError] = {}
        """By model: why the head does not take what it is told."""
        self.trouble: MeshError | None = None
        """Why it cannot be reached; None while it is connected."""
        self._client = client
        self._desired = desired
        self._is_ours = is_ours
        self._changed = changed
        self._told: dict[str, int] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something else may be desired."""
        self._wake.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        patience = Patience(tries=None, longest_s=LONGEST_S)
        while True:
            try:
                await self._once(patience)
            except NotOurs:
                self._lost(None)
                await asyncio.sleep(NOT_OURS_S)
            except MeshError as error:
                if self.connected or self.trouble is None:
                    log.warning("the head at %s: %s", self.address, error)
                self._lost(error)
                if is_passing(error):
                    await patience.after(error)
                else:
                    await asyncio.sleep(REFUSED_S)

    async def _once(self, patience: Patience) -> None:
        node = await self._client.name()
        self.ours = self._is_ours(node)
        if not self.ours:
            raise NotOurs
        self.node = node
        self._told.clear()
        known = asyncio.Event()

        async def read() -> None:
            async with aclosing(self._client.watch()) as watch:
                async for response in watch:
                    patience.renewed()
                    self._take(response, first=not self.connected)
                    known.set()

        async def bring() -> None:
            await known.wait()
            await self._bring()

        await together(read(), bring())

    def _take(self, response: serving_pb2.WatchServingResponse, *, first: bool) -> None:
        gone = set(response.gone)
        if first:
            # The first message has all: what it does not name is not served any more.
            gone |= self.states.keys() - {state.model for state in response.states}
        for state in response.states:
            self._keep(state)
        for model in gone:
            self.states.pop(model, None)
        self.policy_generation = response.policy_generation
        self.connected, self.trouble = True, None
        self._wake.set()
        self._changed(self, [state.model for state in response.states], sorted(gone))

    def _keep(self, state: serving_pb2.ServingState) -> None:
        kept = serving_pb2.ServingState()
        kept.CopyFrom(state)
        kept.node = self.node
        self.states[state.model] = kept

    def _lost(self, error: MeshError | None) -> None:
        self.connected, self.trouble = False, error
        self._changed(self, [], [])

    async def _bring(self) -> None:
        """Tells what is desired and not held, again after a while where the head did not take it."""
        patience = Patience(tries=None, longest_s=LONGEST_S)
        while True:
            self._wake.clear()
            failed = [error for error in [await self._bring_policy()] if error is not None]
            for assignment in list(self._desired.assignments.values()):
                error = await self._bring_one(assignment)
                if error is not None:
                    failed.append(error)
            passing = next((error for error in failed if is_passing(error)), None)
            if passing is not None:
                await patience.after(passing)
                continue
            patience.renewed()
            try:
                async with asyncio.timeout(REFUSED_S if failed else None):
                    await self._wake.wait()
            except TimeoutError:
                log.info("the head at %s is told again what it refused", self.address)

    async def _bring_policy(self) -> MeshError | None:
        policy = self._desired.policy
        if policy is None or self.policy_generation >= policy.generation:
            return None
        try:
            self.policy_generation = await self._client.set_host_policy(policy)
        except MeshError as error:
            log.warning("the head at %s does not take the host's policy: %s", self.address, error)
            return error
        self._changed(self, [], [])
        return None

    async def _bring_one(self, assignment: serving_pb2.Assignment) -> MeshError | None:
        model, generation = assignment.model, assignment.generation
        state = self.states.get(model)
        held = 0 if state is None else state.generation
        if held >= generation or self._told.get(model, 0) >= generation:
            return None
        try:
            if assignment.version:
                self._keep(await self._client.assign(assignment))
            elif held:
                await self._client.withdraw(model, generation)
        except MeshError as error:
            if error.reason is Reason.UNIMPLEMENTED:
                error.message = f"the head at {self.address} takes no assignments: it is of an older release"
            fresh = self.problems.get(model)
            self.problems[model] = error
            if fresh is None or fresh.reason is not error.reason:
                log.warning(
                    "the head at %s does not take assignment %d of %s: %s", self.address, generation, model, error
                )
            self._changed(self, [], [])
            return error
        self._told[model] = generation
        self.problems.pop(model, None)
        self._changed(self, [model] if assignment.version else [], [])
        return None
