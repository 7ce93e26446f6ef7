"""Messages of the shared uplinks to values and back, and one head's stream. What a caller may send is checked here.

Knows the board; what it does with a demand is its own business.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import asdict

import numpy as np

from services.router.shares.board import ShareBoard
from services.router.shares.site import Grant, Member, SiteNow
from services.router.shares.stated import Place, Site, application_from
from services.router.store import Load
from splitmesh.api.routing.v1 import routing_pb2 as pb
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.streams import Drain
from splitmesh.routing.demand import Demand

MAX_DEMANDS = 64
"""Applications of one head."""
MAX_NODE = 128
MAX_LOAD = 1e9
"""Largest figure of a load: a backlog of eleven days, a petabit per second."""
FIRST_S = 10.0
"""A stream whose first message takes longer is refused."""
SILENT_S = 60.0
"""A stream that is silent for so long ends without an error: a head that is alive speaks every second, and opens another."""


async def serve_uplink(
    board: ShareBoard, requests: AsyncIterator[pb.ShareUplinkRequest], drain: Drain
) -> AsyncGenerator[pb.ShareUplinkResponse]:
    """One head's stream: what it may use, now and at each change, the newest only.

    MeshError FIELD_INVALID for an impossible message, QUEUE_FULL when too many share, NOT_READY when draining begins.
    """
    first = await _first(requests)
    demands, load = _heard(first)
    member = board.join(_node(first.node), first.site)
    try:
        drain.enter(member.woken.set)
        try:
            board.hear(member, demands, load)
            async with aclosing(_answers(board, member, requests, drain)) as answers:
                async for response in answers:
                    yield response
        finally:
            drain.leave(member.woken.set)
    finally:
        board.leave(member)


async def _answers(
    board: ShareBoard, member: Member, requests: AsyncIterator[pb.ShareUplinkRequest], drain: Drain
) -> AsyncGenerator[pb.ShareUplinkResponse]:
    reading = asyncio.create_task(_read(board, member, requests))
    reading.add_done_callback(lambda _: member.woken.set())
    sequence = 0
    try:
        while not (reading.done() or drain.begun.is_set()):
            member.woken.clear()
            if (grant := member.send()) is not None:
                sequence += 1
                yield _grant(sequence, grant)
                board.taken(member)
            else:
                await member.woken.wait()
        if reading.done():
            reading.result()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    if drain.begun.is_set():
        raise MeshError(Reason.NOT_READY, "this node is shutting down", retry_after_s=0.5)


async def _read(board: ShareBoard, member: Member, requests: AsyncIterator[pb.ShareUplinkRequest]) -> None:
    """Until the head takes its leave, or its side ends without that, which a broken stream does too, or is silent for long."""
    while True:
        try:
            async with asyncio.timeout(SILENT_S):
                request = await anext(requests)
        except (StopAsyncIteration, TimeoutError):
            return
        if request.leaving:
            member.leaving = True
            return
        board.hear(member, *_heard(request))


async def _first(requests: AsyncIterator[pb.ShareUplinkRequest]) -> pb.ShareUplinkRequest:
    try:
        async with asyncio.timeout(FIRST_S):
            return await anext(requests)
    except StopAsyncIteration:
        raise field_error("node", "is missing: the stream ended before its first message") from None
    except TimeoutError:
        raise field_error("node", f"is missing: no first message within {FIRST_S:g} s") from None


def site_from(request: pb.SetSiteRequest) -> Site:
    """A budget; FIELD_INVALID names what is wrong."""
    places = (Place(one.application, one.weight or 1.0, one.min_share) for one in request.applications)
    return Site(request.site, request.bytes_per_s, request.cloud_ms_per_s, tuple(places))


def shares_to(sites: Iterable[SiteNow]) -> pb.GetSharesResponse:
    """Sites as a message."""
    return pb.GetSharesResponse(sites=[_site_to(site) for site in sites])


def _site_to(site: SiteNow) -> pb.SiteShares:
    return pb.SiteShares(
        site=site.stated.name,
        bytes_per_s=site.stated.bytes_per_s,
        cloud_ms_per_s=site.stated.cloud_ms_per_s,
        usable_bytes_per_s=site.usable.bytes_per_s,
        usable_cloud_ms_per_s=site.usable.cloud_ms_per_s,
        price_per_byte=site.price_per_byte,
        price_per_ms=site.price_per_ms,
        shares=[pb.LiveShare(**asdict(share)) for share in site.shares],
        applications=[pb.ApplicationShare(**asdict(place)) for place in site.stated.applications],
        why=site.why,
    )


def _grant(sequence: int, grant: Grant) -> pb.ShareUplinkResponse:
    return pb.ShareUplinkResponse(
        sequence=sequence,
        bytes_per_s=grant.amount.bytes_per_s,
        cloud_ms_per_s=grant.amount.cloud_ms_per_s,
        applications=[pb.ApplicationShare(**asdict(place)) for place in grant.applications],
        why=grant.why,
    )


def _heard(request: pb.ShareUplinkRequest) -> tuple[tuple[Demand, ...], Load | None]:
    if len(request.demands) > MAX_DEMANDS:
        raise field_error("demands", f"has {len(request.demands)} applications, expected at most {MAX_DEMANDS}")
    demands = tuple(_demand(one) for one in request.demands)
    if len({one.application for one in demands}) < len(demands):
        raise field_error("demands", "names an application twice")
    return demands, _load(request.load) if request.HasField("load") else None


def _demand(message: pb.ApplicationDemand) -> Demand:
    """Weight and minimum are the site's."""
    return Demand(
        application_from("demands.application", message.application),
        weight=1.0,
        min_share=0.0,
        rates=np.array(message.rates),
        edges=np.linspace(0.0, 1.0, len(message.rates) + 1),
        bytes=message.bytes,
        cloud_ms=message.cloud_ms,
        deadline_ok=message.deadline_ok,
    )


def _load(message: pb.UplinkLoad) -> Load:
    load = Load(message.backlog_ms, message.goodput_mbps, message.rtt_ms, message.loss, message.tails)
    for field, value in asdict(load).items():
        most = 1.0 if field == "loss" else MAX_LOAD
        if not (math.isfinite(value) and 0 <= value <= most):
            raise field_error(f"load.{field}", f"is {value}, expected 0..{most:g}")
    return load


def _node(name: str) -> str:
    if not 1 <= len(name) <= MAX_NODE:
        raise field_error("node", f"has {len(name)} characters, expected 1..{MAX_NODE}")
    return name
