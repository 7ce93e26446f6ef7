"""One model in memory: a part of ``memory_store``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from services.registry.metadata.records import AliasMove, Signature, Version
from splitmesh.model.lineage import VersionName


@dataclass
class MemoryModel:
    """What is kept of it."""

    create_time: datetime
    latest: int = 0
    versions: dict[int, Version] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, AliasMove] = field(default_factory=dict)
    signatures: dict[int, dict[str, Signature]] = field(default_factory=dict)
    holds: dict[int, dict[str, datetime | None]] = field(default_factory=dict)
    needs: dict[int, tuple[VersionName, ...]] = field(default_factory=dict)

    def pointing_at(self, version: int) -> tuple[str, ...]:
        """Names of aliases."""
        return tuple(sorted(alias for alias, move in self.aliases.items() if move.version == version))

    def holding(self, version: int, time: datetime) -> tuple[str, ...]:
        """Names of those whose hold has not ended."""
        holds = self.holds[version].items()
        return tuple(sorted(holder for holder, until in holds if until is None or until > time))
