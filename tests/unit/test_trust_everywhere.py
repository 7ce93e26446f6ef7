"""Whoever loads parts of a version: with a trust root none of them asks for a byte of one that no trusted key signed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from cloud.tail.config import TailSettings
from cloud.tail.followed import Followed
from cloud.tail.segments import WHOLE as WHOLE_MODEL
from cloud.tail.segments import Segments
from edge.head.config import HeadSettings
from edge.head.follow import ModelFollower
from services.compressor.apply import Compressor
from services.compressor.config import CompressorSettings
from services.compressor.store import Request, Store
from services.partitioner.adapt import Adapter
from services.partitioner.config import PartitionerSettings
from services.partitioner.measure import Measurer
from services.partitioner.measurement import Means
from services.partitioner.partition import Partitioner
from services.router.app import _fetch_from
from services.router.parts import parts_from
from splitmesh.cli.compress_here import _fetch as fetched_here
from splitmesh.cli.models_pull import pull_to
from splitmesh.client.cache import ModelCache
from splitmesh.client.datasets import DatasetClient
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.compress.recipe import Recipe
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.jobs import JobSlots
from splitmesh.model.alternatives import ALTERNATIVES
from splitmesh.model.manifest import CALIBRATION, MANIFEST, OUTCOMES, WHOLE
from splitmesh.model.plan_options import Link
from tests.support.trusting import LAB, ONE, Registry, trust, version

MODEL = "solder"
RECIPE = Recipe.model_validate_json('{"steps": [{"kind": "prune"}]}')


class Cable:
    """Stands for the channels to a registry; whoever wants something of it is noted."""

    def __init__(self) -> None:
        self.wanted: list[str] = []

    async def to(self, service: str) -> Any:
        self.wanted.append(service)
        raise MeshError(Reason.FIELD_INVALID, "nothing may cross this cable")


class Unsigned(RegistryClient):
    """Tells of versions that nobody signed, by number and by alias."""

    async def get_version(self, model: str, version: int | None = None, *, alias: str | None = None) -> VersionInfo:
        return unsigned(version or 1)

    async def list_profiles(self, *_: Any) -> list[Any]:
        return []


def unsigned(number: int, *more: str) -> VersionInfo:
    names = (MANIFEST, WHOLE, CALIBRATION, OUTCOMES, *more)
    return replace(version(None, number), artifacts={name: ArtifactRef(name, "a" * 64, 10) for name in names})


@dataclass
class Node:
    """What a loader is made of."""

    folder: Path
    registry: Unsigned
    channels: Channels

    @property
    def cache(self) -> ModelCache:
        return ModelCache(self.folder / "cache", self.registry)

    @property
    def compressor(self) -> Compressor:
        settings = CompressorSettings(data_dir=self.folder / "compressor")
        return Compressor(self.registry, Store(settings.data_dir), settings)

    @property
    def partitioner(self) -> Partitioner:
        settings = PartitionerSettings(data_dir=self.folder / "partitioner")
        slots = JobSlots(1, 1)
        means = Means(self.registry, cast(Any, None), settings)
        return Partitioner(self.registry, Measurer(means, slots), slots, settings)

    @property
    def follower(self) -> ModelFollower:
        settings = HeadSettings(data_dir=self.folder / "head", models=MODEL)
        nobody = cast(Any, None)
        return ModelFollower(MODEL, settings, self.channels, self.registry, nobody, nobody)


def request() -> Request:
    named = {"compression_id": f"compression-{'a' * 32}", "model": MODEL, "version": 1, "recipe": RECIPE}
    return Request(**named, create_time=datetime(2026, 11, 1, tzinfo=UTC))  # type: ignore[arg-type]


async def tail(node: Node) -> None:
    segments = Segments(node.cache, TailSettings(data_dir=node.folder / "tail"))
    try:
        async with segments.use(MODEL, 1, WHOLE_MODEL):
            pass
    finally:
        await segments.stop()


async def followed(node: Node) -> None:
    aliases = Followed(node.registry, node.cache, cast(Any, None), most=1)
    await aliases.version(MODEL, "production")


LOADERS: dict[str, Callable[[Node], Awaitable[object]]] = {
    "a part from the cache": lambda node: node.cache.part(unsigned(1), WHOLE),
    "a head": lambda node: node.follower._activate(unsigned(1), wait_for_tail=False),
    "a head with alternatives": lambda node: node.follower._activate(unsigned(1, ALTERNATIVES), wait_for_tail=False),
    "a tail's segment": tail,
    "a tail's alias": followed,
    "a version to compress": lambda node: node.compressor.apply(request(), lambda step, share: None),
    "whether a recipe fits": lambda node: node.compressor.check(MODEL, 1, RECIPE, ""),
    "a version to compress on this machine": lambda node: fetched_here(
        node.registry, unsigned(1), node.folder / "here"
    ),
    "a version to split": lambda node: node.partitioner.split(MODEL, 1, [["cut"]]),
    "a version to profile": lambda node: node.partitioner.profile(MODEL, 1, 1.0),
    "a version to plan": lambda node: node.partitioner.plan(MODEL, 1, cast(Any, None), 1.0),
    "what a version's recipe timed": lambda node: node.partitioner.timed_ms(unsigned(1, "report.json")),
    "alternatives": lambda node: Adapter(node.registry, node.partitioner, PartitionerSettings()).adapt(
        MODEL, [1, 2], Link(uplink_mbps=10, rtt_ms=1)
    ),
    "a router's parts": lambda node: parts_from(node.registry)(MODEL, 1),
    "a router's outcomes": lambda node: _fetch_from(node.registry)(MODEL, 1),
    "a pulled folder": lambda node: pull_to(node.registry, unsigned(1), node.folder / "out"),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
async def test_no_part_of_a_version_that_nobody_signed_is_asked_for(
    tmp_path: Path, load: Callable[[Node], Awaitable[object]]
) -> None:
    cable = Cable()
    channels = cast(Channels, cable)
    registry = Unsigned(channels, trust=trust(tmp_path / "trust", Registry(ONE)))
    with pytest.raises(MeshError) as caught:
        await load(Node(tmp_path, registry, channels))
    assert (caught.value.reason, cable.wanted) == (Reason.SIGNATURE_MISSING, [])


async def test_what_nobody_signed_goes_on_with_no_compressed_version(tmp_path: Path) -> None:
    channels = cast(Channels, Cable())
    registry = Unsigned(channels, trust=trust(tmp_path / "trust", Registry(ONE)))
    with pytest.raises(MeshError) as caught:
        await Node(tmp_path, registry, channels).compressor.register(request(), cast(Any, None))
    assert caught.value.reason is Reason.SIGNATURE_MISSING


async def test_who_may_not_sign_a_version_sends_nothing_of_it(tmp_path: Path) -> None:
    cable = Cable()
    channels = cast(Channels, cable)
    signer = trust(tmp_path / "trust", Registry(ONE), signer=LAB)
    making = (
        RegistryClient(channels, trust=signer).create_version(MODEL, {WHOLE: b"500 MB"}, created_by="lab"),
        DatasetClient(channels, trust=signer).create("boards", b"{}", created_by="lab"),
    )
    for made in making:
        with pytest.raises(MeshError) as caught:
            await made
        assert (caught.value.reason, cable.wanted) == (Reason.KEY_UNKNOWN, [])


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
async def test_without_a_trust_root_the_same_would_be_asked_for(
    tmp_path: Path, load: Callable[[Node], Awaitable[object]]
) -> None:
    cable = Cable()
    channels = cast(Channels, cable)
    with suppress(Exception):
        await load(Node(tmp_path, Unsigned(channels), channels))
    assert set(cable.wanted) == {"registry"}
