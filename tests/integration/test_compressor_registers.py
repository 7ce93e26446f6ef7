"""What the compressor makes of a recipe's outcome in a real registry: what goes on with the version, and what it may sign."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.compressor.apply import Compressor
from services.compressor.config import CompressorSettings
from services.compressor.store import Request, Store
from services.registry.metadata.records import Artifact, Version
from services.registry.versions import Versions
from splitmesh.client.registry import RegistryClient, VersionInfo
from splitmesh.client.trust import Trust
from splitmesh.compress.child import Result
from splitmesh.compress.recipe import Recipe, make_recipe, parse_step
from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import CALIBRATION, MANIFEST, PLAN, REPORT
from splitmesh.trust.keys import SigningKey
from tests.integration.registry_world import World, digest, running
from tests.integration.small_model import CUT, LABELS, small_manifest, small_model
from tests.integration.test_registry_trust import ALICE, ROOT, keyring, put, root_file
from tests.unit.compression_reports import full_report


def recipe() -> Recipe:
    return make_recipe([parse_step("int8-cut")], seed=5)


def cut_at(tensor: str) -> dict[str, bytes]:
    """A split version's files."""
    preprocess = small_manifest().preprocess
    manifest, files = split_bytes(small_model(), [tensor], preprocess=preprocess, labels=LABELS)
    return {**files, MANIFEST: manifest.to_json().encode()}


def outcome(folder: Path, files: Mapping[str, bytes]) -> Result:
    """As a recipe leaves it."""
    folder.mkdir()
    report = full_report()
    for name, content in {**files, REPORT: report.to_json()}.items():
        (folder / name).write_bytes(content)
    return Result({path.name: path for path in folder.iterdir()}, {}, report)


def request(version: VersionInfo, calibration_folder: str = "") -> Request:
    return Request(
        compression_id=f"compression-{'0' * 32}",
        model=version.model,
        version=version.version,
        recipe=recipe(),
        calibration_folder=calibration_folder,
        create_time=datetime.now(UTC),
    )


def compressor(registry: RegistryClient, folder: Path) -> Compressor:
    return Compressor(registry, Store(folder), CompressorSettings(data_dir=folder))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path / "data") as made:
        yield made


async def test_the_plan_goes_on_with_its_cut_and_not_with_another(world: World, tmp_path: Path) -> None:
    source = await world.client.create_version(
        "m", {**cut_at(CUT), PLAN: b"the plan", CALIBRATION: b"samples"}, created_by="partitioner"
    )
    made_here = compressor(world.client, tmp_path)
    kept, _ = await made_here.register(request(source), outcome(tmp_path / "same", cut_at(CUT)))
    version = await world.client.get_version("m", kept)
    assert version.artifacts[PLAN] == source.artifacts[PLAN]
    assert version.artifacts[CALIBRATION] == source.artifacts[CALIBRATION]
    elsewhere = request(source).model_copy(update={"compression_id": f"compression-{'1' * 32}"})
    other, _ = await made_here.register(elsewhere, outcome(tmp_path / "other", cut_at("mixed")))
    version = await world.client.get_version("m", other)
    assert PLAN not in version.artifacts
    assert CALIBRATION in version.artifacts


async def test_a_version_that_was_deleted_is_made_again(world: World, tmp_path: Path) -> None:
    source = await world.client.create_version("m", cut_at(CUT), created_by="partitioner")
    made_here, result = compressor(world.client, tmp_path), outcome(tmp_path / "out", cut_at(CUT))
    first, _ = await made_here.register(request(source), result)
    assert (await made_here.register(request(source), result))[0] == first
    assert await made_here.stands(request(source), first)
    await world.client.delete_version("m", first, deleted_by="test")
    assert not await made_here.stands(request(source), first)
    assert (await made_here.register(request(source), result))[0] == first + 1


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path / "data", trust_root=root_file(tmp_path)) as made:
        await put(made, keyring())
        yield made


def signing(world: World, folder: Path, signer: SigningKey) -> RegistryClient:
    trust = Trust([ROOT.public], folder, signer)
    trust.attach(world.client)
    return RegistryClient(world.channels, trust=trust)


async def test_nothing_of_a_version_that_does_not_verify_is_signed(
    trusting: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = signing(trusting, tmp_path / "operator", ALICE)
    source = await operator.create_version("m", {**cut_at(CUT), CALIBRATION: b"good"}, created_by="push")
    evil = (await trusting.client.push_artifact("x", b"evil")).sha256
    honest = Versions.get

    async def lying(self: Versions, model: str, *, version: int | None = None, alias: str | None = None) -> Version:
        told = await honest(self, model, version=version, alias=alias)
        changed = [Artifact(CALIBRATION, evil, 4) if one.name == CALIBRATION else one for one in told.artifacts]
        return replace(told, artifacts=tuple(changed))

    monkeypatch.setattr(Versions, "get", lying)
    registry = signing(trusting, tmp_path / "compressor", ALICE)
    with pytest.raises(MeshError) as caught:
        await compressor(registry, tmp_path / "c").register(request(source), outcome(tmp_path / "out", cut_at(CUT)))
    assert caught.value.reason is Reason.SIGNATURE_INVALID
    told = await registry.get_version("m", source.version)
    assert told.artifacts[CALIBRATION].sha256 == evil == digest(b"evil")
    with pytest.raises(MeshError, match="of no version that was verified here") as caught:
        await registry.create_version("m", {**cut_at(CUT), CALIBRATION: told.artifacts[CALIBRATION]}, created_by="x")
    assert caught.value.reason is Reason.SIGNATURE_MISSING
    monkeypatch.undo()
    assert [one.version for one in await trusting.client.list_versions("m")] == [source.version]
