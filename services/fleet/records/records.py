"""Records of hosts: taken, each once, and given out in pages. Knows which thread does what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial

from services.fleet.records import store
from services.fleet.records.messages import MAX_BYTES, from_kept, to_batch, to_wanted
from services.fleet.records.turns import Turns
from services.fleet.records.values import Bounds
from splitmesh.api.fleet.v1 import fleet_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.pages import number_from_token, page_size, to_token
from splitmesh.sql.database import Threads
from splitmesh.sql.times import utc_now

BUSY_RETRY_S = 1.0
MOST_ROWS = 1000
"""Records that wait for the database at once: about a tenth of a second for whoever else writes."""
_PAGES = "records"


class Records:
    """The records of one fleet.

    Args:
        database: where they are kept.
        bounds: what is kept at most.
        max_commits: calls that hand over records at once; their messages are in memory.
        max_page_bytes: of the bodies in one page.
        now: the wall clock.
    """

    def __init__(
        self,
        database: Threads,
        bounds: Bounds,
        *,
        max_commits: int,
        max_page_bytes: int = MAX_BYTES,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._bounds = bounds
        self._max_commits = max_commits
        self._max_page_bytes = max_page_bytes
        self._now = now
        self._commits = 0
        self._turns = Turns(MOST_ROWS)

    async def commit(self, request: pb.CommitRecordsRequest) -> pb.CommitRecordsResponse:
        """When it returns, all of them are on disk.

        Raises:
            MeshError: FIELD_INVALID, DIGEST_MISMATCH, PROTOCOL_VIOLATION, STORAGE_FULL, QUEUE_FULL: nothing of the call was kept.
        """
        if self._commits >= self._max_commits:
            detail = f"{self._commits} hosts hand over records now, which is as many as may at once"
            raise MeshError(Reason.QUEUE_FULL, detail, retry_after_s=BUSY_RETRY_S)
        self._commits += 1
        try:
            batch = await asyncio.to_thread(to_batch, request)
            async with self._turns.turn(len(batch.records)):
                work = partial(store.commit, batch=batch, bounds=self._bounds, now=self._now())
                added = await self._database.write(work)
        finally:
            self._commits -= 1
        return pb.CommitRecordsResponse(added=added)

    async def list(self, request: pb.ListRecordsRequest) -> pb.ListRecordsResponse:
        """A page, oldest first; FIELD_INVALID."""
        wanted = to_wanted(request)
        after = number_from_token(_PAGES, request.page_token)
        if request.page_size < 0:
            raise field_error("page_size", "is negative")
        asked = partial(
            store.list_records,
            wanted=wanted,
            after=after,
            limit=page_size(request.page_size),
            max_bytes=self._max_page_bytes,
        )
        (found, is_more), total = await self._database.read(
            lambda connection: (asked(connection), store.totals(connection, wanted))
        )
        return pb.ListRecordsResponse(
            records=[from_kept(one) for one in found],
            next_page_token=to_token(_PAGES, str(found[-1].position)) if is_more else "",
            total=total.records,
            dropped=total.dropped,
        )
