"""The heads of this host: found by discovery, each watched; what they serve as the fleet is told it.

A head that does not answer for a while is told as one that answers nothing: its frames get no answers either. Knows no fleet and
no tasks.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge.agent.desired import Desired
from edge.agent.head import HeadLink
from splitmesh.api.serving.v1 import serving_pb2
from splitmesh.client.serving import ServingClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels

log = logging.getLogger(__name__)

AGAIN_S = 5.0
"""After discovery failed for a reason that it does not wait out by itself."""

Told = Callable[[Sequence[serving_pb2.ServingState], Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class HeadView:
    """One head process and one model."""

    name: str
    """Its node name, or its address while that is not known."""
    connected: bool
    state: serving_pb2.ServingState | None
    """As last heard; None: it does not serve the model."""
    problem: MeshError | None
    """Why it does not take what it is told, or cannot be reached."""


class Heads:
    """A part of an app.

    Args:
        channels: find and reach heads.
        service: under which they are discovered.
        names: node names of this host's; empty: all.
        desired: what they are to serve.
        silence_s: how long one may be away before it counts as answering nothing.
    """

    def __init__(
        self, channels: Channels, service: str, names: Sequence[str], desired: Desired, *, silence_s: float
    ) -> None:
        self._channels = channels
        self._service = service
        self._names = frozenset(names)
        self._desired = desired
        self._silence_s = silence_s
        self._links: dict[str, HeadLink] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._silent: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._observers: list[Told] = []
        self._following: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        """Set with the next change of anything, and another one from then on."""
        desired.observe(self._desired_changed)

    def observe(self, told: Told) -> None:
        """Tell it, in the event loop, states that changed and models that no head serves any more."""
        self._observers.append(told)

    async def start(self) -> None:
        """Begins to follow; returns at once."""
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Leaves the heads as they are."""
        tasks = [task for task in (self._following, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    def states(self) -> list[serving_pb2.ServingState]:
        """What this host serves, one state for each model on each head process."""
        return [self._said(link, model) for link in self._links.values() for model in link.states]

    def views(self, model: str) -> list[HeadView]:
        """Every head process of this host and its state of a model, by name."""
        views = [
            HeadView(
                link.node or link.address,
                link.connected,
                link.states.get(model),
                link.problems.get(model) or link.trouble,
            )
            for link in self._links.values()
            if link.ours
        ]
        return sorted(views, key=lambda view: view.name)

    def addresses(self) -> list[str]:
        """Of the heads that are connected."""
        return sorted(link.address for link in self._links.values() if link.connected and link.ours)

    def policy_generation(self) -> int:
        """Of the host policy that all heads hold which are connected; without any the one that is kept for them."""
        held = [link.policy_generation for link in self._links.values() if link.connected]
        kept = 0 if self._desired.policy is None else int(self._desired.policy.generation)
        return min(held, default=kept)

    async def _follow(self) -> None:
        while True:
            try:
                async for instances in self._channels.discovery.watch(self._service):
                    self._set({instance.address for instance in instances})
                return  # discovery is closed
            except MeshError as error:
                log.error("heads cannot be found: %s", error)
            await asyncio.sleep(AGAIN_S)

    def _set(self, addresses: set[str]) -> None:
        for address in sorted(addresses - self._links.keys()):
            client = ServingClient(self._channels, address)
            link = HeadLink(client, address, self._desired, self._is_ours, self._head_changed)
            self._links[address] = link
            self._running[address] = asyncio.create_task(link.run())
        for address in self._links.keys() - addresses:
            link = self._links.pop(address)
            self._running.pop(address).cancel()
            self._stop_timer(address)
            self._silent.discard(address)
            log.info("the head at %s is gone", address)
            self._tell(*self._without(link, link.states))

    def _is_ours(self, node: str) -> bool:
        """By its own name, or by the name of a head whose process it is (``NAME-1``)."""
        return not self._names or node in self._names or re.sub(r"-\d+$", "", node) in self._names

    def _head_changed(self, link: HeadLink, models: list[str], gone: list[str]) -> None:
        if self._links.get(link.address) is not link:
            return
        if link.connected:
            self._stop_timer(link.address)
            if link.address in self._silent:
                self._silent.discard(link.address)
                models = list(link.states)
        elif link.states and link.address not in self._timers and link.address not in self._silent:
            loop = asyncio.get_running_loop()
            self._timers[link.address] = loop.call_later(self._silence_s, self._fall_silent, link)
        changed = [self._said(link, model) for model in models if model in link.states]
        nothing, nowhere = self._without(link, gone)
        self._tell([*changed, *nothing], nowhere)

    def _fall_silent(self, link: HeadLink) -> None:
        self._timers.pop(link.address, None)
        self._silent.add(link.address)
        log.warning("the head %s has not answered for %g s", link.node, self._silence_s)
        self._tell([self._said(link, model) for model in link.states], [])

    def _said(self, link: HeadLink, model: str) -> serving_pb2.ServingState:
        state = link.states[model]
        if link.address not in self._silent:
            return state
        said = serving_pb2.ServingState()
        said.CopyFrom(state)
        said.active_version = 0
        said.wanted.phase = serving_pb2.PHASE_QUEUED
        said.wanted.reason = Reason.SERVICE_UNAVAILABLE.value
        said.wanted.message = f"the head {link.node} does not answer"
        return said

    def _without(self, link: HeadLink, models: Iterable[str]) -> tuple[list[serving_pb2.ServingState], list[str]]:
        """What is told when a head does not serve models any more: a state that says nothing, for which the fleet forgets what
        that head said, and the models that no other head serves. A head that moved to another address still says it."""
        left = [model for model in models if not self._says(link.node, model)]
        nowhere = [model for model in left if not self._is_served(model)]
        gone = set(nowhere)
        return [serving_pb2.ServingState(model=model, node=link.node) for model in left if model not in gone], nowhere

    def _says(self, node: str, model: str) -> bool:
        return any(link.node == node and model in link.states for link in self._links.values())

    def _is_served(self, model: str) -> bool:
        return any(model in link.states for link in self._links.values())

    def _stop_timer(self, address: str) -> None:
        timer = self._timers.pop(address, None)
        if timer is not None:
            timer.cancel()

    def _desired_changed(self) -> None:
        for link in self._links.values():
            link.wake()
        self._wake()

    def _tell(self, states: Sequence[serving_pb2.ServingState], gone: Sequence[str]) -> None:
        if states or gone:
            for told in self._observers:
                told(states, gone)
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
