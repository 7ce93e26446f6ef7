"""``splitmesh nodes``: which services are known, where, and whether they are well."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from splitmesh.api.segment.v1 import segment_pb2, segment_pb2_grpc
from splitmesh.cli.connect import channels
from splitmesh.cli.output import JsonOption, run, show_json, show_table
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.ports import PORTS

CHECK_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Node:
    """One instance of a service."""

    service: str
    address: str
    health: str
    detail: str


def nodes(json: JsonOption = False) -> None:
    """List the mesh's services with their health and what tails have loaded."""

    async def look() -> list[Node]:
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


async def _check(opened: Channels, service: str, address: str) -> Node:
    channel = opened.at(address)
    name = "splitmesh.api.inference.v1.InferenceService" if service == "head" else ""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=name), timeout=CHECK_DEADLINE_S
        )
        health = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        detail = await _loaded(channel) if service == "tail" else ""
    except grpc.RpcError:
        return Node(service, address, "UNREACHABLE", "")
    if service == "head" and answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
        detail = "no model yet"
    return Node(service, address, health, detail)


async def _loaded(channel: grpc.aio.Channel) -> str:
    described = await segment_pb2_grpc.SegmentServiceStub(channel).Describe(
        segment_pb2.DescribeRequest(), timeout=CHECK_DEADLINE_S
    )
    return ", ".join(
        f"{one.model}:{one.version} on {one.backend} (segment {one.segment})" for one in described.segments
    )
