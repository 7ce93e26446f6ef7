"""What deployments need of the registry: that a version exists, that it stays while hosts need it, that an alias follows.

A version is kept (``HoldVersion``) from before its deployment is written down until no host has it, or had it before; it is noted
in the database before the registry is asked, so that no hold is forgotten. Aliases and holds that the registry cannot be asked
for now are tried again and again, and what waits is said in the deployment's message. Hosts never wait for any of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Connection, delete, select

from services.fleet.rollout import assignments
from services.fleet.rollout.course import Course
from services.fleet.rollout.rollout import Rollout
from services.fleet.rollout.sql import put
from services.fleet.rollout.tables import held_versions
from services.fleet.rollout.values import DONE, ROLLED_BACK, ROLLING_BACK
from splitmesh.errors import MeshError, Reason
from splitmesh.sql.database import Threads

T = TypeVar("T")
Version = tuple[str, int]
"""Model and number."""

HOLDER = "fleet"
_GONE = (Reason.MODEL_NOT_FOUND, Reason.VERSION_NOT_FOUND)
_AWAY = (Reason.NOT_READY, Reason.DEADLINE_EXPIRED, Reason.SERVICE_UNAVAILABLE)
_LEAST_REST_S, _MOST_REST_S = 1.0, 60.0

log = logging.getLogger(__name__)


class VersionLike(Protocol):
    """What is asked of a version."""

    @property
    def version(self) -> int:
        """Its number."""


class Registry(Protocol):
    """``splitmesh.client.registry.RegistryClient``, as far as it is needed."""

    async def get_version(self, model: str, version: int | None = None, *, alias: str | None = None) -> VersionLike:
        """By number or alias."""

    async def hold_version(self, model: str, version: int, holder: str, *, hold_s: float = 0.0) -> None:
        """Keeps it."""

    async def release_version(self, model: str, version: int, holder: str) -> None:
        """Keeps it no more."""

    async def set_alias(
        self, model: str, alias: str, version: int, *, expected: int | None = None, moved_by: str = "", reason: str = ""
    ) -> int:
        """Moves an alias."""


class Keeping:
    """See the module.

    Args:
        registry: asked with ``deadline_s`` for each call.
        database: started before.
        course: the deployments.
        deadline_s: seconds.
    """

    def __init__(self, registry: Registry, database: Threads, course: Course, *, deadline_s: float) -> None:
        self._registry = registry
        self._database = database
        self._course = course
        self._deadline_s = deadline_s
        self._pinned: Counter[Version] = Counter()
        self._held: set[Version] = set()
        """Since this process started."""
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Something changed that may concern the registry."""
        self._wanted.set()

    @asynccontextmanager
    async def pinned(self, model: str, version: int, alias: str) -> AsyncIterator[None]:
        """The version exists and stays, while the block runs by itself and afterwards while a deployment needs it.

        Raises:
            MeshError: MODEL_NOT_FOUND, VERSION_NOT_FOUND, FIELD_INVALID, SERVICE_UNAVAILABLE (the registry cannot be asked).
        """
        await self._ask(self._registry.get_version(model, version))
        if alias:
            await self._pointed(model, alias)
        self._pinned[model, version] += 1
        try:
            await self._hold(model, version)
            yield
        finally:
            self._pinned[model, version] -= 1
            self.wake()

    async def run(self) -> None:
        """Does what there is to do, for ever."""
        rest_s = _LEAST_REST_S
        while True:
            self._wanted.clear()
            try:
                await self.tidy()
            except MeshError as error:
                log.warning("the registry is asked again in %g s: %s", rest_s, error)
                await asyncio.sleep(rest_s)
                rest_s = min(2 * rest_s, _MOST_REST_S)
                continue
            rest_s = _LEAST_REST_S
            with suppress(TimeoutError):
                async with asyncio.timeout(_MOST_REST_S):
                    await self._wanted.wait()

    async def tidy(self) -> None:
        """Moves aliases, then holds and lets go of versions; raises the first problem after trying all of them."""
        problems = []
        for rollout in list(self._course.rollouts.values()):
            try:
                await self._follow(rollout)
            except MeshError as error:
                problems.append(error)
        try:
            await self._hold_and_release()
        except MeshError as error:
            problems.append(error)
        if problems:
            raise problems[0]

    # ---- aliases

    async def _follow(self, rollout: Rollout) -> None:
        plan, status, alias = rollout.plan, rollout.status, rollout.plan.strategy.alias
        if not alias:
            return
        try:
            if status.state == DONE and not status.alias_moved:
                was = status.alias_from
                pointed = await self._pointed(plan.model, alias)
                if not was or pointed not in (was, plan.version):
                    was = pointed
                    await self._alias_is(rollout, moved=False, was=was)  # known before it moves
                await self._ask(self._move(rollout, plan.version, None))
                await self._alias_is(rollout, moved=True, was=was)
            elif status.state in (ROLLING_BACK, ROLLED_BACK) and status.alias_moved:
                with suppress_reasons(
                    Reason.ALIAS_MOVED, *_GONE
                ):  # by somebody else, or there is nowhere to go back to
                    await self._ask(self._move(rollout, status.alias_from, plan.version))
                await self._alias_is(rollout, moved=False, was=0)
        except MeshError as error:
            problem = f"{alias!r} could not be moved yet: {error.message}"
            if not status.message.endswith(problem):
                await self._alias_is(rollout, moved=status.alias_moved, was=status.alias_from, problem=problem)
            raise

    async def _move(self, rollout: Rollout, version: int, expected: int | None) -> int:
        plan = rollout.plan
        return await self._registry.set_alias(
            plan.model,
            plan.strategy.alias,
            version,
            expected=expected,
            moved_by=plan.created_by or HOLDER,
            reason=f"deployment {plan.id}" + (" was rolled back" if expected is not None else ""),
        )

    async def _pointed(self, model: str, alias: str) -> int:
        try:
            return (await self._ask(self._registry.get_version(model, alias=alias))).version
        except MeshError as error:
            if error.reason is Reason.ALIAS_NOT_FOUND:
                return 0
            raise

    async def _alias_is(self, rollout: Rollout, *, moved: bool, was: int, problem: str = "") -> None:
        await self._course.act(rollout.plan.id, lambda one: one.alias_is(moved=moved, was=was, problem=problem))

    # ---- holds

    async def _hold_and_release(self) -> None:
        def read(connection: Connection) -> tuple[set[Version], set[Version]]:
            held = {(model, version) for model, version in connection.execute(select(held_versions))}
            return assignments.needed_versions(connection), held

        needed, held = await self._database.read(read)
        # A hold that was noted may never have been asked for: asking twice is fine.
        for model, version in sorted(needed - self._held):
            with suppress_reasons(*_GONE):
                await self._hold(model, version)
        for model, version in sorted(held - needed):
            if self._pinned[model, version]:
                continue
            with suppress_reasons(*_GONE):
                await self._ask(self._registry.release_version(model, version, HOLDER))
            self._held.discard((model, version))
            await self._database.write(partial(_forget, model=model, version=version))

    async def _hold(self, model: str, version: int) -> None:
        await self._database.write(lambda found: put(found, held_versions, [{"model": model, "version": version}]))
        await self._ask(self._registry.hold_version(model, version, HOLDER))
        self._held.add((model, version))

    async def _ask(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._deadline_s):
                return await call
        except TimeoutError as error:
            raise _unavailable(f"the registry did not answer within {self._deadline_s:g} s") from error
        except MeshError as error:
            if error.reason not in _AWAY:
                raise
            raise _unavailable(f"the registry cannot be asked: {error.message}") from error


@contextmanager
def suppress_reasons(*reasons: Reason) -> Iterator[None]:
    """Passes over a MeshError with one of these reasons."""
    try:
        yield
    except MeshError as error:
        if error.reason not in reasons:
            raise


def _forget(connection: Connection, model: str, version: int) -> None:
    of_it = (held_versions.c.model == model) & (held_versions.c.version == version)
    connection.execute(delete(held_versions).where(of_it))


def _unavailable(problem: str) -> MeshError:
    return MeshError(Reason.SERVICE_UNAVAILABLE, problem, retry_after_s=2.0)
