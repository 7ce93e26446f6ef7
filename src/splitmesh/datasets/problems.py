"""Everything that is wrong with a folder of pictures or labels in one error, the first ones by name."""

from __future__ import annotations

from types import TracebackType

from splitmesh.errors import MeshError, Reason

MAX_TOLD = 20
"""More are only counted."""
_MAX_CHARS = 200


class Problems:
    """Collects inside a ``with``; at its end FIELD_INVALID is raised when there was any."""

    def __init__(self, field: str, summary: str) -> None:
        self._field = field
        self._summary = summary
        self._first: list[tuple[str, str]] = []
        self._count = 0

    def add(self, where: str, problem: str) -> None:
        """One more."""
        self._count += 1
        if len(self._first) < MAX_TOLD:
            self._first.append((where[:_MAX_CHARS], problem[:_MAX_CHARS]))

    def __enter__(self) -> Problems:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None or not self._count:
            return
        told = "; ".join(f"{where!r}: {problem}" for where, problem in self._first)
        more = f"; and {self._count - len(self._first)} more" if self._count > len(self._first) else ""
        raise MeshError(Reason.FIELD_INVALID, f"{self._field}: {self._summary}: {told}{more}", fields=self._first)
