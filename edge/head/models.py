"""All models of this head: those of its settings, which follow their alias, and those that it was assigned.

Which version of a model answers is ``follow.py``'s; here they come, go and are found.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower
from edge.head.serving.assignments import MAX_WITHDRAWN, Assignment, AssignmentFiles, Held, checked_name
from edge.head.trial.trial import Trial
from edge.head.ways import Ways
from splitmesh.errors import MeshError, Reason

log = logging.getLogger(__name__)

NOT_LOADED_RETRY_S = 1.0


class Make(Protocol):
    """Makes a follower of a model."""

    def __call__(self, model: str, held: Held | None, on_active: Callable[[], Awaitable[None]]) -> ModelFollower:
        """``held``: what is on disk about it."""
        ...


class Models:
    """Of this head; a part of its life.

    Args:
        settings: name the models that are always there, and how many there may be.
        make: makes a follower.
        on_serving: awaited with whether any model is loaded, when that has changed.
        on_gone: called with the name of a model that is not served any more.
    """

    def __init__(
        self,
        settings: HeadSettings,
        make: Make,
        on_serving: Callable[[bool], Awaitable[None]],
        on_gone: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._settings = settings
        self._make = make
        self._on_serving = on_serving
        self._on_gone = on_gone
        self._files = AssignmentFiles(settings.data_dir / "assignments")
        self._followers: dict[str, ModelFollower] = {}
        self._withdrawn: dict[str, Held] = {}
        """What is known of models that are not here; the earliest first, as many as are kept on disk."""
        self._leaving: set[asyncio.Task[None]] = set()
        self._orders: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self._serving = False

    async def start(self) -> None:
        """Begin with what is on disk: assignments first of all."""
        held = await asyncio.to_thread(self._files.read)
        named = self._settings.model_names()
        for model in named:
            self._followers[model] = self._make(model, held.pop(model, None), self._look)
        for model, one in held.items():
            if one.assignment is None:
                self._note_withdrawn(one)
            else:
                self._followers[model] = self._make(model, one, self._look)
        for follower in self._followers.values():
            await follower.start()

    async def stop(self) -> None:
        """Unload all."""
        await asyncio.gather(*self._orders, return_exceptions=True)
        followers, self._followers = list(self._followers.values()), {}
        for follower in followers:
            await follower.stop()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    def ways(self, model: str) -> Ways:
        """The version to answer with; MODEL_NOT_FOUND, or NOT_READY while none is loaded."""
        follower = self._of(model)
        if follower.ways is None:
            raise MeshError(
                Reason.NOT_READY,
                f"no version of {model or 'the first model'!r} is loaded yet",
                retry_after_s=NOT_LOADED_RETRY_S,
            )
        return follower.ways

    def trial(self, model: str) -> Trial | None:
        """Another version of it that is tried; None: none. MODEL_NOT_FOUND."""
        return self._of(model).trial

    def names(self) -> list[str]:
        """Of all models."""
        return list(self._followers)

    def followers(self) -> Sequence[ModelFollower]:
        """In the same order."""
        return list(self._followers.values())

    def follower(self, model: str) -> ModelFollower | None:
        """Of one model; None where it is not here."""
        return self._followers.get(model)

    def loaded(self) -> list[ActiveModel]:
        """Every version in memory that answers or is tried, in all its ways."""
        slots = [slot for one in self._followers.values() for slot in (one.serving, one.candidate)]
        return [active for slot in slots if slot.loaded is not None for active in slot.loaded.ways.all]

    async def assign(self, assignment: Assignment) -> None:
        """As :meth:`ModelFollower.assign`; a model that was not here is from then on. QUEUE_FULL: there are too many.

        Done to its end, also where the caller goes away: what is on disk is what holds.
        """
        await self._to_the_end(self._assign(assignment))

    async def _to_the_end(self, order: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(order)
        self._orders.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._orders.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("an order was not followed: %s", error)  # its caller is told, unless it went away

    async def _assign(self, assignment: Assignment) -> None:
        async with self._changing:
            model = assignment.model
            if (follower := self._followers.get(model)) is not None:
                await follower.assign(assignment)
                return
            gone = self._withdrawn.get(model)
            if gone is not None and assignment.generation <= gone.generation:
                return
            if len(self._followers) >= self._settings.max_models:
                raise MeshError(
                    Reason.QUEUE_FULL,
                    f"this head serves {len(self._followers)} models, and may serve {self._settings.max_models}",
                    metadata={"limit": str(self._settings.max_models)},
                )
            follower = self._make(model, None, self._look)
            await follower.start()
            try:
                await follower.assign(assignment)
            except BaseException:
                await follower.stop()
                raise
            self._withdrawn.pop(model, None)
            self._followers[model] = follower

    async def withdraw(self, model: str, generation: int) -> None:
        """As :meth:`ModelFollower.withdraw`; one that the settings do not name goes, when its frames are answered."""
        await self._to_the_end(self._withdraw(checked_name(model), generation))

    async def _withdraw(self, model: str, generation: int) -> None:
        async with self._changing:
            follower = self._followers.get(model)
            if follower is None:
                gone = self._withdrawn.get(model)
                if gone is None or gone.generation < generation:
                    held = Held(model=model, generation=generation, assignment=None)
                    await asyncio.to_thread(self._files.write, held)
                    self._note_withdrawn(held)
                return
            if await follower.withdraw(generation) and model not in self._settings.model_names():
                del self._followers[model]
                if follower.held is not None:
                    self._note_withdrawn(follower.held)
                leaving = asyncio.create_task(follower.stop())
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
                self._on_gone(model)
                await self._look()

    def _note_withdrawn(self, held: Held) -> None:
        self._withdrawn.pop(held.model, None)
        self._withdrawn[held.model] = held
        while len(self._withdrawn) > MAX_WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]

    def _default(self) -> str:
        """What answers requests that name no model: the first of the settings, else the only one; empty: there are several, and
        which of them came first is nothing that outlives a restart."""
        named = self._settings.model_names()
        if named:
            return named[0]
        return next(iter(self._followers)) if len(self._followers) == 1 else ""

    def _of(self, model: str) -> ModelFollower:
        follower = self._followers.get(model or self._default())
        if follower is None:
            if not self._followers:
                raise MeshError(
                    Reason.NOT_READY, "this head was told to serve no model yet", retry_after_s=NOT_LOADED_RETRY_S
                )
            if not model:
                raise MeshError(
                    Reason.MODEL_NOT_FOUND,
                    f"this head serves {', '.join(self._followers)}: a request has to name one of them",
                )
            raise MeshError(Reason.MODEL_NOT_FOUND, f"this head serves {', '.join(self._followers)}, not {model!r}")
        return follower

    async def _look(self) -> None:
        """Whether frames can be answered."""
        serving = any(one.ways is not None for one in self._followers.values())
        if serving is not self._serving:
            self._serving = serving
            await self._on_serving(serving)
