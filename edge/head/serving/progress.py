"""How far one version is on its way to answering frames. Knows phases and bytes, not what is done in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from splitmesh.errors import MeshError, Reason


class Phase(StrEnum):
    """As in ``splitmesh.api.serving.v1.Phase``."""

    QUEUED = "QUEUED"
    DOWNLOADING = "DOWNLOADING"
    VERIFYING = "VERIFYING"
    LOADING = "LOADING"
    WARMING = "WARMING"
    WAITING_FOR_TAIL = "WAITING_FOR_TAIL"
    SERVING = "SERVING"
    FAILED = "FAILED"


class Progress:
    """Of one version; ``changed`` is called with every step.

    Attributes:
        version: which.
        phase: how far.
        done_bytes, total_bytes: of its parts, while it is fetched and after.
        error: what keeps it; None unless it failed.
    """

    def __init__(self, version: int, changed: Callable[[], None]) -> None:
        self.version = version
        self.phase = Phase.QUEUED
        self.done_bytes = self.total_bytes = 0
        self.error: MeshError | None = None
        self._changed = changed
        self._done: dict[tuple[int, str], int] = {}

    def enter(self, phase: Phase) -> None:
        """The next phase, or one again after a failure."""
        if phase is not self.phase or self.error is not None:
            self.phase, self.error = phase, None
            self._changed()

    def fetches(self, version: int, sizes: Mapping[str, int], here: Mapping[str, int]) -> None:
        """Parts of a version that are to be here, of several where it has alternatives: their sizes, and what is here already."""
        self._done |= {(version, name): here.get(name, 0) for name in sizes}
        self.total_bytes += sum(sizes.values())
        self._sum()

    def fetched(self, version: int, name: str, done: int) -> None:
        """So many bytes of a part are here."""
        self._done[version, name] = done
        self._sum()

    def begin_again(self) -> None:
        """Nothing of what was told of parts counts any more."""
        self._done.clear()
        self.done_bytes = self.total_bytes = 0

    def failed(self, error: Exception) -> None:
        """It cannot be used yet."""
        unforeseen = MeshError(Reason.INTERNAL, "an unforeseen failure, which is in the head's log")
        self.phase, self.error = Phase.FAILED, error if isinstance(error, MeshError) else unforeseen
        self._changed()

    def _sum(self) -> None:
        self.done_bytes = sum(self._done.values())
        self._changed()
