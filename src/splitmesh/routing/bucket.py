"""A token bucket: bytes that may pass now, at a steady rate and with some saved up.

Keeps what was allotted: whatever is asked for, and whenever, no more than rate x time + burst passes. Knows no link and no
application; time is the caller's, as :class:`Elapsed` counts it.
"""

from __future__ import annotations

import math

from splitmesh.errors import field_error
from splitmesh.routing.elapsed import Elapsed


class Bucket:
    """Starts full. For one thread at a time.

    Args:
        bytes_per_s: at least 0; infinite: everything passes.
        burst_bytes: saved up at most, finite and at least 0. What is larger never passes, so this is at least the largest frame.
        now_s: on the caller's clock.

    Raises MeshError FIELD_INVALID for a number out of range, here and below.
    """

    def __init__(self, bytes_per_s: float, burst_bytes: float, now_s: float) -> None:
        self._bytes_per_s = _at_least_0("bytes_per_s", bytes_per_s)
        self._burst_bytes = _at_least_0("burst_bytes", burst_bytes, finite=True)
        self._left_bytes = float(burst_bytes)
        self._elapsed = Elapsed(now_s)

    def take(self, size_bytes: float, now_s: float) -> bool:
        """Whether so many bytes may pass now; takes them out where they may, and nothing where they may not."""
        _at_least_0("size_bytes", size_bytes, finite=True)
        self._fill(now_s)
        if math.isinf(self._bytes_per_s):
            return True
        if size_bytes > self._left_bytes:
            return False
        self._left_bytes -= size_bytes
        return True

    def left(self, now_s: float) -> float:
        """Bytes that may pass now; the burst where everything passes."""
        self._fill(now_s)
        return self._burst_bytes if math.isinf(self._bytes_per_s) else self._left_bytes

    def wait_s(self, size_bytes: float, now_s: float) -> float:
        """Seconds until so many bytes may pass if nothing else does: 0 now, infinite never at this rate and burst."""
        _at_least_0("size_bytes", size_bytes, finite=True)
        self._fill(now_s)
        if math.isinf(self._bytes_per_s) or size_bytes <= self._left_bytes:
            return 0.0
        if size_bytes > self._burst_bytes or self._bytes_per_s == 0:
            return math.inf
        return (size_bytes - self._left_bytes) / self._bytes_per_s

    def set_rate(self, bytes_per_s: float, now_s: float, *, burst_bytes: float | None = None) -> None:
        """From now on; what was saved up until now stays, as far as the burst holds it."""
        _at_least_0("bytes_per_s", bytes_per_s)
        burst_bytes = self._burst_bytes if burst_bytes is None else _at_least_0("burst_bytes", burst_bytes, finite=True)
        self._fill(now_s)
        self._bytes_per_s, self._burst_bytes = bytes_per_s, burst_bytes
        self._left_bytes = min(self._left_bytes, burst_bytes)

    def _fill(self, now_s: float) -> None:
        passed_s = self._elapsed.since_last(now_s)
        if passed_s > 0:
            self._left_bytes = min(self._burst_bytes, self._left_bytes + self._bytes_per_s * passed_s)


def _at_least_0(name: str, value: float, *, finite: bool = False) -> float:
    if not value >= 0 or (finite and math.isinf(value)):  # also refuses NaN
        raise field_error(name, f"is {value}, expected {'a finite number' if finite else 'a number'} of at least 0")
    return value
