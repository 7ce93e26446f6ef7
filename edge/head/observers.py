"""Tells everybody who is to know of frames that were answered; what goes wrong there is theirs, never the frame's."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edge.head.decided import Decided, Observer, TailSaid

log = logging.getLogger(__name__)

LOGGED_EVERY = 1000
"""Failures of one observer, after its first: one on every frame would fill the disk with its traces."""


class Observers:
    """An :class:`Observer` made of several."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._failures = [0] * len(self._observers)

    def decided(self, frame: Decided) -> None:
        """Tell all."""
        for number, observer in enumerate(self._observers):
            try:
                observer.decided(frame)
            except Exception:
                self._failed(number)

    def audited(self, frame: Decided, tail: TailSaid) -> None:
        """Tell all."""
        for number, observer in enumerate(self._observers):
            try:
                observer.audited(frame, tail)
            except Exception:
                self._failed(number)

    def _failed(self, number: int) -> None:
        """Inside an ``except``."""
        self._failures[number] += 1
        if self._failures[number] % LOGGED_EVERY == 1:
            name = type(self._observers[number]).__name__
            log.exception("%s failed to take a frame, %d so far", name, self._failures[number])
