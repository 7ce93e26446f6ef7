"""AdaptModel over gRPC with a real registry: the version it makes, and lists of versions that do not fit together."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import pytest_asyncio

from services.partitioner.app import build
from services.partitioner.config import PartitionerSettings
from splitmesh.client.partition import PartitionClient
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.alternatives import ALTERNATIVES, AlternativeSet
from splitmesh.model.lineage import VersionName
from splitmesh.model.manifest import MANIFEST, WHOLE
from tests.integration.small_model import CUT, ControlPlane, control_plane, push_small, small_manifest, small_model

LINK = {"uplink_mbps": 5.0, "rtt_ms": 30.0}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """One registry for all tests; each uses a model of its own name."""
    async with control_plane(tmp_path_factory.mktemp("plane")) as made:
        yield made


@asynccontextmanager
async def partitioner(plane: ControlPlane) -> AsyncIterator[PartitionClient]:
    settings = PartitionerSettings(static_addresses=plane.addresses, drain_s=1.0)
    async with Host("partitioner", settings, build) as host:
        yield PartitionClient(plane.channels(partitioner=host.address))


@pytest.fixture
def model() -> str:
    """A name no other test uses."""
    return f"small-{uuid4().hex[:12]}"


async def _push_again(plane: ControlPlane, model: str, note: str) -> int:
    """Another version that is not split, of the whole model with this note."""
    parts = {WHOLE: small_model(note=note), MANIFEST: small_manifest().to_json().encode()}
    return (await plane.registry.create_version(model, parts, created_by="push")).version


async def test_a_version_says_what_each_way_costs_and_begins_with_the_first(plane: ControlPlane, model: str) -> None:
    await push_small(plane.registry, model, samples=20)
    async with partitioner(plane) as client:
        early = (await client.split(model, 1, [CUT])).version
        late = (await client.split(model, 1, ["mixed"])).version
        made = await client.adapt(model, [late, 1, early], **LINK)
        (profile,) = await plane.registry.list_profiles(model, 1)
    info, source = await plane.registry.get_version(model, made), await plane.registry.get_version(model, late)
    assert (info.parent, info.created_by) == (late, "partitioner")
    assert info.lineage.parents == (VersionName(model, 1), VersionName(model, early))
    assert info.description == f"adapts among the versions {late}, 1, {early}"
    assert {name: info.artifacts[name] for name in source.artifacts} == source.artifacts
    listed = AlternativeSet.from_json(await plane.registry.fetch(info, ALTERNATIVES))
    assert (listed.uplink_mbps, listed.rtt_ms) == (5.0, 30.0)
    assert [way.version for way in listed.alternatives] == [0, 1, early]
    assert [way.share for way in listed.alternatives] == [1.0, 0.0, 1.0]
    at_late, whole, at_early = listed.alternatives
    assert (at_late.name, whole.name, at_early.name) == ("cut at mixed", "edge only", f"cut at {CUT}")
    assert whole.edge_ms == profile.whole_ms
    assert (whole.uplink_bytes, whole.cloud_ms) == (0.0, 0.0)
    for way, tensor in ((at_late, "mixed"), (at_early, CUT)):
        cut = next(one for one in profile.cuts if one.tensors == (tensor,))
        assert way.edge_ms == pytest.approx(cut.head_ms)
        assert way.uplink_bytes == cut.wire_bytes["float32+zstd"]
        assert way.cloud_ms == pytest.approx(cut.tail_ms + cut.decode_ms["float32+zstd"])


async def test_the_same_question_gives_the_same_version_and_another_link_another(
    plane: ControlPlane, model: str
) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        split = (await client.split(model, 1, [CUT])).version
        made = await client.adapt(model, [split, 1], **LINK)
        assert await client.adapt(model, [split, 1], **LINK) == made
        assert await client.adapt(model, [1, split], **LINK) == made + 1
        assert await client.adapt(model, [split, 1], uplink_mbps=6.0, rtt_ms=30.0) == made + 2
        nested = await client.adapt(model, [made, 1], **LINK)
    listed = await plane.registry.fetch(await plane.registry.get_version(model, nested), ALTERNATIVES)
    assert [way.version for way in AlternativeSet.from_json(listed).alternatives] == [0, 1]


async def test_versions_that_do_not_fit_together_are_refused_and_nothing_is_made(
    plane: ControlPlane, model: str
) -> None:
    await push_small(plane.registry, model)
    async with partitioner(plane) as client:
        split = (await client.split(model, 1, [CUT])).version
        same, other = await _push_again(plane, model, model), await _push_again(plane, model, "another")
        before = len(await plane.registry.list_versions(model))
        for versions, problem in (
            ([split], "2 to 4 versions"),
            ([], "2 to 4 versions"),
            ([split, split], "each once"),
            ([1, split, same, other, 9], "2 to 4 versions"),
            ([split, other], "same whole model"),
            ([1, same], "two that are not split"),
        ):
            with pytest.raises(MeshError, match=problem) as caught:
                await client.adapt(model, versions, **LINK)
            assert caught.value.reason is Reason.FIELD_INVALID
        with pytest.raises(MeshError) as caught:
            await client.adapt(model, [split, 99], **LINK)
        assert caught.value.reason is Reason.VERSION_NOT_FOUND
        with pytest.raises(MeshError) as caught:
            await client.adapt("unknown", [1, 2], **LINK)
        assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert len(await plane.registry.list_versions(model)) == before


@pytest.mark.parametrize(
    "link", [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, -1.0), (1.0, math.nan)]
)
async def test_a_link_that_cannot_be_is_refused(plane: ControlPlane, link: tuple[float, float]) -> None:
    async with partitioner(plane) as client:
        with pytest.raises(MeshError) as caught:
            await client.adapt("any", [1, 2], uplink_mbps=link[0], rtt_ms=link[1])
    assert caught.value.reason is Reason.FIELD_INVALID
