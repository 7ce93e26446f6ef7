"""A fleet that keeps records once and can be told to fail, and frames of which no two are alike, for the tests of what heads
spool."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason
from splitmesh.spool.spool import Spool
from splitmesh.spool.values import Balance
from tests.support.models import HARD, picture
from tests.support.told_fleet import ToldFleet

WAIT_S = 20.0


def hard_frame(number: int) -> bytes:
    """A hard picture unlike any other to who compares bytes; what stands behind a PNG's end is not looked at."""
    return picture(HARD) + b"%010d" % number


@dataclass
class KeepingFleet:
    """Keeps every record under its name; other content under the same name is refused."""

    kept: dict[tuple[str, str, str, int], dict[str, Any]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    fail_after: list[Reason] = field(default_factory=list)
    """After records were kept, so that nobody hears of it."""
    calls: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self) -> ToldFleet:
        """As a service."""
        return ToldFleet({"CommitRecords": self.commit})

    def commit(self, request: pb.CommitRecordsRequest) -> Any:
        """One call."""
        self.calls += 1
        added = 0
        for record in request.records:
            if hashlib.sha256(record.body).digest() != record.sha256:
                return MeshError(Reason.DIGEST_MISMATCH, "a record is not what its digest says")
            key = (request.tenant, request.edge, record.boot_id, record.sequence)
            body = json.loads(record.body)
            if self.kept.get(key, body) != body:
                return MeshError(Reason.PROTOCOL_VIOLATION, "another record came under this name")
            added += key not in self.kept
            self.kept[key] = body
        self.dropped.update(request.dropped)
        self._changed.set()
        if self.fail_after:
            return MeshError(self.fail_after.pop(0), "the answer is lost")
        return pb.CommitRecordsResponse(added=added)

    async def until(self, count: int) -> None:
        """So many records are kept."""
        async with asyncio.timeout(WAIT_S):
            while len(self.kept) < count:
                self._changed.clear()
                await self._changed.wait()

    def sequences(self) -> Mapping[str, list[int]]:
        """By boot."""
        found: dict[str, list[int]] = {}
        for _, _, boot, sequence in self.kept:
            found.setdefault(boot, []).append(sequence)
        return {boot: sorted(numbers) for boot, numbers in found.items()}


def balance_at(folder: Path) -> Balance:
    """Of a spool that nobody else has open."""
    spool = Spool(folder)
    spool.start()
    try:
        return spool.balance().result(WAIT_S)
    finally:
        assert spool.stop(WAIT_S)
