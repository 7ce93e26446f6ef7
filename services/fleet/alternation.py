"""Notices two agents that use one node name: they drive each other out by turns. Knows lives of agents, no stream.

An agent that comes back after its link broke also takes the place of its own old stream, and one that was started anew takes that
of its predecessor; but a life that was driven out by another one does not come back, unless both are alive.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta

REMEMBERED_LIVES = 4
"""Of one node."""
HOLDS = timedelta(minutes=10)
"""A warning goes when nothing of the kind was seen for so long."""
MAX_NODES = 10_000


@dataclass(slots=True)
class _Seen:
    boot_id: str
    peer: str
    past: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED_LIVES))
    time: datetime | None = None
    text: str = ""


class Alternation:
    """Of all nodes, or of those that connected last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def connected(self, node: str, boot_id: str, peer: str, now: datetime, *, replaced: bool) -> None:
        """A life of its agent has the node now; ``replaced``: while another stream had it."""
        seen = self._seen.get(node)
        if seen is None:
            self._seen[node] = _Seen(boot_id, peer)
            if len(self._seen) > MAX_NODES:
                self._seen.popitem(last=False)
            return
        self._seen.move_to_end(node)
        if boot_id != seen.boot_id:
            if boot_id in seen.past:
                seen.time = now
                seen.text = f"two agents use the name {node}: from {seen.peer} and from {peer}"
            if replaced and seen.boot_id not in seen.past:
                seen.past.append(seen.boot_id)
        seen.boot_id, seen.peer = boot_id, peer

    def warning(self, node: str, now: datetime) -> str:
        """Empty: nothing of the kind was seen lately."""
        seen = self._seen.get(node)
        return seen.text if seen and seen.time and now - seen.time < HOLDS else ""
