"""Who may cross a shared uplink by simpler rules than worth: first come, equal parts, fixed priorities.

Each keeps to the stated budget with the product's own bucket, and sends nothing whose answer would be late.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from benchmarks.budget_site import APPLICATIONS, UPLINK_BYTES_PER_S, Sample
from splitmesh.routing.bucket import Bucket

BURST_S = 0.25
"""Of the budget, saved up at most; as a head does."""


class Chooser(Protocol):
    """Decides about each hard sample."""

    async def start(self) -> None:
        """Before the first sample."""
        ...

    async def stop(self) -> None:
        """After the last one."""
        ...

    def crosses(self, sample: Sample) -> bool:
        """Whether it may; its bytes are taken then."""
        ...

    def answered(self, sample: Sample, work_ms: float) -> None:
        """The tail computed for so long."""
        ...


class _Rival:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    def answered(self, sample: Sample, work_ms: float) -> None:
        """Nothing is learnt."""

    def _bucket(self, part: float) -> Bucket:
        rate = UPLINK_BYTES_PER_S * part
        return Bucket(rate, max(rate * BURST_S, 2 * max(one.bytes for one in APPLICATIONS)), self._clock())


class FirstCome(_Rival):
    """One bucket for all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._all = self._bucket(1.0)

    def crosses(self, sample: Sample) -> bool:
        """While there is room."""
        return self._all.take(sample.size_bytes, self._clock())


class EqualSplit(_Rival):
    """A bucket for each, of equal size."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._own = {one.name: self._bucket(1 / len(APPLICATIONS)) for one in APPLICATIONS}

    def crosses(self, sample: Sample) -> bool:
        """While the application's own has room."""
        return self._own[sample.application.name].take(sample.size_bytes, self._clock())


class FixedPriorities(_Rival):
    """One bucket, of which the less important leave a part to the more important (trunk reservation)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._all = self._bucket(1.0)
        ranked = sorted(APPLICATIONS, key=lambda one: -one.weight)
        whole = UPLINK_BYTES_PER_S * BURST_S
        self._kept_back = {one.name: place / len(ranked) * whole for place, one in enumerate(ranked)}

    def crosses(self, sample: Sample) -> bool:
        """While more is left than has to be kept back."""
        kept_back = self._kept_back[sample.application.name]
        if self._all.wait_s(sample.size_bytes + kept_back, self._clock()) > 0:
            return False
        return self._all.take(sample.size_bytes, self._clock())
