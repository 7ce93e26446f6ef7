"""Splits because of a plan, over gRPC with a real registry: it stays with the version; one that does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from services.partitioner.app import build
from services.partitioner.config import PartitionerSettings
from splitmesh.api.partition.v1 import partition_pb2, partition_pb2_grpc
from splitmesh.client.partition import MiddleTier, PartitionClient
from splitmesh.client.registry import RegistryClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.lineage import program_version
from splitmesh.model.manifest import MANIFEST, PLAN, WHOLE, Manifest
from splitmesh.model.plan_record import PlanRecord
from tests.integration.small_model import CUT, control_plane, push_small

MODEL = "planned"
FAST: dict[str, Any] = {"uplink_mbps": 1000.0, "rtt_ms": 0.1, "edge_slowdown": 1000.0, "picture_stays_on_site": True}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Planned:
    """A partitioner, and a plan of version 1 on a link where cutting pays."""

    registry: RegistryClient
    client: PartitionClient
    stub: partition_pb2_grpc.PartitionServiceStub
    plan: PlanRecord


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planned(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Planned]:
    async with control_plane(tmp_path_factory.mktemp("plane")) as plane:
        settings = PartitionerSettings(static_addresses=plane.addresses, drain_s=1.0)
        async with Host("partitioner", settings, build) as host:
            await push_small(plane.registry, MODEL)
            channels = plane.channels(partitioner=host.address)
            client = PartitionClient(channels)
            found = await client.plan(MODEL, 1, budget_s=1.0, **FAST)
            assert found.record is not None
            stub = partition_pb2_grpc.PartitionServiceStub(channels.at(host.address))
            yield Planned(plane.registry, client, stub, found.record)


async def test_a_plan_names_the_model_the_link_and_the_profiles_it_was_made_from(planned: Planned) -> None:
    record = planned.plan
    version = await planned.registry.get_version(MODEL, 1)
    assert (record.model, record.whole_sha256) == (f"{MODEL}:1", version.artifacts[WHOLE].sha256)
    assert [(link.uplink_mbps, link.rtt_ms) for link in record.plan.links] == [(1000.0, 0.1)]
    assert record.plan.constraints.picture_stays_on_site
    (profile,) = await planned.registry.list_profiles(MODEL, 1)
    edge, cloud = record.tiers
    assert (edge.name, edge.profile, edge.slowdown) == ("edge", profile.key, 1000.0)
    assert edge.profile_sha256 == profile.sha256
    assert (cloud.name, cloud.profile_sha256, cloud.slowdown) == ("cloud", profile.sha256, 1.0)
    assert (record.code_version, record.chosen) == (program_version(), None)
    assert record.options_ranked >= len(record.plan.options)
    assert abs((datetime.now(UTC) - record.plan_time).total_seconds()) < 600


async def test_a_split_follows_the_plan_and_keeps_it_and_what_it_expected(planned: Planned) -> None:
    made = await planned.client.split(MODEL, 1, plan=planned.plan)
    best = next(option for option in planned.plan.plan.options if option.cuts and option.feasible)
    assert made.cuts == best.cuts
    version = await planned.registry.get_version(MODEL, made.version)
    manifest = Manifest.from_json(await planned.registry.fetch(version, MANIFEST))
    assert manifest.split is not None
    assert manifest.split.cuts == best.cuts
    kept = PlanRecord.from_json(await planned.registry.fetch(version, PLAN))
    assert kept.choice == best
    assert kept.model_copy(update={"chosen": None}) == planned.plan
    assert version.lineage.metrics == {"max_abs_error": made.max_abs_error, "planned_ms": best.latency_ms}
    assert await planned.client.split(MODEL, 1, plan=planned.plan) == made
    later = planned.plan.model_copy(update={"plan_time": datetime.now(UTC)})
    assert (await planned.client.split(MODEL, 1, plan=later)).version != made.version


async def test_a_cut_that_is_named_is_the_plans_or_there_is_no_plan(planned: Planned) -> None:
    named = await planned.client.split(MODEL, 1, ["mixed"], plan=planned.plan)
    version = await planned.registry.get_version(MODEL, named.version)
    choice = PlanRecord.from_json(await planned.registry.fetch(version, PLAN)).choice
    assert choice is not None
    assert (named.cuts, choice.cut) == ((("mixed",),), ("mixed",))
    without = await planned.client.split(MODEL, 1, ["mixed"])
    assert PLAN not in (await planned.registry.get_version(MODEL, without.version)).artifacts
    with pytest.raises(MeshError, match="no option that cuts at logits") as caught:
        await planned.client.split(MODEL, 1, ["logits"], plan=planned.plan)
    assert caught.value.reason is Reason.FIELD_INVALID


async def test_a_plan_over_more_tiers_is_followed_too(planned: Planned) -> None:
    tier = MiddleTier(name="MEC", uplink_mbps=1000.0, rtt_ms=0.1)
    found = await planned.client.plan(MODEL, 1, between=[tier], **FAST)
    assert found.record is not None
    wanted = next(option for option in found.record.plan.options if option.cuts and option.feasible)
    made = await planned.client.split(MODEL, 1, plan=found.record)
    assert made.cuts == wanted.cuts
    kept = PlanRecord.from_json(
        await planned.registry.fetch(await planned.registry.get_version(MODEL, made.version), PLAN)
    )
    assert [one.name for one in kept.tiers] == ["edge", "MEC", "cloud"]
    assert kept.choice == wanted


async def test_a_plan_that_does_not_fit_is_refused_and_nothing_is_made(planned: Planned) -> None:
    before = len(await planned.registry.list_versions(MODEL))
    text = planned.plan.to_json()
    other = planned.plan.model_copy(update={"whole_sha256": "0" * 64}).to_json()
    for plan, problem in (
        ("no plan", "is no plan"),
        (text.replace('"schema_version": 1', '"schema_version": 2'), "schema_version"),
        (json.dumps({**json.loads(text), "plan": {}}), "is no plan"),
        (" " * (257 << 10), "more than"),
        (other, "another whole model"),
    ):
        with pytest.raises(MeshError, match=problem) as caught:
            async with mesh_errors():
                await planned.stub.SplitModel(
                    partition_pb2.SplitModelRequest(model=MODEL, version=1, plan_json=plan), timeout=60
                )
        assert caught.value.reason is Reason.FIELD_INVALID
    assert len(await planned.registry.list_versions(MODEL)) == before


async def test_alternatives_begin_with_the_first_ones_plan(planned: Planned) -> None:
    first = await planned.client.split(MODEL, 1, plan=planned.plan)
    made = await planned.client.adapt(MODEL, [first.version, 1], uplink_mbps=5.0, rtt_ms=30.0)
    source = await planned.registry.get_version(MODEL, first.version)
    assert (await planned.registry.get_version(MODEL, made)).artifacts[PLAN] == source.artifacts[PLAN]


async def test_a_split_and_alternatives_that_were_deleted_are_made_again(planned: Planned) -> None:
    registry, client = planned.registry, planned.client
    split = await client.split(MODEL, 1, [CUT])
    made = await client.adapt(MODEL, [split.version, 1], uplink_mbps=7.0, rtt_ms=30.0)
    await registry.delete_version(MODEL, made, deleted_by="test")
    again = await client.adapt(MODEL, [split.version, 1], uplink_mbps=7.0, rtt_ms=30.0)
    assert again == made + 1
    await registry.delete_version(MODEL, again, deleted_by="test")
    await registry.delete_version(MODEL, split.version, deleted_by="test")
    anew = await client.split(MODEL, 1, [CUT])
    assert (anew.version, anew.cuts) == (again + 1, split.cuts)
    assert await client.split(MODEL, 1, [CUT]) == anew
