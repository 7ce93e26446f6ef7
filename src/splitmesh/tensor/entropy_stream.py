"""Symbols and models to the fewest bytes, and back: the library's range coder with the end cut as short as it can be.

The coder is constriction's ``RangeEncoder`` (32-bit words, 64-bit state, 24-bit models; Bamler 2022, "Understanding
entropy coding with asymmetric numeral systems"). Its words are written most significant byte first. A coded message is
any number inside the coder's last interval; of those the one with the most trailing zero bytes is taken and these are
dropped: a reader puts zeros behind what it was given. Knows nothing of tensors, rates or checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

_WORD, _STATE = 32, 64


def encoded(runs: Iterable[tuple[Any, NDArray[np.int32]]]) -> bytes:
    """Symbols, each run with its model, as bytes without trailing zeros."""
    encoder = constriction.stream.queue.RangeEncoder()
    for model, symbols in runs:
        encoder.encode(symbols, model)
    words = encoder.get_compressed()
    if not len(words):
        return b""
    lower, size = encoder.pos()[1]
    # How the library ends: with the first word that is in the interval whatever follows, and one of zeros where there
    # is none. Whether that word passed the state's 64 bits it has carried over into the words before it.
    taken = lower + (1 << (_STATE - _WORD)) - 1
    ends = 2 if (taken % (1 << _STATE)) >> _WORD == ((lower + size) % (1 << _STATE)) >> _WORD else 1
    shortest = next(number for bits in range(_STATE, -1, -8) if (number := -(-lower >> bits) << bits) < lower + size)
    before: bytes = words[: len(words) - ends].astype(">u4").tobytes()
    carry = (shortest >> _STATE) - (taken >> _STATE)
    if carry:
        before = (int.from_bytes(before) + carry).to_bytes(len(before))
    return bytes(before + (shortest % (1 << _STATE)).to_bytes(_STATE // 8)).rstrip(b"\0")


def decoded(data: bytes, runs: Sequence[tuple[Any, int]]) -> NDArray[np.int32] | None:
    """So many symbols of each model, all in one array; None for bytes that no symbols are coded as."""
    padded = data + bytes(-len(data) % 4 + 2 * _WORD // 8)
    found = []
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, ">u4").astype(np.uint32))
    try:
        for model, count in runs:
            found.append(decoder.decode(model, count))
    except Exception:  # whatever the library says about bytes that are no message of these models
        return None
    return np.concatenate(found) if found else np.zeros(0, np.int32)
