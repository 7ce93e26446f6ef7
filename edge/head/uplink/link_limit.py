"""How much the link itself lets cross, where it is known to be what limits. Pure: times and facts come from the caller.

A link that is hardly used is measured badly: what a small frame takes on it is jitter, and the figure is far too low. So a
goodput alone limits nothing. It does where frames wait for those before them, while more than half of the goodput is asked
for: then somewhat less than it carries may cross, and what waits goes away. While nothing waits the limit grows, slowly at
first, until something does or nobody needs it any more: a limit is tried again and again, as BBR probes for bandwidth
(Cardwell et al., "BBR: congestion-based congestion control", 2016).
"""

from __future__ import annotations

import math

from splitmesh.routing.elapsed import Elapsed

SHARE = 0.9
"""Of the goodput that may be used where frames have waited."""
LEAST_SHARE, DRAINING_S = 0.5, 1.0
"""The share falls to this while frames wait on, by a factor of e in so long: what has gathered has to go away too."""
WAITS_MS, FRAMES, LONGEST_MS = 30.0, 2.0, 500.0
"""A frame that waits longer, and longer than so many frames take to cross, waits for the link: jitter, and frames that happen to
come together, are shorter. So does one that waits longer than the last, whatever its size."""
USED = 0.5
"""A link of which less is asked for is not what limits, and a limit of which less is asked for does not bind."""
GROWTH_PER_S = 0.04
"""Of the limit while nothing waits; so much again for each second in which nothing has."""
RELEASED_S = 5.0
"""A limit that has not bound for so long is none any more."""
PROBE_S = 3.0
"""In so long one frame of the largest size may always cross: else nobody would see a link heal."""


class LinkLimit:
    """Of one uplink, over all of a head's applications."""

    def __init__(self, now_s: float) -> None:
        self._elapsed = Elapsed(now_s)
        self._clear_s = self._free_s = self._waiting_s = 0.0
        self.bytes_per_s = math.inf
        """That may cross; infinite: the link is not known to limit."""

    def saw(
        self,
        *,
        goodput: float,
        waits_ms: float,
        frame_bytes: float,
        asked: float,
        delivered: float,
        largest_bytes: float,
        now_s: float,
    ) -> None:
        """How things are now; tell it several times a second.

        Args:
            goodput: bytes per second that get through, by the frames that cross; 0: not known.
            waits_ms: how long a frame waits for those before it to cross.
            frame_bytes: of an ordinary frame.
            asked: bytes per second that hard samples ask for, crossing or not.
            delivered: bytes per second that were answered lately: the link carries as much at least, whatever its goodput is
                thought to be.
            largest_bytes: of a frame.
            now_s: on the caller's clock.
        """
        passed_s = self._elapsed.since_last(now_s)
        if goodput <= 0:
            self._release()
            return
        carries = max(goodput, delivered)
        usual_ms = min(max(WAITS_MS, FRAMES * frame_bytes / carries * 1e3), LONGEST_MS)
        waiting = waits_ms > usual_ms and asked >= USED * carries
        self._waiting_s = self._waiting_s + passed_s if waiting else 0.0
        share = max(LEAST_SHARE, SHARE * math.exp(-self._waiting_s / DRAINING_S))
        least = max(share * carries, largest_bytes / PROBE_S)
        if waiting:
            self.bytes_per_s, self._clear_s, self._free_s = least, 0.0, 0.0
            return
        if math.isinf(self.bytes_per_s):
            return
        self._clear_s += passed_s
        self.bytes_per_s = max(least, self.bytes_per_s * (1 + GROWTH_PER_S * (1 + self._clear_s) * passed_s))
        self._free_s = self._free_s + passed_s if asked < USED * self.bytes_per_s else 0.0
        if self._free_s >= RELEASED_S:
            self._release()

    def _release(self) -> None:
        self.bytes_per_s, self._clear_s, self._free_s, self._waiting_s = math.inf, 0.0, 0.0, 0.0
