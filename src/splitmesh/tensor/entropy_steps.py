"""From 8-bit values to symbols at a step, and back.

At step s a value q is coded as round_half_away((q - zero point) / s); what such a number stands for is
clip(zero point + number * s, 0, 255). Only numbers that some q leads to are symbols; the smallest is symbol 0.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Bytes8 = NDArray[np.uint8]


@cache
def alphabet(zero_point: int, step: int) -> Bytes8:
    """What each symbol stands for, in order."""
    low, high = (int(number) for number in round_half_away(np.array([-zero_point, 255 - zero_point]), step))
    values = np.clip(zero_point + step * np.arange(low, high + 1), 0, 255).astype(np.uint8)
    values.flags.writeable = False
    return values


@cache
def symbols_of(zero_point: int, step: int) -> Bytes8:
    """The symbol of each 8-bit value ``[256]``."""
    numbers = round_half_away(np.arange(256) - zero_point, step)
    symbols: Bytes8 = (numbers - numbers[0]).astype(np.uint8)
    symbols.flags.writeable = False
    return symbols


def round_half_away(number: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    """``number / step`` to the nearest integer, halves away from zero."""
    return np.asarray(np.sign(number) * ((np.abs(number) + step // 2) // step))
