"""The events of drifts, numbered, and those who follow them. In memory; the store is the board's business."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from services.router.drift.events import DriftEvent, State
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.latest import Latest
from splitmesh.kernel.streams import Drain

log = logging.getLogger(__name__)


class EventLog:
    """Events by number, and in the order in which they last became other ones."""

    def __init__(self, *, max_watchers: int, watch_stream_s: float, drain: Drain) -> None:
        self._max_watchers, self._watch_stream_s, self._drain = max_watchers, watch_stream_s, drain
        self._events: OrderedDict[int, tuple[int, DriftEvent]] = OrderedDict()
        self._last = 0
        self._changes = Latest[int](0)
        self._watchers = 0

    def restore(self, events: Iterable[DriftEvent], last: int) -> None:
        """As it was; ``last`` is the highest number that was ever given."""
        self.put(events, ())
        self._last = max(last, self._last)

    def get(self, number: int) -> DriftEvent | None:
        """By its number."""
        return self._events[number][1] if number in self._events else None

    def of(self, model: str) -> list[DriftEvent]:
        """Of one model, the newest first."""
        return [self._events[number][1] for number in sorted(self._events, reverse=True) if self._is_of(number, model)]

    def numbered(self, events: Iterable[DriftEvent]) -> list[DriftEvent]:
        """With the next numbers where they have none; the numbers are taken once the events are put."""
        found, last = [], self._last
        for event in events:
            if not event.number:
                last += 1
                event = replace(event, number=last)
            found.append(event)
        return found

    def put(self, events: Iterable[DriftEvent], forget: Sequence[int]) -> None:
        """Add or replace events, and wake those who follow where one is new or in another state."""
        changes = self._changes.value or 0
        for event in events:
            before = self.get(event.number)
            if before is None or (before.state, before.threshold) != (event.state, event.threshold):
                changes += 1
                self._events.pop(event.number, None)
                self._events[event.number] = (changes, event)
                level = logging.WARNING if event.state is State.TIGHTENED else logging.INFO
                text = "drift %d of %s v%d is %s: %s"
                log.log(level, text, event.number, event.model, event.version, event.state, event.why)
            else:
                self._events[event.number] = (self._events[event.number][0], event)
            self._last = max(self._last, event.number)
        for number in forget:
            self._events.pop(number, None)
        if changes != self._changes.value:
            self._changes.set(changes)

    async def watch(self, model: str, after: int) -> AsyncGenerator[DriftEvent]:
        """See ``DriftBoard.watch``."""
        if self._watchers >= self._max_watchers:
            detail = f"{self._max_watchers} follow drifts already; no more are taken"
            raise MeshError(Reason.QUEUE_FULL, detail, retry_after_s=5.0)
        self._watchers += 1
        try:
            known = sorted(number for number in self._events if number > after and self._is_of(number, model))
            seen = self._changes.value or 0
            for number in known:
                # One that changes meanwhile comes again below.
                if (event := self.get(number)) is not None:
                    yield event
            async with aclosing(self._changes.follow(self._drain, longest_s=self._watch_stream_s)) as changes:
                async for change in changes:
                    news, seen = self._since(seen, model), change
                    for event in news:
                        yield event
        finally:
            self._watchers -= 1

    def _since(self, seen: int, model: str) -> list[DriftEvent]:
        found = []
        for number in reversed(self._events):
            if self._events[number][0] <= seen:
                break
            if self._is_of(number, model):
                found.append(self._events[number][1])
        return found[::-1]

    def _is_of(self, number: int, model: str) -> bool:
        return model in ("", self._events[number][1].model)
