"""No byte of a version without the trust's consent, on any way to it; what is made here is signed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from splitmesh.client.cache import ModelCache
from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage
from splitmesh.testing.relay import PROFILES, LinkRelay
from splitmesh.trust.envelope import Envelope
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.statement import Statement, Subject, sign_statement
from tests.integration.registry_world import World, parts, reaching, running

MODEL = "model.onnx"


class _Trust:
    """Signs with a key of its own, and takes what that signed until told otherwise."""

    def __init__(self) -> None:
        self.keyring_version = 1
        self.refusal: Reason | None = None
        self.asked = 0
        self.key = SigningKey.generate()

    async def verify(self, version: VersionInfo) -> None:
        self.asked += 1
        if self.refusal is not None:
            raise MeshError(self.refusal, "not this one")
        key_ids = [one.key_id for envelope in version.signatures for one in Envelope.from_json(envelope).signatures]
        if self.key.public.key_id not in key_ids:
            raise MeshError(Reason.SIGNATURE_MISSING, "unsigned")

    def withdrawn(self, *_: object) -> None: ...

    async def check_signer(self, name: str) -> None: ...

    def sign(self, name: str, refs: Sequence[ArtifactRef], facts: Mapping[str, str]) -> bytes | None:
        subjects = tuple(Subject(ref.name, ref.sha256, ref.size_bytes) for ref in refs)
        return sign_statement(Statement("model-version", name, subjects, facts), self.key)

    def heard(self, keyring_version: int) -> None: ...


@asynccontextmanager
async def trusting(world: World, trust: _Trust) -> AsyncIterator[tuple[RegistryClient, LinkRelay]]:
    async with LinkRelay(world.address, PROFILES["loopback"]) as relay, reaching(relay.address) as channels:
        yield RegistryClient(channels, trust=trust), relay


async def test_a_version_is_signed_with_all_that_is_said_of_it(tmp_path: Path) -> None:
    lineage = Lineage(task="compress", seeds=(7,), metrics={"accuracy": 0.5})
    async with running(tmp_path) as world:
        trust = _Trust()
        async with trusting(world, trust) as (client, _):
            first = await client.create_version("m", parts(), created_by="push")
            made = await client.create_version("m", parts(), parent=1, created_by="alice", lineage=lineage)
            said = Statement.from_payload(Envelope.from_json(made.signatures[0]).payload)
            assert (said.kind, said.name) == ("model-version", "m")
            assert {one.name: one.sha256 for one in said.subjects} == {
                name: ref.sha256 for name, ref in made.artifacts.items()
            }
            assert said.facts == {"created_by": "alice", "parent": "1", "lineage_sha256": lineage.sha256}
            assert (made.lineage, first.lineage) == (lineage, Lineage())
            assert await client.get_version("m", 2) == made
            assert len(await client.fetch(made, MODEL)) > 0


@pytest.mark.parametrize(
    "reason", [Reason.SIGNATURE_MISSING, Reason.SIGNATURE_INVALID, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED]
)
async def test_a_version_that_is_refused_gives_no_byte_on_any_way(tmp_path: Path, reason: Reason) -> None:
    async with running(tmp_path / "data") as world:
        version = await world.client.create_version("m", {**parts(), "report.json": bytes(500_000)}, created_by="push")
        trust = _Trust()
        trust.refusal = reason
        async with trusting(world, trust) as (client, relay):
            cache = ModelCache(tmp_path / "cache", client)
            for way in (
                client.fetch(version, "report.json"),
                client.pull_version(version, tmp_path / "out"),
                client.pull_version(version, tmp_path / "out", base=tmp_path),
                cache.part(version, "report.json"),
                cache.manifest(version),
                client.verify(version),
            ):
                with pytest.raises(MeshError) as caught:
                    await way
                assert caught.value.reason is reason
            assert relay.downlink_bytes < 100_000
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache" / "parts").exists()


async def test_what_is_on_disk_is_refused_too_when_the_keyring_says_so(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        trust = _Trust()
        async with trusting(world, trust) as (client, _):
            version = await client.create_version("m", parts(), created_by="push")
            cache = ModelCache(tmp_path / "cache", client)
            for _ in range(5):
                await cache.part(version, MODEL)
            assert trust.asked == 1
            trust.refusal, trust.keyring_version = Reason.KEY_REVOKED, 2
            with pytest.raises(MeshError) as caught:
                await cache.part(version, MODEL)
            assert caught.value.reason is Reason.KEY_REVOKED


async def test_a_version_signed_later_can_be_used_from_then_on(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        version = await world.client.create_version("m", parts(), created_by="push")
        trust = _Trust()
        async with trusting(world, trust) as (client, _):
            cache = ModelCache(tmp_path / "cache", client)
            assert await cache.version("m", 1) == version
            with pytest.raises(MeshError) as caught:
                await cache.part(version, MODEL)
            assert caught.value.reason is Reason.SIGNATURE_MISSING
            facts = {"created_by": "push", "parent": "0", "lineage_sha256": Lineage().sha256}
            signature = trust.sign("m", list(version.artifacts.values()), facts)
            assert signature is not None
            await world.client.add_signature("m", 1, signature)
            await cache.part(version, MODEL)
        # After a restart without a registry the note on disk has what is needed.
        again = ModelCache(tmp_path / "cache", RegistryClient(world.channels, trust=trust))
        await world.stop()
        known = await again.version("m", 1)
        assert len(known.signatures) == 1
        await again.part(known, MODEL)


async def test_a_client_signs_by_their_digests_what_it_pushed_itself_and_nobody_else_s(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as world:
        trust = _Trust()
        first, *others = parts().items()
        async with trusting(world, trust) as (client, _), trusting(world, trust) as (stranger, _):
            refs = {first[0]: await client.push_artifact(*first), **await client.push_files(dict(others))}
            made = await client.create_version("m", refs, created_by="push")
            assert (made.artifacts, len(made.signatures)) == (refs, 1)
            with pytest.raises(MeshError) as caught:
                await stranger.create_version("m", refs, created_by="push")
            assert caught.value.reason is Reason.SIGNATURE_MISSING
