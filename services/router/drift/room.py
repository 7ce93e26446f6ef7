"""Which versions are watched when there are more than there is room for: one that is silent gives way, none that reports does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Iterable
from datetime import datetime, timedelta

from services.router.drift.store import MAX_LINES

log = logging.getLogger(__name__)

SILENT = timedelta(hours=1)
"""A version that has not reported for so long gives way to another one."""
WARN_S = 60.0
"""How often it is said that there are too many versions, seconds."""

Version = tuple[str, int]


class Room:
    """Knows when versions reported last."""

    def __init__(self) -> None:
        self._reported: dict[Version, datetime] = {}
        self._warn_at = 0.0

    def taken(self, version: Version, now: datetime) -> None:
        """It has reported."""
        self._reported[version] = now

    def oldest(
        self, known: Iterable[Version], busy: Container[Version], version: Version, now: datetime
    ) -> Version | None:
        """The one of ``known``, by when they reported last, that gives way to ``version``; None: none does. Warns of either.

        Args:
            known: versions that there is room for.
            busy: versions that are looked at just now.
            version: for which there is none.
            now: UTC.
        """
        old = next((one for one in known if one not in busy and self._silent(one, now)), None)
        if old is None:
            self._warn("samples of %s v%d are not watched: %d versions report already", *version, MAX_LINES)
            return None
        self._warn("what watches of %s v%d have learned is forgotten: more than %d versions report", *old, MAX_LINES)
        self._reported.pop(old, None)
        return old

    def _silent(self, version: Version, now: datetime) -> bool:
        return version not in self._reported or now - self._reported[version] >= SILENT

    def _warn(self, text: str, *values: object) -> None:
        if (at := asyncio.get_running_loop().time()) >= self._warn_at:
            self._warn_at = at + WARN_S
            log.warning(text, *values)
