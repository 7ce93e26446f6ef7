"""Which version of a model a head answers with: the one it was assigned, else the one that the registry's alias stands for.

What is heard is kept on disk: a head that restarts with the cable cut answers with the last version, by the last policy
(``policies.py``).
A new version is verified, loaded, warmed and accepted by a tail before frames go to it; one that is refused changes nothing. How
that comes about is ``serving/slot.py``'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.memory import HostMemory
from edge.head.policies import Policies, Told
from edge.head.serving.assignments import Assignment, AssignmentFiles, Held
from edge.head.serving.bring import Bringer
from edge.head.serving.pins import ACTIVE, CANDIDATE, PREVIOUS, WANTED, Pins
from edge.head.serving.slot import Order, Slot
from edge.head.trial.trial import Trial
from edge.head.trial.tryout import Tryout
from edge.head.ways import Ways
from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.routing import RoutingClient
from splitmesh.errors import MeshError, field_error
from splitmesh.kernel.channels import Channels

log = logging.getLogger(__name__)

PAUSE_S = 30.0
"""Before another try at what only an operator can mend (a full disk, a watch that is refused)."""


class ModelFollower:
    """One model of this head.

    Args:
        model: by name.
        settings: of the head.
        channels: know the registry, the router and the tails.
        registry: has versions and aliases.
        on_active: awaited when what answers has changed.
        on_audit_share: hears which share of an exit's answers is to be audited.
        held: what is on disk about it; None: nothing.
        changed: called whenever its state has.
        priority: how urgent its frames are by now; None: as the settings say.
        workers: how many of this host's workers it can have by now; None: all.
        memory: what its versions may take; None: what there is.
    """

    def __init__(
        self,
        model: str,
        settings: HeadSettings,
        channels: Channels,
        registry: RegistryClient,
        on_active: Callable[[], Awaitable[None]],
        on_audit_share: Told,
        *,
        held: Held | None = None,
        changed: Callable[[], None] = lambda: None,
        priority: Callable[[], int] | None = None,
        workers: Callable[[], float] | None = None,
        memory: HostMemory | None = None,
    ) -> None:
        self.model = model
        """By name."""
        self._on_active = on_active
        self._registry = registry
        self._settings = settings
        self._follows = model in settings.model_names()
        self._note = f"{model}@{settings.alias}"
        self._files = AssignmentFiles(settings.data_dir / "assignments")
        self._told = changed
        self._cache = ModelCache(settings.data_dir, registry, max_bytes=settings.max_cache_bytes)
        self.pins = Pins(model, settings.alias, self._cache)
        """What stays in the cache."""
        policies = Policies(settings.data_dir / "policies", RoutingClient(channels), settings.node, on_audit_share)
        priority = priority or (lambda: settings.priority_of(model))
        workers = workers or (lambda: settings.workers)
        self.bringer = Bringer(
            model, settings, channels, self._cache, policies, priority, workers, memory or HostMemory()
        )
        """Brings versions of the model into memory."""

        def slot(beside: Callable[[int], Slot | None]) -> Slot:
            return Slot(
                model,
                settings,
                self.bringer,
                policies,
                find=self.find,
                changed=changed,
                settled=self._settled,
                beside=beside,
                answering=self._answering,
            )

        self.serving = slot(self._candidate_of)
        """The version that answers."""
        self.candidate = slot(lambda version: None)
        """The one that is tried."""
        self.held = held
        """What it was assigned, as it is on disk; None: never anything."""
        self.tryout = Tryout(self.serving, self.candidate, self.pins.name(CANDIDATE), changed)
        """The trial of the one beside the other."""
        self._heard: VersionInfo | None = None  # what the alias stands for
        self._kept: int | None = None  # the version that a restart would begin with, following the alias
        self._active: list[VersionInfo] = []  # what was pinned as the one that answers
        self._changing = asyncio.Lock()
        self._to_keep = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def ways(self) -> Ways | None:
        """The version to answer with, in one way or several; None until one is loaded."""
        return None if self.serving.loaded is None else self.serving.loaded.ways

    @property
    def trial(self) -> Trial | None:
        """What is tried now; None: nothing, or it is not loaded yet."""
        return self.tryout.trial

    @property
    def assignment(self) -> Assignment | None:
        """What it was told; None: it follows its alias."""
        return None if self.held is None else self.held.assignment

    async def start(self) -> None:
        """Begin to follow; returns when the version on disk, if any, is active."""
        await self._begin()
        self.serving.start()
        self.candidate.start()
        self._keeping = asyncio.create_task(self._keep_for_ever())
        if self.assignment is not None:
            self._direct(self.assignment)
        elif self._follows:
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop following and unload."""
        self.tryout.stop()
        tasks = [task for task in (self._watching, self._keeping) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(self.candidate.stop(), self.serving.stop())

    async def assign(self, assignment: Assignment) -> None:
        """From now on as it says; on disk when it returns.

        One with a lower generation changes nothing. MeshError STORAGE_FULL; FIELD_INVALID for another one of the same generation.
        """
        async with self._changing:
            held = self.held
            if held is not None and assignment.generation <= held.generation:
                if held.assignment == assignment:
                    self._direct(assignment)
                if assignment.generation < held.generation or held.assignment in (None, assignment):
                    return
                raise field_error(
                    "assignment.generation",
                    f"{assignment.generation} was given to another assignment of this model before",
                )
            loaded = self.serving.loaded
            # What is on disk about the version that answers, if anything: whoever keeps that may be a switch behind.
            active = (0 if held is None else held.active) or (0 if loaded is None else loaded.info.version)
            await self._hold(
                Held(
                    model=self.model,
                    generation=assignment.generation,
                    assignment=assignment,
                    active=active,
                    previous=0 if held is None else held.previous,
                )
            )
            # Before anything is waited for: an order that is on disk is followed, whoever asked for it goes away.
            self._direct(assignment)
            await self._watch_no_more()

    async def withdraw(self, generation: int) -> bool:
        """The assignment ends; whether it did: one of a higher generation goes on. MeshError STORAGE_FULL."""
        async with self._changing:
            if self.held is not None and generation < self.held.generation:
                return False
            await self._hold(Held(model=self.model, generation=generation, assignment=None))
            self.tryout.direct(None)
            if not self._follows:
                self.serving.want(None)
                await self.pins.forget_all()
                return True
            if self._watching is None:
                known = await self._cache.recall(self._note)
                if known is not None:
                    self._hear(known)
                self._watching = asyncio.create_task(self._watch())
            return True

    async def find(self, version: int) -> VersionInfo:
        """By number: from this disk where it is known, else from the registry."""
        return await self.pins.find(version) or await self._cache.version(self.model, version)

    def set_priority(self, priority: int) -> None:
        """Of the frames from now on; at tails, of the streams that are opened from now on."""
        for slot in (self.serving, self.candidate):
            for active in slot.loaded.ways.all if slot.loaded is not None else ():
                active.priority = priority

    def look_again(self) -> None:
        """What could not be had may be had now: another policy holds."""
        for slot in (self.serving, self.candidate):
            slot.again()

    async def _activate(self, version: VersionInfo, *, wait_for_tail: bool) -> None:
        wait_s = self._settings.switch_wait_s if wait_for_tail else 0.0
        await self.serving.activate(version, wait_s=wait_s, note=self._note)

    async def _begin(self) -> None:
        """With the first of what is on disk that can be used: a head that restarts has to answer with the cable cut, so it
        waits for no tail."""
        versions: list[VersionInfo | None] = []
        if self.held is not None and self.held.assignment is not None:
            numbers = (self.held.active, self.held.assignment.version, self.held.previous)
            versions += [await self.pins.find(number) for number in dict.fromkeys(numbers) if number]
        heard = await self._cache.recall(self._note) if self._follows else None
        for version in (*versions, heard):
            if version is None:
                continue
            try:
                await self._activate(version, wait_for_tail=False)
            except Exception as error:  # whatever it is: the next one may do, and what is wanted is tried again
                unforeseen = not isinstance(error, MeshError)
                log.warning("the version on disk cannot be used: %s", error, exc_info=unforeseen)
            else:
                if version is heard:
                    self._kept = version.version
                await self._on_active()
                return

    def _direct(self, assignment: Assignment) -> None:
        """Both places, as assigned."""
        self.serving.want(
            Order(
                assignment.version,
                require_tail=assignment.require_tail,
                note=self.pins.name(WANTED),
                generation=assignment.generation,
            )
        )
        self.tryout.direct(assignment)

    def _candidate_of(self, version: int) -> Slot | None:
        loaded = self.candidate.loaded
        return self.candidate if loaded is not None and loaded.info.version == version else None

    def _settled(self) -> None:
        self.tryout.settled(self.assignment)
        self._to_keep.set()

    def _answering(self) -> ActiveModel | None:
        return None if self.ways is None else self.ways.current

    async def _watch(self) -> None:
        while True:
            try:
                async for version in self._registry.watch_alias(self.model, self._settings.alias):
                    if version is not None:
                        self._hear(version)
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.error("%s cannot be followed; again in %.0f s: %s", self._note, PAUSE_S, error, exc_info=unforeseen)
            await asyncio.sleep(PAUSE_S)

    async def _watch_no_more(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _hear(self, version: VersionInfo) -> None:
        self._heard = version
        if self.assignment is not None:
            return  # it goes before what the alias says
        self.serving.want(Order(version.version, version, note=self._note))

    async def _hold(self, held: Held) -> None:
        await asyncio.to_thread(self._files.write, held)
        self.held = held

    async def _keep_for_ever(self) -> None:
        """On disk what answers now, whenever that has changed."""
        while True:
            await self._to_keep.wait()
            self._to_keep.clear()
            await self._on_active()
            try:
                async with self._changing:
                    await self._keep()
            except Exception as error:
                unforeseen = not isinstance(error, MeshError)
                log.warning(
                    "what is active of %s is not kept, and a restart would not know it; again in %.0f s: %s",
                    self.model, PAUSE_S, error, exc_info=unforeseen,
                )  # fmt: skip
                asyncio.get_running_loop().call_later(PAUSE_S, self._to_keep.set)

    async def _keep(self) -> None:
        loaded, candidate = self.serving.loaded, self.candidate.loaded
        if loaded is None:
            return
        held, version = self.held, loaded.info.version
        if held is None or held.assignment is None:
            heard = self._heard
            if heard is not None and heard.version == version and version != self._kept:
                await self._cache.remember(heard, self._note)
                self._kept = version
            if held is not None and heard is not None and heard.version == version:
                await self.pins.forget_all()
                self._active = []
            return
        if candidate is not None:
            await self.pins.keep(CANDIDATE, candidate.infos())
        elif held.assignment.trial is None:
            await self.pins.forget(CANDIDATE)
        before = held.active
        if before and before != version:
            earlier = self._active or [info for info in [await self.pins.find(before)] if info is not None]
            await self.pins.keep(PREVIOUS, earlier)
        await self.pins.keep(ACTIVE, loaded.infos())
        self._active = loaded.infos()
        if version == held.assignment.version:
            await self.pins.forget(WANTED)  # what it stood for is kept as what answers
        if before != version:
            await self._hold(held.model_copy(update={"active": version, "previous": before}))
            self._told()
