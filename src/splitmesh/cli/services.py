"""``splitmesh services``: which services are known, where, and whether they are well; and a head's streams to the tails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.ports import PORTS

CHECK_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class UplinkRow:
    """A head's stream to one node behind it, as the head sees it; 0 where a figure is not known."""

    node: str
    """Empty while it has not accepted."""
    address: str
    model: str
    """With its version."""
    state: str
    in_flight: int
    latency_ms: float
    backlog_ms: float
    goodput_mbps: float
    rtt_ms: float
    loss: float
    answered: int
    hedged: int
    failed: int


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a service."""

    service: str
    address: str
    health: str
    detail: str
    uplinks: Sequence[UplinkRow] = ()
    """Of a head."""


def services(json: JsonOption = False) -> None:
    """List the mesh's services with their health, what heads and tails have loaded, and each head's streams to the tails."""

    async def look() -> list[Instance]:
        async with channels() as opened:
            known = [
                (service, instance.address) for service in PORTS for instance in await opened.discovery.resolve(service)
            ]
            return list(await asyncio.gather(*(_check(opened, *one) for one in known)))

    found = run(look())
    if json:
        show_json(found)
        return
    show_table(
        "", ["service", "address", "health", "loaded"], [[n.service, n.address, n.health, n.detail] for n in found]
    )
    columns = [field.name for field in fields(UplinkRow)]
    for instance in found:
        if instance.uplinks:
            rows = [[getattr(uplink, column) for column in columns] for uplink in instance.uplinks]
            show_table(f"uplinks of {instance.address}", [column.replace("_", " ") for column in columns], rows)


async def _check(opened: Channels, service: str, address: str) -> Instance:
    channel = opened.at(address)
    name = "splitmesh.api.inference.v1.InferenceService" if service == "head" else ""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=name), timeout=CHECK_DEADLINE_S
        )
        health = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        described = await _described(channel) if service in ("tail", "head") else segment_pb2.DescribeResponse()
    except grpc.RpcError:
        return Instance(service, address, "UNREACHABLE", "")
    detail = _loaded(described)
    if service == "head" and answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
        detail = "no model yet"
    return Instance(service, address, health, detail, [_row(uplink) for uplink in described.uplinks])


async def _described(channel: grpc.aio.Channel) -> segment_pb2.DescribeResponse:
    stub = segment_pb2_grpc.SegmentServiceStub(channel)
    described: segment_pb2.DescribeResponse = await stub.Describe(
        segment_pb2.DescribeRequest(), timeout=CHECK_DEADLINE_S
    )
    return described


def _loaded(described: segment_pb2.DescribeResponse) -> str:
    return ", ".join(
        f"{one.model}:{one.version} on {one.backend} ({'whole' if one.whole else f'segment {one.segment}'})"
        f"{_withdrawn(one)}"
        for one in described.segments
    )


def _withdrawn(segment: segment_pb2.LoadedSegment) -> str:
    return f", to be replaced: {segment.withdrawn}" if segment.withdrawn else ""


def _row(uplink: segment_pb2.Uplink) -> UplinkRow:
    return UplinkRow(
        node=uplink.node,
        address=uplink.address,
        model=f"{uplink.model}:{uplink.version}",
        state=segment_pb2.UplinkState.Name(uplink.state).removeprefix("UPLINK_STATE_").lower(),
        in_flight=uplink.in_flight,
        latency_ms=uplink.latency_ms,
        backlog_ms=uplink.backlog_ms,
        goodput_mbps=uplink.goodput_mbps,
        rtt_ms=uplink.rtt_ms,
        loss=uplink.loss,
        answered=uplink.answered,
        hedged=uplink.hedged,
        failed=uplink.failed,
    )
