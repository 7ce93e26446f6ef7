"""Whether a stream of values has changed: one detector for the ease of samples, one for flags that have a known level.

Knows one stream each and no clock, camera or class. Made for a production line: frames of one part resemble each other, so
values in a row are not independent, which tests from the literature take for granted and alarm too often without.
``tests/unit/test_drift.py`` holds the false alarms and the time to detect against streams of such a line. Where values are alike
over more than a few dozen frames and scatter widely, a drop of .2 takes several hundred samples, or is not told from chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from river.drift import ADWIN

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]

BLOCK = 32
"""Values in a row that are judged by their mean: longer than frames resemble each other."""

ADWIN_DELTA = 5e-4
"""ADWIN's chance of a wrong cut, were the values independent."""
LEAST_REFERENCE, MOST_REFERENCE = 16 * BLOCK, 64 * BLOCK
"""Values that what came before is learned from: no alarm until there are so many, and no more are averaged."""
LEAST_WINDOW, MOST_WINDOW = 2 * BLOCK, 64 * BLOCK
"""Values by which a cut is confirmed, and after which it is dropped where they lie by the reference."""
LEAST_CHANGE = 0.05
"""A smaller change of the mean ease is none."""
SIGMAS = 5.5
"""By how many standard errors the mean must have moved."""
MEMORY = 64
"""Blocks over which their scatter is averaged."""
REFILL = 512
"""Most values by which ADWIN's window is made again after a restart."""

ALARM = 10_000.0
"""Wealth at which a flag's level is given up: on average no sooner than after so many blocks when it holds."""
ODDS = 3.0, 10.0, 30.0
"""Alternatives that are betted on, as multiples of the level's odds: a level up to twice as high is no change."""
QUIET = 256
"""Values that are ignored after an alarm: what goes on is reported again, not at every block."""


@dataclass(frozen=True, slots=True)
class Change:
    """A stream is no longer what it was."""

    before: float
    now: float
    """Mean since the change, as far as it can be told."""
    samples: int
    """Behind ``now``."""


@dataclass(slots=True)
class EaseState:
    """All that an :class:`EaseChange` needs to go on after a restart."""

    reference: Number = 0.0
    """Mean before."""
    reference_n: Whole = 0
    block: Number = 0.0
    """Sum of the block that is not full."""
    block_n: Annotated[int, Field(ge=0, lt=BLOCK)] = 0
    last: Number | None = None
    """Mean of the block before it."""
    scatter: Positive = 0.0
    """Variance that a mean of n values has, times n; from differences of neighbouring blocks, so that no shift counts."""
    scatter_n: Whole = 0
    suspected: bool = False
    after: Number = 0.0
    """Mean since the last cut, where that is suspected."""
    after_n: Whole = 0
    window: Number = 0.0
    """Mean of ADWIN's window."""
    window_n: Whole = 0
    window_variance: Positive = 0.0


class EaseChange:
    """Of the mean of values in 0..1, up or down.

    ADWIN (Bifet and Gavalda 2007; river's) proposes where the mean changed. Its bound is for independent values, so a cut
    counts only when the mean since then differs from the reference by ``SIGMAS`` standard errors of *this* stream, taken
    from the scatter of whole blocks (batch means; Conway 1963). After an alarm the reference is learned anew.
    """

    def __init__(self, state: EaseState | None = None) -> None:
        self._state = state or EaseState()
        self._adwin = ADWIN(delta=ADWIN_DELTA)  # type: ignore[no-untyped-call]
        for value in _alike(self._state):
            self._adwin.update(value)  # type: ignore[no-untyped-call]

    def add(self, value: float) -> Change | None:
        """The next value, 0..1; a change when there is one."""
        state = self._state
        self._adwin.update(value)  # type: ignore[no-untyped-call]
        if self._adwin.drift_detected and state.reference_n >= LEAST_REFERENCE:
            self._suspect()
        if state.suspected:
            state.after_n += 1
            state.after += (value - state.after) / state.after_n
        elif state.reference_n < MOST_REFERENCE:
            state.reference_n += 1
            state.reference += (value - state.reference) / state.reference_n
        self._scattered(value)
        return self._judged() if state.suspected else None

    @property
    def usual(self) -> float | None:
        """Mean before; None until it is learned."""
        return self._state.reference if self._state.reference_n >= LEAST_REFERENCE else None

    def state(self) -> EaseState:
        """To be saved."""
        state, width = self._state, int(self._adwin.width)
        if self._adwin.drift_detected:  # the next value will begin a new window
            width = 0
        state.window_n = width
        state.window = self._adwin.estimation if width else 0.0
        state.window_variance = max(0.0, self._adwin.variance / width) if width else 0.0
        return state

    def _suspect(self) -> None:
        """From the values of the last block on: when ADWIN cuts, the change was longer ago, unless it is large.

        A suspicion that is there already goes on where it says more: values that resemble each other are cut often.
        """
        state = self._state
        blocks = 0 if state.last is None else BLOCK
        n = blocks + state.block_n
        mean = ((state.last or 0.0) * blocks + state.block) / max(1, n)
        before = abs(state.after - state.reference) * math.sqrt(state.after_n) if state.suspected else -1.0
        if abs(mean - state.reference) * math.sqrt(n) > before:
            state.after, state.after_n, state.suspected = mean, n, True

    def _judged(self) -> Change | None:
        state = self._state
        if state.after_n < LEAST_WINDOW:
            return None
        error = math.sqrt(state.scatter * (1 / state.after_n + 1 / state.reference_n))
        moved = abs(state.after - state.reference)
        if moved >= LEAST_CHANGE and moved >= SIGMAS * error:
            change = Change(state.reference, state.after, state.after_n)
            state.reference, state.reference_n, state.suspected = 0.0, 0, False
            return change
        if state.after_n >= MOST_WINDOW and moved < LEAST_CHANGE:
            state.suspected = False
        return None

    def _scattered(self, value: float) -> None:
        state = self._state
        state.block += value
        state.block_n += 1
        if state.block_n < BLOCK:
            return
        mean = state.block / BLOCK
        if state.last is not None:
            state.scatter_n = min(state.scatter_n + 1, MEMORY)
            state.scatter += (BLOCK * (mean - state.last) ** 2 / 2 - state.scatter) / state.scatter_n
        state.last, state.block, state.block_n = mean, 0.0, 0


def _alike(state: EaseState) -> list[float]:
    """Values with the mean and about the variance of the window that was saved; their order and their range are lost."""
    step, pairs = math.sqrt(state.window_variance), min(state.window_n, REFILL) // 2
    return [state.window - step, state.window + step] * pairs + [state.window] * (state.window_n % 2)


@dataclass(slots=True)
class FlagState:
    """All that a :class:`FlagChange` needs to go on after a restart; a place for each of ``ODDS``."""

    wealth: list[Positive] = field(default_factory=lambda: [1.0] * len(ODDS))
    runs: list[Whole] = field(default_factory=lambda: [0] * len(ODDS))
    """Values since the bet last began anew: since the change, should there be one."""
    flags: list[Whole] = field(default_factory=lambda: [0] * len(ODDS))
    """Of them, those with the flag."""
    block: Whole = 0
    block_n: Whole = 0
    quiet: Whole = 0


class FlagChange:
    """Of the share of samples with a flag, upwards from a level.

    A bet on each block's share: with odds that are fair at the level, wealth cannot be expected to grow while the level
    holds; a bet that lost everything begins anew. The mean wealth reaches ``ALARM`` on average no sooner than after so
    many blocks (e-detectors: Shin, Ramdas and Rinaldo 2023; with one flag a block the sums of Page 1954). That needs no
    more than that no block's share is expected above the level, given the blocks before.

    Args:
        level: share of samples with the flag that calibration found or allows, between 0 and 1.
        block: values that are judged together; 1 where they are independent.
    """

    def __init__(self, level: float, block: int, state: FlagState | None = None) -> None:
        self._level, self._block = level, block
        odds = level / (1 - level)
        shares = [times * odds / (1 + times * odds) for times in ODDS]
        self._stakes = [(share - level) / (level * (1 - level)) for share in shares]
        self._state = state or FlagState()

    def add(self, flag: bool) -> Change | None:
        """The next value; a change when there is one."""
        state = self._state
        if state.quiet:
            state.quiet -= 1
            return None
        state.block += flag
        state.block_n += 1
        if state.block_n < self._block:
            return None
        for i, stake in enumerate(self._stakes):
            if state.wealth[i] <= 1:
                state.wealth[i], state.runs[i], state.flags[i] = 1.0, 0, 0
            state.wealth[i] *= 1 + stake * (state.block / state.block_n - self._level)
            state.runs[i] += state.block_n
            state.flags[i] += state.block
        state.block = state.block_n = 0
        if sum(state.wealth) < ALARM * len(ODDS):
            return None
        best = max(range(len(ODDS)), key=state.wealth.__getitem__)
        change = Change(self._level, state.flags[best] / state.runs[best], state.runs[best])
        self._state = FlagState(quiet=QUIET)
        return change

    def state(self) -> FlagState:
        """To be saved."""
        return self._state
