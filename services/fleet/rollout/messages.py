"""Deployments and their hosts as messages. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from services.fleet.rollout import said
from services.fleet.rollout.evidence import Tally
from services.fleet.rollout.figures import figures
from services.fleet.rollout.rollout import Rollout
from services.fleet.rollout.strategy import Gate
from services.fleet.rollout.values import ENDED, NO_STATE, PAUSED, Figures, HostRow, Plan, Stage, Status
from splitmesh.api.fleet.v1 import fleet_pb2
from splitmesh.api.serving.v1 import serving_pb2

IsOnline = Callable[[str], bool]
Serving = Callable[[str], Sequence[serving_pb2.ServingState]]

_PHASES = {
    Stage.SERVING: serving_pb2.PHASE_SERVING,
    Stage.FAILED: serving_pb2.PHASE_FAILED,
    Stage.STUCK: serving_pb2.PHASE_FAILED,
}


def from_rollout(rollout: Rollout, is_online: IsOnline) -> fleet_pb2.Deployment:
    """One whose hosts are in memory."""
    return from_parts(rollout.plan, rollout.status, figures(rollout, is_online), rollout.ledger.tally)


def from_parts(plan: Plan, status: Status, found: Figures, tally: Tally) -> fleet_pb2.Deployment:
    """One that is only counted."""
    message = fleet_pb2.Deployment(
        id=plan.id,
        model=plan.model,
        version=plan.version,
        target=plan.asked_target,
        strategy=plan.asked_strategy,
        state=status.state,
        message=status.message,
        wave=status.wave,
        waves=plan.waves,
        counts=fleet_pb2.DeploymentCounts(
            total=found.total,
            waiting=found.waiting,
            under_way=found.under_way,
            serving=found.serving,
            failed=found.failed,
            offline=found.offline,
            rolled_back=found.rolled_back,
        ),
        created_by=plan.created_by,
        description=plan.description,
        resumes=status.resumes if status.state == PAUSED else NO_STATE,
    )
    message.create_time.FromMicroseconds(plan.create_time_us)
    message.update_time.FromMicroseconds(status.update_time_us or plan.create_time_us)
    if (gate := plan.strategy.gate) is not None:
        message.evidence.CopyFrom(_evidence(gate, tally))
    return message


def from_host(rollout: Rollout, host: HostRow, is_online: IsOnline, serving: Serving) -> fleet_pb2.DeploymentNode:
    """One host, with what its heads say now."""
    return fleet_pb2.DeploymentNode(
        node=host.node,
        wave=host.wave,
        state=_version_state(rollout, host, serving),
        from_version=host.from_version or host.base_version,
        online=is_online(host.node),
        task_id=host.task_id,
        rolled_back=host.stage is Stage.RETURNED,
    )


def has_ended(message: fleet_pb2.Deployment) -> bool:
    """Nothing follows for those who watch."""
    return message.state in ENDED


def _version_state(rollout: Rollout, host: HostRow, serving: Serving) -> serving_pb2.VersionState:
    states = said.of_model(serving(host.node), rollout.plan.model)
    state = serving_pb2.VersionState(version=rollout.plan.version, phase=serving_pb2.PHASE_QUEUED)
    told = host.generation and not host.taken_by and host.stage is not Stage.RETURNED
    if told and (found := said.of_version(states, rollout.plan.version)) is not None:
        state.CopyFrom(found)
    if (phase := _PHASES.get(host.stage)) is not None:
        state.phase = phase
    if host.reason or host.message:
        state.reason, state.message = host.reason, host.message
    return state


def _evidence(gate: Gate, tally: Tally) -> fleet_pb2.Evidence:
    test, pairs = gate.test, tally.pairs
    return fleet_pb2.Evidence(
        pairs=pairs.total,
        serving_loss=_share(pairs.serving_loss),
        candidate_loss=_share(pairs.candidate_loss),
        not_worse=test.not_worse(pairs),
        worse=test.worse(pairs),
        needed=test.needed,
        candidate_failed=tally.candidate_failed,
        not_made=tally.not_made,
    )


def _share(value: float) -> float:
    return 0.0 if math.isnan(value) else value
