"""Plans of registered versions use what their manifests know: measured leakage, and the version's own bottleneck."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from services.partitioner.app import build
from services.partitioner.config import PartitionerSettings
from splitmesh.client.partition import PartitionClient, PlanRow
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.alternatives import ALTERNATIVES, AlternativeSet
from splitmesh.model.manifest import MANIFEST, REPORT, Manifest
from splitmesh.model.profile_data import BOTTLENECK_CODEC, FLOAT_CODEC
from tests.integration.small_model import CUT, ControlPlane, control_plane, push_small
from tests.unit.leakage_versions import encoded
from tests.unit.test_known_facts import leak, leaking

BUDGET_S = 1.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    async with control_plane(tmp_path_factory.mktemp("plane")) as made:
        yield made


@asynccontextmanager
async def partitioner(plane: ControlPlane) -> AsyncIterator[PartitionClient]:
    settings = PartitionerSettings.model_validate({"static_addresses": plane.addresses, "drain_s": 1.0})
    async with Host("partitioner", settings, build) as host:
        yield PartitionClient(plane.channels(partitioner=host.address))


async def _plan(
    client: PartitionClient, model: str, version: int, max_leakage: float | None = None
) -> dict[tuple[tuple[str, ...], str], PlanRow]:
    plan = await client.plan(
        model,
        version,
        uplink_mbps=1,
        rtt_ms=1,
        edge_slowdown=1000,
        cloud_speedup=1000,
        picture_stays_on_site=True,
        max_leakage=max_leakage,
        budget_s=BUDGET_S,
    )
    return {(row.cut, row.codec): row for row in plan.options if row.kind in ("SPLIT", "EDGE_ONLY")}


async def test_measured_leakage_decides_which_cuts_a_ceiling_leaves(plane: ControlPlane) -> None:
    manifest = leaking(leak(0.9, CUT), leak(0.4, "mixed"))
    await push_small(plane.registry, "measured", artifacts={MANIFEST: manifest.to_json().encode()})
    await push_small(plane.registry, "unmeasured")
    async with partitioner(plane) as client:
        free = await _plan(client, "measured", 1)
        half = await _plan(client, "measured", 1, 0.5)
        none = await _plan(client, "measured", 1, 0.3)
        blind = await _plan(client, "unmeasured", 1, 0.5)
    assert free[(CUT,), FLOAT_CODEC].feasible
    assert "0.9 of the picture can be told" in half[(CUT,), FLOAT_CODEC].refused_because
    assert "not known" in half[("c1",), FLOAT_CODEC].refused_because
    # between the two cuts the first bounds, behind the second that
    assert "0.9 of the picture" in half[("pooled",), FLOAT_CODEC].refused_because
    assert half[("mixed",), FLOAT_CODEC].feasible
    assert half[("flat",), FLOAT_CODEC].feasible
    for rows in (none, blind):
        assert [cut for (cut, _), row in rows.items() if row.feasible] == [()]


async def test_a_version_with_a_bottleneck_is_planned_with_it(plane: ControlPlane) -> None:
    work = encoded(2)
    manifest = leaking(leak(0.2, CUT, codec="bottleneck"), leak(0.8, CUT), manifest=work.manifest)
    artifacts = {**work.artifacts, MANIFEST: manifest.to_json().encode(), REPORT: b'{"schema_version": 1}'}
    await plane.registry.create_version("narrow", artifacts, created_by="compressor")
    async with partitioner(plane) as client:
        free = await _plan(client, "narrow", 1)
        capped = await _plan(client, "narrow", 1, 0.3)
    row = free[(CUT,), BOTTLENECK_CODEC]
    assert (row.uplink_bytes, row.agreement, row.feasible) == (40, 0.97, True)
    # no readable report: the coding as it was timed, on an edge a thousand times slower
    assert row.stages["encode_ms"] == pytest.approx(250)
    assert row.stages["link_ms"] < free[(CUT,), FLOAT_CODEC].stages["link_ms"]
    assert [key for key, row in capped.items() if row.feasible and key[0]] == [((CUT,), BOTTLENECK_CODEC)]
    assert "0.8 of the picture" in capped[(CUT,), FLOAT_CODEC].refused_because


async def test_a_head_adapts_between_the_whole_and_a_bottleneck(plane: ControlPlane) -> None:
    work = encoded(2)
    artifacts = {**work.artifacts, MANIFEST: work.manifest.to_json().encode()}
    await plane.registry.create_version("both", artifacts, created_by="compressor")
    whole = {name: data for name, data in artifacts.items() if name == work.manifest.whole.artifact}
    plain = Manifest.from_json(work.manifest.model_copy(update={"split": None}).to_json())
    await plane.registry.create_version(
        "both", {**whole, MANIFEST: plain.to_json().encode()}, created_by="push", request_id="whole"
    )
    async with partitioner(plane) as client:
        made = await client.adapt("both", [1, 2], uplink_mbps=1, rtt_ms=1)
    info = await plane.registry.get_version("both", made)
    listed = AlternativeSet.from_json(await plane.registry.fetch(info, ALTERNATIVES))
    assert [(entry.uplink_bytes, entry.encode_ms) for entry in listed.alternatives] == [(40, 0.25), (0, 0.0)]


async def test_a_manifest_that_nobody_can_read_stops_a_plan(plane: ControlPlane) -> None:
    with pytest.raises(MeshError) as caught:
        await push_small(plane.registry, "broken", artifacts={MANIFEST: b"{}"})
    assert caught.value.reason is Reason.MODEL_CORRUPT
