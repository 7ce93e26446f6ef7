"""Goals, policies and single decisions over gRPC, with a real registry; and reports with what drift is watched by."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.router.app import build
from services.router.config import RouterSettings
from splitmesh.api.routing.v1 import routing_pb2, routing_pb2_grpc
from splitmesh.client.routing import ClassLimit, Goals, RoutingClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.manifest import DEFERRAL, OUTCOMES, UNUSUAL
from splitmesh.model.outcomes import CalibrationOutcomes, Part
from tests.integration.small_model import LABELS, ControlPlane, control_plane, push_small
from tests.support.fitted import deferral, strange_beyond

WAIT_S = 20.0
DEFECT = LABELS[1]
LIMITED = Goals(0.02, classes=(ClassLimit(DEFECT, 0.01),), score="max_probability", escalate_unusual=False)


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path) as made:
        yield made


@asynccontextmanager
async def router(plane: ControlPlane, **changes: object) -> AsyncIterator[RoutingClient]:
    values = {"data_dir": plane.folder / "router", "static_addresses": plane.addresses, "drain_s": 5.0}
    async with Host("router", RouterSettings.model_validate(values | changes), build) as host:
        yield RoutingClient(plane.channels(router=host.address))


def measured(n: int = 3000) -> dict[str, bytes]:
    """Sure and right, but for some of the second class that are taken for the first with a confidence of 0.9."""
    whole = np.arange(n) % 3
    said, sure = whole.copy(), np.linspace(0.95, 1.0, n)
    missed = np.flatnonzero(whole == 1)[:30]
    said[missed], sure[missed] = 0, 0.9
    rows = np.repeat(((1 - sure) / 2)[:, None], 3, axis=1)
    rows[np.arange(n), said] = sure
    part = np.full(n, int(Part.HOLDOUT), np.uint8)
    strange = np.arange(n) % 10 == 0
    outcomes = CalibrationOutcomes(rows[:, None, :].astype(np.float32), whole, part, strange=strange, names=LABELS)
    unusual, fitted = strange_beyond(3.0).to_bytes(), deferral(features=True).to_bytes()
    return {OUTCOMES: outcomes.to_bytes(), DEFERRAL: fitted, UNUSUAL: unusual}


async def test_goals_are_the_defaults_until_they_are_stated_and_survive_a_restart(plane: ControlPlane) -> None:
    full = replace(LIMITED, delta=0.1, audit_share=0.25, score="energy", parameters={"temperature": 2.0})
    async with router(plane, default_audit_share=0.1) as client:
        before = await client.get_goals("small")
        assert (before.stated, before.goals) == (False, Goals(0.02, 0.05, audit_share=0.1))
        assert await client.set_goals("small", full) == full
    async with router(plane) as client:
        assert (await client.get_goals("small")).goals == full
        assert (await client.get_goals("small")).stated
        back = await client.set_goals("small", Goals(0.1))
        assert back == Goals(0.1, 0.05, audit_share=0.015)


async def test_a_policy_is_told_without_a_watch_and_follows_the_goals(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts=measured())
    async with router(plane) as client:
        loose = await client.get_policy("small", 1)
        assert (loose.revision, loose.score, loose.escalate_unusual) == (1, "max_probability", True)
        assert await client.get_policy("small", 1) == loose
        await client.set_goals("small", LIMITED)
        strict = await client.get_policy("small", 1)
        assert (strict.revision, strict.escalate_unusual) == (2, False)
        assert loose.threshold <= 0.9 < strict.threshold <= 0.95
        assert [bound.constraint for bound in strict.bounds] == [
            "samples exit and disagree",
            f"samples of class {DEFECT} exit and say another class",
        ]
        assert (strict.bounds[1].limit, strict.bounds[1].events, strict.bounds[1].n) == (0.01, 0, 1000)
        async with asyncio.timeout(WAIT_S), aclosing(client.watch_policy("small", 1, "mec-1")) as watch:
            assert await anext(watch) == strict
            assert await client.get_policy("small", 1) == strict
            await client.set_goals("small", Goals(0.3))
            assert (await anext(watch)).revision == 3
            assert (await client.get_policy("small", 1)).revision == 3


@pytest.mark.parametrize(
    ("model", "version", "reason"),
    [
        ("unknown", 1, Reason.MODEL_NOT_FOUND),
        ("small", 9, Reason.VERSION_NOT_FOUND),
        ("small", 0, Reason.FIELD_INVALID),
        ("Small", 1, Reason.FIELD_INVALID),
    ],
)
async def test_policies_and_decisions_of_what_does_not_exist_are_refused(
    plane: ControlPlane, model: str, version: int, reason: Reason
) -> None:
    await push_small(plane.registry, "small", artifacts=measured())
    async with router(plane) as client:
        for asked in (client.get_policy(model, version), client.decide_by_policy(model, version, [0.9, 0.1, 0.0])):
            with pytest.raises(MeshError) as caught:
                await asked
            assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("goals", "field"),
    [
        (Goals(0.1, delta=2.0), "delta"),
        (Goals(0.1, audit_share=0.7), "audit_share"),
        (Goals(0.1, score="guess"), "score"),
        (Goals(0.1, costs=(0.0, 1.0, 1.0)), "costs"),
        (Goals(0.1, classes=(ClassLimit("NG"),)), "classes"),
        (Goals(0.1, classes=(ClassLimit("NG", 0.1),) * 2), "classes"),
    ],
)
async def test_goals_that_make_no_sense_change_nothing(plane: ControlPlane, goals: Goals, field: str) -> None:
    async with router(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.set_goals("small", goals)
        assert caught.value.reason is Reason.FIELD_INVALID
        assert [name for name, _ in caught.value.fields] == [field]
        assert not (await client.get_goals("small")).stated


async def test_a_gateways_row_is_decided_as_a_head_of_that_version_would(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts=measured())
    async with router(plane) as client:
        await client.set_goals("small", LIMITED)
        policy = await client.get_policy("small", 1)
        easy = await client.decide_by_policy("small", 1, [0.99, 0.005, 0.005], camera_id="cam-1")
        assert (easy.hard, easy.escalate, easy.why, easy.label) == (False, False, "SURE", 0)
        assert easy.threshold == policy.threshold
        assert easy.ease == pytest.approx(0.99)
        hard = await client.decide_by_policy("small", 1, [0.1, 0.9, 0.0], site="south", size_bytes=1000)
        assert (hard.hard, hard.escalate, hard.why, hard.label, hard.refused) == (True, True, "UNSURE", 1, "")
        undefined = await client.decide_by_policy("small", 1, [math.nan, 0.5, 0.5])
        assert (undefined.why, undefined.ease, undefined.label, undefined.worth) == ("UNDEFINED", None, None, 1.0)


async def test_features_tell_worth_and_what_is_unusual_by_what_the_version_brings(plane: ControlPlane) -> None:
    await push_small(plane.registry, "small", artifacts=measured())
    row = [0.99, 0.005, 0.005]
    async with router(plane) as client:
        near = await client.decide_by_policy("small", 1, row, features=[0.0, 0.0])
        far = await client.decide_by_policy("small", 1, row, features=[50.0, 0.0])
        assert (near.why, far.why) == ("SURE", "UNUSUAL")
        assert near.worth < far.worth
        assert (await client.decide_by_policy("small", 1, row)).why == "UNUSUAL"
        with pytest.raises(MeshError) as caught:
            await client.decide_by_policy("small", 1, row, features=[1.0])
        assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


async def test_a_rule_of_ones_own_needs_no_model_in_the_registry(plane: ControlPlane) -> None:
    async with router(plane) as client:
        found = await client.decide("IBT", 0.5, boxes=[0.9, 0.2], parameters={"box_threshold": 0.5})
        assert (found.hard, found.why, found.ease, found.label) == (False, "SURE", 0.5, None)
        nothing = await client.decide("Threshold", 0.5, boxes=[])
        assert (nothing.escalate, nothing.ease) == (True, 0.0)
        empty = await client.decide("max_probability", 0.5, probabilities=[])
        assert (empty.escalate, empty.why) == (True, "UNDEFINED")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"classes": {"probabilities": [1.0]}}, "rule"),
        ({"own": {"score": "margin", "threshold": 0.5}}, "scores"),
        ({"own": {"score": "guess", "threshold": 0.5}, "boxes": {}}, "score"),
        ({"own": {"score": "ibt", "threshold": 1.5}, "boxes": {}}, "own.threshold"),
        ({"own": {"score": "ibt", "threshold": 0.5}, "boxes": {}, "camera_id": "x" * 129}, "camera_id"),
        ({"own": {"score": "ibt", "threshold": 0.5}, "boxes": {}, "site": "south"}, "application"),
        ({"own": {"score": "ibt", "threshold": 0.5}, "boxes": {}, "site": "a b", "application": "small"}, "site"),
        ({"own": {"score": "ibt", "threshold": 0.5}, "boxes": {"scores": [0.1] * 100_001}}, "boxes.scores"),
        ({"policy": {"model": "small", "version": 1}, "boxes": {}}, "boxes"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_and_names_the_field(
    plane: ControlPlane, message: dict[str, object], field: str
) -> None:
    await push_small(plane.registry, "small", artifacts=measured())
    async with router(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client._decide(routing_pb2.DecideRequest(**message))  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID
    assert [name for name, _ in caught.value.fields] == [field]


async def test_resolving_a_drift_that_is_not_there_is_refused(plane: ControlPlane) -> None:
    async with router(plane) as client:
        stub: routing_pb2_grpc.RoutingServiceStub = await client._stub()
        for number, code in ((0, grpc.StatusCode.INVALID_ARGUMENT), (7, grpc.StatusCode.NOT_FOUND)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ResolveDrift(routing_pb2.ResolveDriftRequest(number=number))
            assert caught.value.code() is code
