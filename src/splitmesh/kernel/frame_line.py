"""The frames of one stream that have no answer yet, or one that nobody has taken: who waits, and whose answer goes next.

Knows nothing of tasks, time or messages; ``kernel/streams.py`` works with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Response = TypeVar("Response")


@dataclass(slots=True, eq=False)
class Place(Generic[Item, Response]):
    """One frame in the line."""

    frame_id: int
    item: Item | None
    """None once it has its response: a large frame is not kept for as long as that waits to be taken."""
    response: Response | None = None
    task: asyncio.Task[Response] | None = None
    """Answers it; None while it waits for its turn."""
    given_up: bool = False

    def unanswered(self) -> Item:
        """The frame, which has no response yet."""
        if self.item is None:
            raise AssertionError("a frame that has its response is over")
        return self.item


class FrameLine(Generic[Item, Response]):
    """Frames in the order in which they came."""

    def __init__(self) -> None:
        self.in_order = False
        """Responses are taken in the order of the frames; otherwise as they become ready."""
        self.max_waiting: int | None = None
        """Frames that may wait for their turn, the newest of them first; None: any number, the oldest first."""
        self.untaken = 0
        """Frames whose response has not been taken."""
        self._unanswered: dict[int, Place[Item, Response]] = {}
        self._waiting: deque[Place[Item, Response]] = deque()
        self._order: deque[Place[Item, Response]] = deque()
        self._ready: deque[tuple[Place[Item, Response] | None, Response]] = deque()

    def __len__(self) -> int:
        """Frames whose response has not been taken, without those that were turned away."""
        return len(self._unanswered)

    def find(self, frame_id: int) -> Place[Item, Response] | None:
        """The frame with this number; None when its response was taken, or it was turned away or never came."""
        return self._unanswered.get(frame_id)

    def unanswered(self) -> list[Item]:
        """Frames without a response."""
        return [place.item for place in self._unanswered.values() if place.item is not None]

    def enter(self, frame_id: int, item: Item) -> Place[Item, Response]:
        """A frame comes; its number must be free."""
        place = self._stand(frame_id, item)
        self._unanswered[frame_id] = place
        return place

    def turn_away(self, frame_id: int, item: Item, response: Response) -> None:
        """A frame comes that will not be worked on; its response has a place as any other's."""
        self.settle(self._stand(frame_id, item), response)

    def wait(self, place: Place[Item, Response]) -> Place[Item, Response] | None:
        """The frame waits for its turn; returns the one that loses its turn to it."""
        self._waiting.append(place)
        if self.max_waiting is not None and len(self._waiting) > self.max_waiting:
            return self._waiting.popleft()
        return None

    def stop_waiting(self, place: Place[Item, Response]) -> None:
        """It will not be worked on."""
        self._waiting.remove(place)

    def next_turn(self) -> Place[Item, Response] | None:
        """Whose turn it is."""
        if not self._waiting:
            return None
        return self._waiting.popleft() if self.max_waiting is None else self._waiting.pop()

    def settle(self, place: Place[Item, Response], response: Response) -> None:
        """The frame has its response."""
        place.response, place.item = response, None
        if not self.in_order:
            self._ready.append((place, response))
            return
        while self._order and (following := self._order[0].response) is not None:
            self._ready.append((self._order.popleft(), following))

    def announce(self, response: Response) -> None:
        """A response to no frame, after those that are ready."""
        self.untaken += 1
        self._ready.append((None, response))

    def take(self) -> Response | None:
        """The next response; its frame's number is free again."""
        if not self._ready:
            return None
        place, response = self._ready.popleft()
        self.untaken -= 1
        if place is not None and self._unanswered.get(place.frame_id) is place:
            del self._unanswered[place.frame_id]
        return response

    def _stand(self, frame_id: int, item: Item) -> Place[Item, Response]:
        place: Place[Item, Response] = Place(frame_id, item)
        self.untaken += 1
        if self.in_order:
            self._order.append(place)
        return place
