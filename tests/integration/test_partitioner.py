"""The partitioner over gRPC with a real registry: profiles, plans, split versions."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import pytest_asyncio

from services.partitioner import partition as partition_module
from services.partitioner.app import build
from services.partitioner.config import PartitionerSettings
from splitmesh.client.partition import MiddleTier, PartitionClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.manifest import CALIBRATION, HEAD, MANIFEST, TAIL, WHOLE, Manifest
from splitmesh.model.placement.problem import Objective
from splitmesh.model.plan_options import placement_name
from splitmesh.model.verify import run_chain
from splitmesh.runtime import open_session
from tests.integration.small_model import (
    CUT,
    LABELS,
    SIDE,
    ControlPlane,
    control_plane,
    push_small,
    small_manifest,
    small_model,
    small_pictures,
    tensors_of,
)

BUDGET_S = 1.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """One registry for all tests; each uses a model of its own name."""
    async with control_plane(tmp_path_factory.mktemp("plane")) as made:
        yield made


@pytest.fixture
def model() -> str:
    """A name no other test uses."""
    return f"small-{uuid4().hex[:12]}"


@asynccontextmanager
async def partitioner(plane: ControlPlane, **changes: object) -> AsyncIterator[PartitionClient]:
    values = {"static_addresses": plane.addresses, "drain_s": 1.0}
    settings = PartitionerSettings.model_validate(values | changes)
    async with Host("partitioner", settings, build) as host:
        yield PartitionClient(plane.channels(partitioner=host.address))


async def test_a_profile_on_calibration_pictures_is_measured_once_and_outlives_a_restart(
    plane: ControlPlane, model: str
) -> None:
    await push_small(plane.registry, model, samples=20)
    async with partitioner(plane) as client:
        profile = await client.profile(model, 1, budget_s=BUDGET_S)
        assert profile.calibration == "real"
        assert profile.whole_ms > 0
        edges = next(cut for cut in profile.cuts if cut.tensors == (CUT,))
        assert edges.raw_bytes == 8 * SIDE * SIDE * 4
        assert 0 < edges.wire_bytes["uint8+zstd"] < edges.wire_bytes["float32+zstd"]
        assert [cut.position for cut in profile.cuts] == sorted(cut.position for cut in profile.cuts)
    async with partitioner(plane) as client:
        # measured times would differ in some digit
        assert (await client.profile(model, 1, budget_s=60)).whole_ms == profile.whole_ms


async def test_callers_at_the_same_time_share_one_measurement(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane, max_waiting_jobs=0) as client:
        profiles = await asyncio.gather(*(client.profile(model, 1, budget_s=BUDGET_S) for _ in range(4)))
    assert all(profile == profiles[0] for profile in profiles)
    assert profiles[0].calibration == "random"


async def test_a_plan_ranks_every_kind_and_its_winner_follows_the_link(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model, samples=20)
    async with partitioner(plane) as client:
        slow = await client.plan(model, 1, uplink_mbps=0.1, rtt_ms=20, escalation=0.1, budget_s=BUDGET_S)
        fast = await client.plan(
            model, 1, uplink_mbps=10_000, rtt_ms=0, edge_slowdown=10_000, cloud_speedup=10, picture_bytes=300
        )
    assert {row.kind for row in slow.options} == {"EDGE_ONLY", "CLOUD_ONLY", "SPLIT", "CASCADE"}
    assert slow.options[0].kind == "EDGE_ONLY"
    assert fast.options[0].kind == "CLOUD_ONLY"
    assert "CASCADE" not in {row.kind for row in fast.options}
    best = slow.options[0]
    assert best.feasible
    assert sum(best.stages.values()) == pytest.approx(best.latency_ms)
    assert slow.why.startswith("edge only takes")


async def test_pictures_are_measured_with_every_codec_or_taken_raw_or_as_told(plane: ControlPlane) -> None:
    await push_small(plane.registry, "with", samples=20)
    await push_small(plane.registry, "without")
    async with partitioner(plane) as client:

        async def cloud_only(model: str, picture_bytes: int = 0) -> dict[str, tuple[float, float | None]]:
            plan = await client.plan(model, 1, uplink_mbps=1, rtt_ms=1, picture_bytes=picture_bytes, budget_s=BUDGET_S)
            rows = [row for row in plan.options if row.kind == "CLOUD_ONLY"]
            return {row.codec: (row.uplink_bytes, row.agreement) for row in rows}

        measured = await cloud_only("with")
        assert {"jpeg q90", "png"} < set(measured)
        assert 200 < measured["jpeg q90"][0] < 1000
        assert measured["png"][1] == 1.0
        assert await cloud_only("without") == {"raw": (SIDE * SIDE, 1.0)}
        assert await cloud_only("with", 12_345) == {"as sent": (12_345, 1.0)}


async def test_a_plan_keeps_to_what_is_asked_and_says_how_good_any_other_could_be(
    plane: ControlPlane, model: str
) -> None:
    await push_small(plane.registry, model)
    weak: dict[str, Any] = {"uplink_mbps": 1000, "rtt_ms": 0.1, "edge_slowdown": 1000, "budget_s": BUDGET_S}
    async with partitioner(plane) as client:
        free = await client.plan(model, 1, picture_stays_on_site=True, **weak)
        pinned = await client.plan(
            model, 1, picture_stays_on_site=True, kept_on_edge=free.options[0].cut, max_leakage=None, **weak
        )
        leaks = await client.plan(model, 1, max_leakage=0.5, **weak)
        fast = await client.plan(model, 1, objective=Objective.THROUGHPUT, **weak)
        three = await client.plan(
            model, 1, between=[MiddleTier(name="MEC", uplink_mbps=10, rtt_ms=1, slowdown=2)], **weak
        )
        with pytest.raises(MeshError) as caught:
            await client.plan(model, 1, edge_node="nowhere", **weak)
        with pytest.raises(MeshError, match="in no cut"):
            await client.plan(model, 1, kept_on_edge=["edgs"], **weak)
        with pytest.raises(MeshError, match="the edge cannot run Conv"):
            await client.plan(model, 1, picture_stays_on_site=True, unsupported_on_edge=["Conv"], **weak)
    assert caught.value.reason is Reason.NODE_NOT_FOUND
    assert free.certificate is not None
    assert 0 < free.certificate.lower_bound_ms <= free.options[0].latency_ms
    assert not set(pinned.options[0].cut) & set(free.options[0].cut)
    assert leaks.options[0].kind == "EDGE_ONLY"
    assert [row.throughput_fps for row in fast.options] == sorted(
        (row.throughput_fps for row in fast.options), reverse=True
    )
    assert all([share.tier for share in row.tiers] == ["edge", "MEC", "cloud"] for row in three.options)
    assert placement_name(three.options[0].tiers) == "MEC only"


async def test_a_constraint_refuses_an_option_and_says_why(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        plan = await client.plan(
            model, 1, uplink_mbps=10_000, rtt_ms=0, edge_slowdown=1000, picture_stays_on_site=True, budget_s=BUDGET_S
        )
    (cloud,) = [row for row in plan.options if row.kind == "CLOUD_ONLY"]
    assert not cloud.feasible
    assert "may not leave the site" in cloud.refused_because
    assert plan.options[0].feasible


async def test_a_plan_that_nothing_fulfils_is_infeasible(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.plan(
                model, 1, uplink_mbps=1, rtt_ms=1, picture_stays_on_site=True, max_head_bytes=1, budget_s=BUDGET_S
            )
    assert caught.value.reason is Reason.PLAN_INFEASIBLE


@pytest.mark.parametrize("samples", [0, 40])
async def test_a_split_is_a_new_version_whose_halves_equal_the_whole(
    plane: ControlPlane, model: str, samples: int
) -> None:
    await push_small(plane.registry, model, samples=samples)
    async with partitioner(plane) as client:
        result = await client.split(model, 1, [CUT])
    assert result.version == 2
    assert 0 <= result.max_abs_error < 1e-4
    made = await plane.registry.get_version(model, 2)
    assert (made.parent, made.created_by) == (1, "partitioner")
    assert made.lineage.code_version.startswith("splitmesh")
    assert set(made.artifacts) == {WHOLE, HEAD, TAIL, MANIFEST} | ({CALIBRATION} if samples else set())
    source = await plane.registry.get_version(model, 1)
    for name in {WHOLE, CALIBRATION} & set(made.artifacts):
        assert made.artifacts[name] == source.artifacts[name]
    manifest = Manifest.from_json(await plane.registry.fetch(made, MANIFEST))
    assert manifest.labels == LABELS
    assert manifest.preprocess == small_manifest().preprocess
    assert manifest.split is not None
    assert [info.name for info in manifest.split.wire] == [CUT]
    assert manifest.split.verification.inputs == (32 if samples else 8)
    head, tail = await plane.registry.fetch(made, HEAD), await plane.registry.fetch(made, TAIL)
    assert (tensors_of(head), tensors_of(tail)) == ((["x"], [CUT]), ([CUT], ["logits"]))
    assert manifest.preprocess is not None
    feed = {"x": manifest.preprocess.normalise(small_pictures(7, seed=5))}
    whole_answer = open_session(small_model()).run(feed)["logits"]
    answer = open_session(tail).run(open_session(head).run(feed))["logits"]
    assert np.abs(answer.astype(np.float64) - whole_answer.astype(np.float64)).max() < 1e-4


async def test_further_cuts_make_a_chain_of_segments(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model, samples=40)
    async with partitioner(plane) as client:
        result = await client.split(model, 1, [CUT], [["pooled"], ["mean"]])
        assert await client.split(model, 1, [CUT], [["pooled"], ["mean"]]) == result
        assert (await client.split(model, 1, [CUT])).version == result.version + 1
        for further in ([[CUT]], [["c1"]], [[]], [["pooled"], ["edgs"]], [[f"t{n}"] for n in range(15)]):
            with pytest.raises(MeshError) as caught:
                await client.split(model, 1, [CUT], further)
            assert caught.value.reason is Reason.CUT_INVALID
    assert result.max_abs_error < 1e-4
    made = await plane.registry.get_version(model, result.version)
    assert made.description == f"version 1 cut at {CUT}; then at pooled; then at mean"
    names = [HEAD, "segment_1.onnx", "segment_2.onnx", TAIL]
    assert set(made.artifacts) == {WHOLE, *names, MANIFEST, CALIBRATION}
    manifest = Manifest.from_json(await plane.registry.fetch(made, MANIFEST))
    assert manifest.split is not None
    assert [segment.artifact for segment in manifest.split.segments()] == names
    assert manifest.split.verification.batch_sizes == (1, 2, 5, 8)
    segments = [open_session(await plane.registry.fetch(made, name)) for name in names]
    assert manifest.preprocess is not None
    feed = {"x": manifest.preprocess.normalise(small_pictures(7, seed=5))}
    whole_answer = open_session(small_model()).run(feed)["logits"]
    assert np.abs(run_chain(segments, feed)["logits"] - whole_answer).max() < 1e-4


async def test_repeating_a_split_gives_the_version_made_first(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        first = await client.split(model, 1, [CUT])
    async with partitioner(plane) as client:
        assert await client.split(model, 1, [CUT]) == first
        assert (await client.split(model, 1, ["mixed"])).version == first.version + 1
    assert len(await plane.registry.list_versions(model)) == 3


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (["edgs"], Reason.CUT_INVALID),
        (["x"], Reason.CUT_INVALID),
        (["logits"], Reason.CUT_INVALID),
        ([CUT, "mixed"], Reason.CUT_INVALID),
        ([CUT, CUT], Reason.CUT_INVALID),
        ([], Reason.CUT_INVALID),
        ([f"t{n}" for n in range(65)], Reason.CUT_INVALID),
    ],
)
async def test_a_bad_cut_is_refused_and_nothing_is_registered(
    plane: ControlPlane, model: str, cut: list[str], reason: Reason
) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.split(model, 1, cut)
    assert caught.value.reason is reason
    assert len(await plane.registry.list_versions(model)) == 1


async def test_what_does_not_exist_or_is_out_of_range_is_refused_with_the_reason(
    plane: ControlPlane, model: str
) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        wrong = {
            Reason.MODEL_NOT_FOUND: client.profile("unknown", 1),
            Reason.VERSION_NOT_FOUND: client.split(model, 7, [CUT]),
        }
        for reason, call in wrong.items():
            with pytest.raises(MeshError) as caught:
                await call
            assert caught.value.reason is reason
        for call in (
            client.profile(model, 0),
            client.profile(model, 1, budget_s=301),
            client.profile(model, 1, budget_s=-1),
            client.plan(model, 1, uplink_mbps=0, rtt_ms=1),
            client.plan(model, 1, uplink_mbps=1, rtt_ms=-1),
            client.plan(model, 1, uplink_mbps=1, rtt_ms=1, escalation=1.5),
            client.plan(model, 1, uplink_mbps=1, rtt_ms=1, max_leakage=-0.1),
            client.plan(model, 1, uplink_mbps=1, rtt_ms=1, uplink_budget_bytes_per_s=10),
            client.plan(model, 1, uplink_mbps=1, rtt_ms=1, cloud_speedup=-1),
            client.plan(model, 1, uplink_mbps=1, rtt_ms=1, between=[MiddleTier(name="M", uplink_mbps=0, rtt_ms=1)]),
            client.plan(
                model,
                1,
                uplink_mbps=1,
                rtt_ms=1,
                between=[MiddleTier(name="", node=f"unknown-{n}", uplink_mbps=1, rtt_ms=1) for n in range(5)],
            ),
        ):
            with pytest.raises(MeshError) as caught:
                await call
            assert caught.value.reason is Reason.FIELD_INVALID


async def test_calibration_that_does_not_fit_the_model_is_refused(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model, artifacts={CALIBRATION: b"no tensors in here"})
    async with partitioner(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.split(model, 1, [CUT])
    assert caught.value.reason is Reason.PAYLOAD_CORRUPT


def crash(*_: object) -> dict[str, bytes]:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


async def test_a_crash_of_the_job_is_an_error_and_the_service_goes_on(
    plane: ControlPlane, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        with monkeypatch.context() as patch:
            patch.setattr(partition_module, "split_version", crash)
            with pytest.raises(MeshError, match="SIGSEGV") as caught:
                await client.split(model, 1, [CUT])
        assert caught.value.reason is Reason.INTERNAL
        assert (await client.split(model, 1, [CUT])).version == 2


async def test_a_job_over_its_deadline_is_stopped(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane, split_deadline_s=0.1) as client:
        with pytest.raises(MeshError) as caught:
            await client.split(model, 1, [CUT])
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert len(await plane.registry.list_versions(model)) == 1


async def test_one_job_too_many_is_refused(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane, max_waiting_jobs=0) as client:
        results = await asyncio.gather(
            *(client.split(model, 1, [cut]) for cut in (CUT, "mixed", "pooled")), return_exceptions=True
        )
    refused = [result for result in results if isinstance(result, MeshError)]
    assert [error.reason for error in refused] == [Reason.QUEUE_FULL, Reason.QUEUE_FULL]
    assert refused[0].retry_after_s is not None
