"""Manifests where a trust root is set: only what a trusted key signed gets in, and only that is handed out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from splitmesh.client.datasets import DatasetClient
from splitmesh.client.registry_calls import RegistryCalls
from splitmesh.client.trust import Trust
from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keyring import sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.trusted_key import TrustedKey
from tests.integration.board_pictures import boards
from tests.integration.registry_world import World, running
from tests.support.signing import ring_of

ROOT, ALICE, MALLORY = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()


@dataclass
class Trusting:
    """A registry that takes only what Alice signed, and clients that sign with a key."""

    world: World
    folder: Path

    def client(self, signer: SigningKey | None) -> DatasetClient:
        name = signer.public.key_id if signer else "nobody"
        trust = Trust([ROOT.public], self.folder / name, signer)
        trust.attach(RegistryCalls(self.world.channels))
        return DatasetClient(self.world.channels, trust=trust)


@pytest.fixture
async def trusting(tmp_path: Path) -> AsyncIterator[Trusting]:
    root = tmp_path / "root.pem"
    root.write_bytes(ROOT.public.to_pem())
    async with running(tmp_path / "registry", trust_root=root) as world:
        await world.client.put_keyring(sign_keyring(ring_of(ROOT, TrustedKey(ALICE.public, "alice")), [ROOT]))
        yield Trusting(world, tmp_path)


async def test_a_signed_manifest_gets_in_and_is_verified_before_it_is_handed_out(trusting: Trusting) -> None:
    version = await trusting.client(ALICE).create("boards", boards(), created_by="ana")
    assert len(version.signatures) == 1
    reader = trusting.client(None)
    assert await reader.manifest(version) == boards()
    (event,) = await trusting.world.client.events("boards")
    assert event.key_ids == (ALICE.public.key_id,)


@pytest.mark.parametrize(
    ("signer", "reason"), [(None, Reason.SIGNATURE_MISSING), (MALLORY, Reason.KEY_UNKNOWN)], ids=["nobody", "mallory"]
)
async def test_what_no_trusted_key_signed_does_not_get_in(
    trusting: Trusting, signer: SigningKey | None, reason: Reason
) -> None:
    with pytest.raises(MeshError) as error:
        await trusting.client(signer).create("boards", boards(), created_by="ana")
    assert error.value.reason is reason
    assert await trusting.client(ALICE).list() == []


async def test_a_registry_that_lies_about_a_version_is_not_believed(trusting: Trusting) -> None:
    version = await trusting.client(ALICE).create("boards", boards(), created_by="ana")
    other = await trusting.client(ALICE).create("boards", boards(5), created_by="ana")
    lies = [
        (replace(version, signatures=()), Reason.SIGNATURE_MISSING),
        (replace(version, manifest=other.manifest), Reason.SIGNATURE_INVALID),
        (replace(version, dataset="joints"), Reason.SIGNATURE_INVALID),
        (replace(version, created_by="mallory"), Reason.SIGNATURE_INVALID),
        (replace(version, parent=3), Reason.SIGNATURE_INVALID),
    ]
    reader = trusting.client(None)
    for lie, reason in lies:
        with pytest.raises(MeshError) as error:
            await reader.manifest(lie)
        assert error.value.reason is reason
