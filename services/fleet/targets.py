"""Which hosts are meant: messages of the contract to values, and back. Pure."""

from __future__ import annotations

from services.fleet.values import Target
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import field_error

MAX_VALUES = 10_000


def read_target(message: fleet_pb2.Target) -> Target:
    """Which hosts somebody asks for; FIELD_INVALID when it names nothing, or too much."""
    target = target_from(message)
    named = (target.nodes, target.sites, target.lines, target.camera_groups, target.labels)
    if not (target.every or any(named)):
        raise field_error("target", "names no host; set all to mean every host")
    if sum(len(values) for values in named) > MAX_VALUES:
        raise field_error("target", f"has more than {MAX_VALUES} values")
    return target


def target_from(message: fleet_pb2.Target) -> Target:
    """Which hosts a message means that was read before."""
    return Target(
        nodes=frozenset(message.nodes),
        sites=frozenset(message.sites),
        lines=frozenset(message.lines),
        camera_groups=frozenset(message.camera_groups),
        labels=dict(message.labels),
        every=message.all,
    )


def target_to(target: Target) -> fleet_pb2.Target:
    """The inverse."""
    return fleet_pb2.Target(
        nodes=sorted(target.nodes),
        sites=sorted(target.sites),
        lines=sorted(target.lines),
        camera_groups=sorted(target.camera_groups),
        labels=dict(target.labels),
        all=target.every,
    )
