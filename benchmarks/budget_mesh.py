"""The product's own way to share an uplink, without a network: real heads' budgets, the router's board, their real messages.

One head for all applications, or one for each. Only gRPC is left out: the client's calls go to the router's stream handler, each
message after half a round trip, in the time of the running loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.budget_site import APPLICATIONS, CLOUD_MS_PER_S, RTT_S, UPLINK_BYTES_PER_S, Application, Sample, Site
from edge.head.config import HeadSettings
from edge.head.uplink.budget import Budget
from services.router.config import RouterSettings
from services.router.shares.board import ShareBoard
from services.router.shares.stated import Place
from services.router.shares.stated import Site as Stated
from services.router.shares.wire import serve_uplink
from services.router.store import MemoryStore
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.client.routing import UplinkLoad
from splitmesh.client.shares import ShareClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.streams import Drain
from splitmesh.model.alternatives import LinkState

NAME = "line-4"


class Shared:
    """Heads and their router.

    Args:
        together: one head has all applications; else each has its own.
    """

    def __init__(self, clock: Callable[[], float], site: Site, folder: Path, *, together: bool) -> None:
        settings = RouterSettings()
        self.board = ShareBoard(
            MemoryStore(),
            interval_s=settings.share_interval_s,
            max_backlog_ms=settings.max_backlog_ms,
            max_sharers=settings.max_sharers,
            clock=clock,
        )
        self._drain = Drain()
        channels = cast(Channels, _Channels(self.board, self._drain))
        hosts = [APPLICATIONS] if together else [(one,) for one in APPLICATIONS]
        self._heads = [
            Budget(
                HeadSettings(node=f"mec-{number}", site=NAME, data_dir=folder / str(number)),
                ShareClient(channels),
                _loaded(applications, site),
                clock=clock,
            )
            for number, applications in enumerate(hosts)
        ]
        self._head_of = {
            one.name: head for head, applications in zip(self._heads, hosts, strict=True) for one in applications
        }

    async def start(self) -> None:
        """The budget is stated, and every head shares."""
        places = tuple(Place(one.name, one.weight, one.min_share) for one in APPLICATIONS)
        await self.board.start()
        await self.board.set_site(Stated(NAME, UPLINK_BYTES_PER_S, 0.0, places))
        for head in self._heads:
            await head.start()

    async def stop(self) -> None:
        """Heads first."""
        for head in self._heads:
            await head.stop()
        await self.board.stop()

    def crosses(self, sample: Sample) -> bool:
        """As the head's answerer asks."""
        return not self._head_of[sample.application.name].refuses(
            sample.application.name, sample.worth, sample.size_bytes
        )

    def answered(self, sample: Sample, work_ms: float) -> None:
        """As the head's answerer tells."""
        self._head_of[sample.application.name].crossed(sample.application.name, cloud_ms=work_ms)

    def tail_limit_ms_per_s(self) -> float:
        """That the router lets the site use now."""
        (now,) = self.board.shares(NAME)
        return min(now.usable.cloud_ms_per_s, 10 * CLOUD_MS_PER_S)


@dataclass
class _Link:
    """What a head sees of link and tail."""

    name: str
    site: Site

    @property
    def in_flight(self) -> int:
        """Frames without an answer."""
        return self.site.in_flight[self.name]

    def load(self) -> UplinkLoad:
        """As the tails told last."""
        return UplinkLoad(self.site.backlog_ms(), UPLINK_BYTES_PER_S * 8e-6, RTT_S * 1e3, 0.0, 1)

    def way(self) -> LinkState:
        """As the frames before found it."""
        wait_ms = self.site.link_wait_s() * 1e3
        return LinkState(UPLINK_BYTES_PER_S / 1e3, RTT_S * 1e3, self.site.backlog_ms(), wait_ms)


def _loaded(applications: Sequence[Application], site: Site) -> Callable[[], list[Any]]:
    entries = [
        SimpleNamespace(info=SimpleNamespace(model=one.name), link=_Link(one.name, site)) for one in applications
    ]
    return lambda: entries


class _Channels:
    """Leads to the board in this process."""

    def __init__(self, board: ShareBoard, drain: Drain) -> None:
        self._board, self._drain = board, drain

    async def to(self, service: str) -> Any:
        """The only one there is."""
        return self

    def stream_stream(self, method: str, *_: object, **__: object) -> Any:
        """Of which only one is called."""
        return lambda requests: _Call(self._board, self._drain, requests)

    unary_unary = unary_stream = stream_unary = stream_stream


class _Call:
    """One stream; messages take half a round trip each way."""

    def __init__(self, board: ShareBoard, drain: Drain, requests: AsyncGenerator[pb.ShareUplinkRequest]) -> None:
        self._answers = serve_uplink(board, _later(requests), drain)

    def __aiter__(self) -> AsyncGenerator[pb.ShareUplinkResponse]:
        return _later(self._answers)

    def cancel(self) -> None:
        """The reader is cancelled by the client itself."""


async def _later(messages: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    async with aclosing(messages):
        async for message in messages:
            await asyncio.sleep(RTT_S / 2)
            yield message
