"""The grant last heard, kept on disk: a head that restarts with the cable cut keeps to its site's budget.

Infinite limits are null in the file. What is damaged, of another site or of no use counts as nothing heard.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from functools import partial
from pathlib import Path

from edge.head.disk import DiskCalls
from edge.head.uplink.stream import far
from splitmesh.client.shares import ApplicationShare, Grant
from splitmesh.durable import write_file
from splitmesh.errors import MeshError, Reason
from splitmesh.routing.demand import WEIGHTS

log = logging.getLogger(__name__)

MAX_APPLICATIONS = 256
MAX_BYTES = 1 << 20
"""Of the file."""
EVERY_S = 1.0
"""Between two writes at least."""
STOP_S = 2.0
"""For what is not on the disk yet at a stop."""
MOVED = 0.02
"""A limit that moved by less is not written again."""


def checked(grant: Grant) -> Grant:
    """With weights of 0 as the 1 that they mean; MeshError PROTOCOL_VIOLATION for what nobody can keep to."""
    for name in ("bytes_per_s", "cloud_ms_per_s"):
        if not getattr(grant, name) >= 0:  # also refuses NaN
            raise _violation(f"{name} of {getattr(grant, name)}")
    if len(grant.applications) > MAX_APPLICATIONS:
        raise _violation(f"{len(grant.applications)} applications, {MAX_APPLICATIONS} at most")
    applications = []
    for one in grant.applications:
        weight = one.weight or 1.0
        if not one.application or not WEIGHTS[0] <= weight <= WEIGHTS[1]:
            raise _violation(f"a weight of {weight} for {one.application!r}")
        if not 0 <= one.min_share <= 1:
            raise _violation(f"a minimum of {one.min_share} for {one.application!r}")
        applications.append(ApplicationShare(one.application, weight, one.min_share))
    return Grant(grant.bytes_per_s, grant.cloud_ms_per_s, tuple(applications), grant.why[:1000])


class ShareFile:
    """One file. Its methods block."""

    def __init__(self, path: Path, site: str) -> None:
        self._path, self._site = path, site

    def read(self) -> Grant | None:
        """What was kept; None where there is nothing of use."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            kept = json.loads(self._path.read_bytes())
            if kept["site"] != self._site:
                log.info("the grant in %s is site %s's, not %s's: not kept to", self._path, kept["site"], self._site)
                return None
            shares = [
                (str(one["application"]), float(one["weight"]), float(one["min_share"])) for one in kept["applications"]
            ]
            return checked(
                Grant(
                    bytes_per_s=_or_infinite(kept["bytes_per_s"]),
                    cloud_ms_per_s=_or_infinite(kept["cloud_ms_per_s"]),
                    applications=tuple(ApplicationShare(*one) for one in shares),
                    why=str(kept["why"]),
                )
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError, MeshError) as error:
            log.warning(
                "the grant kept in %s cannot be used; none is in force until the router tells: %r", self._path, error
            )
            return None

    def write(self, grant: Grant) -> None:
        """Whole or not at all; OSError."""
        kept = {
            "site": self._site,
            "bytes_per_s": _or_null(grant.bytes_per_s),
            "cloud_ms_per_s": _or_null(grant.cloud_ms_per_s),
            "applications": [
                {"application": one.application, "weight": one.weight, "min_share": one.min_share}
                for one in grant.applications
            ],
            "why": grant.why,
        }
        write_file(self._path, json.dumps(kept).encode(), mode=0o644)


class GrantKeeper:
    """Writes the newest grant in a thread, seldom, and only where it says something new."""

    def __init__(self, file: ShareFile, *, every_s: float = EVERY_S, stop_s: float = STOP_S) -> None:
        self._file, self._every_s, self._stop_s = file, every_s, stop_s
        self._disk = DiskCalls(1, "grant")
        self._newest: Grant | None = None
        self._kept: Grant | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Grant | None:
        """What was kept; begins to keep what comes."""
        self._kept = await self._disk.do(self._file.read)
        self._task = asyncio.create_task(self._for_ever())
        return self._kept

    async def stop(self) -> None:
        """Keep what is not kept yet, as far as the disk allows it in two seconds."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(self._stop_s):
                await self._write()
        except TimeoutError:
            log.error("the disk of the grant does not answer: the newest one is not kept for a restart")

    def keep(self, grant: Grant) -> None:
        """In a while; of several the newest."""
        self._newest = grant
        if self._kept is None or _differ(self._kept, grant):
            self._changed.set()

    async def _for_ever(self) -> None:
        while True:
            await self._changed.wait()
            await self._write()
            await asyncio.sleep(self._every_s)

    async def _write(self) -> None:
        if not self._changed.is_set() or self._newest is None:
            return
        self._changed.clear()
        grant = self._newest
        try:
            await self._disk.do(partial(self._file.write, grant))
            self._kept = grant
        except asyncio.CancelledError:
            self._changed.set()  # the write goes on, but nobody hears how it ends; the next one waits for it
            raise
        except OSError as error:
            log.warning("the grant is in force but not kept for a restart: %s", error)


def _differ(kept: Grant, grant: Grant) -> bool:
    limits = ((kept.bytes_per_s, grant.bytes_per_s), (kept.cloud_ms_per_s, grant.cloud_ms_per_s))
    return kept.applications != grant.applications or any(far(*pair, MOVED, 0.0) for pair in limits)


def _or_null(limit: float) -> float | None:
    return None if math.isinf(limit) else limit


def _or_infinite(limit: float | None) -> float:
    return math.inf if limit is None else float(limit)


def _violation(what: str) -> MeshError:
    return MeshError(Reason.PROTOCOL_VIOLATION, f"the router granted {what}")
