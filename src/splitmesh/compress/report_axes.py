"""The scales of a report's figures: where a value lies, which ticks an axis has, how bytes are written. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

SHARES = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 1.0)


@dataclass(frozen=True, slots=True)
class Value:
    """A point's height with its interval."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Axis:
    """From a value to a place between 0 (worst) and 1 (best)."""

    label: str
    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def share_axis(label: str, values: Iterable[Value], n: int) -> Axis:
    """Stretched towards 100 %: equal steps are equal factors of what is missing, down to half a sample of ``n``."""
    found = list(values)
    least = 0.5 / max(1, n)

    def stretch(share: float) -> float:
        return -math.log10(max(0.0, 1 - share) + least)

    lowest, top = min((stretch(value.middle) for value in found), default=0.0), stretch(1.0)
    bottom = max(stretch(0.0), lowest - 0.1 * (top - lowest))

    def place(share: float) -> float:
        return (stretch(share) - bottom) / (top - bottom)

    return Axis(label, place, [(share, f"{100 * share:g} %") for share in SHARES if -1e-9 <= place(share) <= 1])


def error_axis(label: str, values: Iterable[Value]) -> Axis:
    """Linear, 0 at the top."""
    worst = max([value.middle for value in values] + [1e-9]) * 1.1
    step = nice(worst / 4)
    ticks = [(turn * step, f"{turn * step:.3g}") for turn in range(int(worst / step) + 1)]
    return Axis(label, lambda error: 1 - error / worst, ticks)


def bytes_text(size: float) -> str:
    """For people: ``850 B``, ``12.3 kB``, ``4.56 MB`` (powers of 1000)."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            value = size / scale
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.3g} {unit}"
    return f"{size:.0f} B" if size >= 10 or size == int(size) else f"{size:.1f} B"


def nice(step: float) -> float:
    """The next 1, 2, 5 or 10 times a power of ten."""
    scale = 10.0 ** math.floor(math.log10(max(step, 1e-12)))
    return next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= step)
