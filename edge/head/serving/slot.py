"""Keeps one version of a model in memory, as ordered: the one that answers, or the one that is tried.

A version that is ordered is brought beside the one that is there, which goes when its last frame is answered; one that cannot be
brought changes nothing and is tried again. Orders are levels, not steps: only the newest counts, and one that is on its way when
another comes is given up. Knows no alias, no assignment and no disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from edge.head.active import ActiveModel
from edge.head.config import HeadSettings
from edge.head.policies import Policies
from edge.head.serving.bring import Bringer, Loaded, is_number_of
from edge.head.serving.progress import Phase, Progress
from splitmesh.client.registry import VersionInfo
from splitmesh.client.transfer import is_passing
from splitmesh.errors import MeshError

log = logging.getLogger(__name__)

RETRY_S = 1.0
PAUSE_S = 30.0
"""Before another try at what only an operator can mend (a full disk, a version not trusted, or that no back end computes)."""


@dataclass(frozen=True, slots=True)
class Order:
    """A version to have in memory."""

    version: int
    info: VersionInfo | None = None
    """As the registry told it; None: it is to be found by its number."""
    require_tail: bool = False
    """It is not switched to before a tail has accepted it."""
    note: str = ""
    """Name in the cache under which its parts stay."""
    generation: int = 0
    """Of the assignment; 0: it is no assignment's."""


class Slot:
    """One place for a version.

    Args:
        model: by name.
        settings: of the head.
        bringer: brings versions.
        policies: of the model.
        find: gives a version by number.
        changed: called with every step.
        settled: called whenever what was ordered is loaded, or nothing is as ordered.
        beside: another place that has a version of this number loaded, to be taken over from there; None: none has.
        answering: what answers frames meanwhile; None: nothing does.
    """

    def __init__(
        self,
        model: str,
        settings: HeadSettings,
        bringer: Bringer,
        policies: Policies,
        *,
        find: Callable[[int], Awaitable[VersionInfo]],
        changed: Callable[[], None],
        settled: Callable[[], None],
        beside: Callable[[int], Slot | None],
        answering: Callable[[], ActiveModel | None],
    ) -> None:
        self._model = model
        self._settings = settings
        self._bringer = bringer
        self._policies = policies
        self._find = find
        self._told = changed
        self._settled = settled
        self._beside = beside
        self._answering = answering
        self._order: Order | None = None
        self._failures = 0  # of this order, in a row
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.loaded: Loaded | None = None
        """What is in memory, and answers or is tried."""
        self.wanted: Progress | None = None
        """How far the version is that was ordered last; None: none was."""

    def start(self) -> None:
        """Begin to follow orders."""
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Follow no more, and unload when the frames on their way are answered."""
        self._no_timer()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if self.loaded is not None:
            loaded, self.loaded = self.loaded, None
            await loaded.retire()

    def want(self, order: Order | None) -> None:
        """From now on this version, or none."""
        if order is None:
            self.wanted = None
        elif self.wanted is None or self.wanted.version != order.version:
            self.wanted = Progress(order.version, self._told)
        elif order != self._order and self.wanted.phase is Phase.FAILED:
            # What kept it when it was ordered before says nothing of this order.
            self.wanted = Progress(order.version, self._told)
        if order is None or order != self._order:
            self._order, self._failures = order, 0
            self._no_timer()
        self._changed.set()
        self._told()

    def again(self, after_s: float = 0.0) -> None:
        """Look at the order once more, after a while; without an order what is loaded stays as it is."""
        if self._order is not None:
            self._no_timer()
            self._timer = asyncio.get_running_loop().call_later(after_s, self._changed.set)

    async def activate(self, version: VersionInfo, *, wait_s: float, note: str) -> None:
        """Bring a version and switch to it; the one before goes when its last frame is answered. Raises what bringing raises."""
        progress = self.wanted
        if progress is None or progress.version != version.version:
            progress = Progress(version.version, self._told)
            self.wanted = self.wanted or progress
        fresh = await self._bringer.bring(version, progress, wait_s=wait_s, note=note, beside=self._answering())
        fresh.start(self._policies)
        self._put(fresh)
        progress.enter(Phase.SERVING)

    def _put(self, fresh: Loaded | None) -> None:
        """Switch: one assignment between two frames."""
        old, self.loaded = self.loaded, fresh
        if old is not None:
            retiring = asyncio.create_task(old.retire())
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retired)
        if fresh is not None:
            log.info("%s version %d is active", fresh.info.model, fresh.info.version)
        self._settled()
        self._told()

    def take(self, version: int) -> Loaded | None:
        """The version, which is the caller's from now on; None where it is not loaded any more."""
        if self.loaded is None or self.loaded.info.version != version:
            return None
        loaded, self.loaded = self.loaded, None
        return loaded

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._retiring.discard(task)
        self._told()

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            order = self._order
            job = asyncio.create_task(self._fulfil(order))
            try:
                while not job.done() and self._order is order:
                    await self._look_up(job)
                    if self._order is order:
                        self._changed.clear()  # asked to look again: it is being looked at
            finally:
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)

    async def _look_up(self, job: asyncio.Task[None]) -> None:
        """Until it is done, or somebody wants something."""
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({job, changed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()

    async def _fulfil(self, order: Order | None) -> None:
        if order is None:
            if self.loaded is not None:
                self._put(None)
            return
        progress = self.wanted
        try:
            if not self._is_there(order):
                await self._bring(order)
            else:
                self._settled()
            if progress is not None:
                progress.enter(Phase.SERVING)
        except Exception as error:
            # Whatever it is (a full disk, an artefact that nobody foresaw): the head goes on with what it has.
            unforeseen = not isinstance(error, MeshError)
            log.warning("%s version %d cannot be used yet: %s", self._model, order.version, error, exc_info=unforeseen)
            if progress is not None:
                progress.failed(error)
            self._failures += 1
            self.again(_pause_s(error, self._failures))
        else:
            self._failures = 0

    def _no_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def _bring(self, order: Order) -> None:
        wait_s = math.inf if order.require_tail else self._settings.switch_wait_s
        other, progress = self._beside(order.version), self.wanted
        if other is not None and other.loaded is not None and progress is not None:
            await self._bringer.wait_for_tail(other.loaded.ways.all, progress, wait_s)
            if (ready := other.take(order.version)) is not None:
                self._put(ready)
                return
        info = order.info or await self._find(order.version)
        if order.info is None:
            await self._bringer.hold(info, order.note)
        await self.activate(info, wait_s=wait_s, note=order.note)

    def _is_there(self, order: Order) -> bool:
        if self.loaded is None:
            return False
        if order.info is not None:
            return is_number_of(self.loaded.info, order.info)
        return self.loaded.info.version == order.version


def _pause_s(error: Exception, failures: int) -> float:
    """Before the next try: each one opens and measures the version beside the frames, so they get rarer."""
    if isinstance(error, MeshError) and not is_passing(error):
        return PAUSE_S
    asked_s = error.retry_after_s if isinstance(error, MeshError) else None
    return min(PAUSE_S, max(asked_s or 0.0, RETRY_S * 2.0 ** min(failures - 1, 10)))
