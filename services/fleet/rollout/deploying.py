"""From a request to a deployment that can be written down: which hosts, in which waves, and what it begins with. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.fleet.rollout.strategy import Strategy, divide, read_strategy
from services.fleet.rollout.values import ROLLING, SHADOW, HostRow, Plan, Status
from services.fleet.targets import read_target
from services.fleet.values import Target
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.errors import field_error
from splitmesh.sql.fields import check_fields

_LONGEST = {"model": 64, "created_by": 128, "description": 1000, "request_id": 128}
_MAX_VERSION = 2**31


@dataclass(frozen=True, slots=True)
class Draft:
    """A request that makes sense."""

    request: fleet_pb2.DeployRequest
    target: Target
    strategy: Strategy


def read_request(request: fleet_pb2.DeployRequest) -> Draft:
    """FIELD_INVALID names the field."""
    for name, longest in _LONGEST.items():
        value = getattr(request, name)
        check_fields(**{name: value})
        if len(value) > longest:
            raise field_error(name, f"has {len(value)} characters, at most {longest} are allowed")
    if not request.model:
        raise field_error("model", "is missing")
    if not 0 < request.version < _MAX_VERSION:
        raise field_error("version", f"is {request.version}, expected the number of a version, from 1")
    check_fields(target=[*request.target.nodes, *request.target.labels.values(), request.strategy.alias])
    return Draft(request, read_target(request.target), read_strategy(request.strategy))


def plan_hosts(draft: Draft, hosts: Sequence[HostRow], online: Mapping[str, bool]) -> list[HostRow]:
    """The hosts with their waves: those first that are connected, and where there is a trial, that can make one.

    Raises:
        MeshError: FIELD_INVALID, a trial is asked for and no host of the first wave has anything to compare with.
    """
    version, gate = draft.request.version, draft.strategy.gate
    tries = {host.node: gate is not None and host.base_version not in (0, version) for host in hosts}
    ordered = sorted(hosts, key=lambda host: (not tries[host.node], not online[host.node], host.node))
    if gate is not None:
        # One that is connected and has nothing to compare with may still be told before one that is not connected.
        ordered.sort(key=lambda host: (not (tries[host.node] and online[host.node]), not online[host.node]))
    waves = divide([host.node for host in ordered], draft.strategy.wave_percents)
    for host in ordered:
        host.wave = waves[host.node]
    if gate is not None and not any(tries[host.node] for host in ordered if host.wave == 1):
        problem = f"no host of the first wave serves another version than {version} that it could be compared with"
        raise field_error("strategy.gate", f"{problem}; deploy without a gate")
    return ordered


def first_status(draft: Draft, now_us: int) -> Status:
    """Where it begins."""
    if draft.strategy.gate is None:
        return Status(ROLLING, message="hosts switch", update_time_us=now_us)
    return Status(SHADOW, message="the first wave tries the version", update_time_us=now_us)


def make_plan(draft: Draft, deployment_id: str, number: int, hosts: Sequence[HostRow], now_us: int) -> Plan:
    """What was asked for, with what the fleet adds."""
    request = draft.request
    return Plan(
        number=number,
        id=deployment_id,
        model=request.model,
        version=request.version,
        target=draft.target,
        asked_target=request.target,
        strategy=draft.strategy,
        asked_strategy=request.strategy,
        waves=max(host.wave for host in hosts),
        created_by=request.created_by,
        description=request.description,
        create_time_us=now_us,
        request_id=request.request_id,
    )
