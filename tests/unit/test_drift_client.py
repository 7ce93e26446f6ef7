"""Who follows drifts over a connection that breaks: nothing old is told again, and no command runs for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import UTC, datetime

import pytest

from splitmesh.cli import route_drift
from splitmesh.client import drift as client_drift
from splitmesh.client.drift import DriftClient, DriftEvent
from splitmesh.errors import MeshError, Reason


def event(number: int, state: str = "tightened", threshold: float = 2.0) -> DriftEvent:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    return DriftEvent(number, "m", 1, "ease", "a", "", 0.9, 0.7, 99, at, state, 0, 200, threshold, "why")


class Router(DriftClient):
    """Knows all events up to a number; a stream tells those above what was asked for, then changes, then breaks."""

    def __init__(self, known: list[DriftEvent], *changes: DriftEvent) -> None:
        self.known, self.changes = known, list(changes)
        self.asked: list[int] = []

    async def _events(self, model: str, after: int) -> AsyncGenerator[DriftEvent]:
        self.asked.append(after)
        for one in self.known:
            if one.number > after:
                yield one
        if not self.changes:
            raise MeshError(Reason.FIELD_INVALID, "enough")
        yield self.changes.pop(0)
        raise MeshError(Reason.SERVICE_UNAVAILABLE, "it broke")


async def told(router: Router, after: int) -> list[tuple[int, str]]:
    found = []
    async with aclosing(router.watch_drift("m", after=after)) as events:
        with suppress(MeshError):  # "enough"
            async for one in events:
                found.append((one.number, one.state))
    return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_drift, "BACKOFF_S", (0.0, 0.0))


async def test_a_change_of_an_old_event_brings_back_none_of_those_after_it() -> None:
    router = Router([event(number) for number in range(1, 8)], event(2, "recalibrated", 0.7))
    assert await told(router, 6) == [(7, "tightened"), (2, "recalibrated")]
    assert router.asked == [6, 6]


async def test_what_changed_while_a_watch_was_broken_is_told() -> None:
    router = Router([event(7), event(8)], event(9))
    found = await told(router, 6)
    assert found == [(7, "tightened"), (8, "tightened"), (9, "tightened")]
    assert router.asked == [6, 6]


async def test_a_command_is_run_for_no_event_that_is_not_after_the_number_asked_for(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with route_drift._Runner(["cat"], after=6) as runner:
        for one in (event(5), event(6), event(7), event(7)):
            runner.tell(one)
        assert [one.number for one in runner._waiting] == [7]
