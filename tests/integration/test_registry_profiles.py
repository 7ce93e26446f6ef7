"""Profiles in a real registry: shared by versions of one whole model, replaced by key, bounded, refused when invalid."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.registry import profiles as profiles_module
from splitmesh.api.profile.v1 import profile_pb2
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.client.profiles import profile_from_message, profile_to_message
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import mesh_errors
from splitmesh.model.profile_data import CutProfile, NodeProfile, PictureProfile, Profile, ProfileKey
from tests.integration.registry_world import World, parts, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


def _profile(node: str = "n", **changes: Any) -> Profile:
    cut = CutProfile(
        tensors=("a", "b"),
        position=0.5,
        head_ms=1.5,
        head_p90_ms=2.5,
        tail_ms=3.5,
        tail_p90_ms=4.5,
        measured=True,
        live_runs=7,
        head_bytes=10,
        raw_bytes=20,
        wire_bytes={"x": 5, "y": 6},
        encode_ms={"x": 0.1},
        decode_ms={"x": 0.2},
        escalation=0.0,
        agreement={"y": 0.9},
        leakage=0.25,
    )
    values: dict[str, Any] = {
        "key": ProfileKey(node=node, backend="CPUExecutionProvider", threads=2, batch=4),
        "whole_ms": 5.0,
        "whole_p90_ms": 6.0,
        "whole_bytes": 100,
        "cuts": (cut, cut.model_copy(update={"escalation": None, "leakage": None, "agreement": {}})),
        "nodes": (
            NodeProfile(
                name="a", sources=(-1,), head_ms=1, tail_ms=2, weight_bytes=3, wire_bytes={"x": 4}, operator="Conv"
            ),
            NodeProfile(name="b", sources=(-1, 0), head_ms=1, tail_ms=2, weight_bytes=0, wire_bytes={}),
        ),
        "pictures": {"png": PictureProfile(wire_bytes=9, agreement=0.0), "raw": PictureProfile(wire_bytes=8)},
        "repeats": 3,
        "samples": 2,
        "calibration": "real",
        "host": "h",
        "complete": False,
    }
    return Profile(**values | changes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running(tmp_path_factory.mktemp("registry")) as made:
        yield made


async def test_a_profile_survives_a_message_and_the_message_holds_every_field() -> None:
    profile = _profile()
    message = profile_to_message(profile)
    assert profile_from_message(profile_pb2.Profile.FromString(message.SerializeToString())) == profile
    for data, part in ((profile, message), (profile.cuts[0], message.cuts[0]), (profile.nodes[0], message.nodes[0])):
        fields = {field.name for field in part.DESCRIPTOR.fields}
        stored = {name for name, field in type(data).model_fields.items() if not field.exclude}
        assert fields == stored - {"schema_version"}


async def test_versions_with_one_whole_model_share_their_profiles(world: World) -> None:
    first = await world.client.create_version("shares", parts("shared"), created_by="test")
    await world.client.create_version("shares", parts("shared"), created_by="test", parent=first.version)
    other = await world.client.create_version("shares", parts("another"), created_by="test")
    profile = _profile()
    await world.client.put_profile("shares", 1, profile)
    assert await world.client.list_profiles("shares", 2) == [profile]
    assert await world.client.list_profiles("shares", other.version) == []


async def test_profiles_are_listed_newest_first_and_by_node(world: World) -> None:
    await world.client.create_version("listed", parts("listed"), created_by="test")
    one, two = _profile("one"), _profile("two")
    for profile in (one, two, one.model_copy(update={"whole_ms": 7.0})):
        await world.client.put_profile("listed", 1, profile)
    found = await world.client.list_profiles("listed", 1)
    assert [(profile.key.node, profile.whole_ms) for profile in found] == [("one", 7.0), ("two", 5.0)]
    assert await world.client.list_profiles("listed", 1, "two") == [two]


async def test_profiles_outlive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        await world.client.create_version("m", parts(), created_by="test")
        await world.client.put_profile("m", 1, _profile())
    async with running(tmp_path) as world:
        assert await world.client.list_profiles("m", 1) == [_profile()]


async def test_an_invalid_or_too_large_profile_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.client.create_version("refuses", parts("refuses"), created_by="test")
    message = profile_to_message(_profile())
    message.cuts[0].head_ms = -1
    with pytest.raises(MeshError) as caught:
        async with mesh_errors():
            await world.stub.PutProfile(pb.PutProfileRequest(model="refuses", version=1, profile=message))
    assert caught.value.reason is Reason.FIELD_INVALID
    for source in (1, 7, -2):
        message = profile_to_message(_profile())
        message.nodes[1].sources[0] = source
        with pytest.raises(MeshError, match="does not come before it"):
            async with mesh_errors():
                await world.stub.PutProfile(pb.PutProfileRequest(model="refuses", version=1, profile=message))
    monkeypatch.setattr(profiles_module, "MAX_PROFILE_BYTES", 1000)
    with pytest.raises(MeshError, match="at most 1000") as caught:
        await world.client.put_profile("refuses", 1, _profile())
    assert caught.value.reason is Reason.FIELD_INVALID
    assert await world.client.list_profiles("refuses", 1) == []


async def test_what_does_not_fit_in_one_reply_is_left_out_the_oldest_first(tmp_path: Path) -> None:
    size = len(_profile().model_dump_json())
    async with running(tmp_path, max_frame_bytes=max(1024, int(2.5 * size))) as world:
        await world.client.create_version("m", parts(), created_by="test")
        for node in "abcd":
            await world.client.put_profile("m", 1, _profile(node))
        assert [profile.key.node for profile in await world.client.list_profiles("m", 1)] == ["d", "c"]


async def test_what_does_not_exist_is_not_found(world: World) -> None:
    await world.client.create_version("exists", parts("exists"), created_by="test")
    for model, version, reason in (("exists", 2, Reason.VERSION_NOT_FOUND), ("no", 1, Reason.MODEL_NOT_FOUND)):
        for call in (world.client.put_profile(model, version, _profile()), world.client.list_profiles(model, version)):
            with pytest.raises(MeshError) as caught:
                await call
            assert caught.value.reason is reason
