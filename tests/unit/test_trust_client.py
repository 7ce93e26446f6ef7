"""What a service does with trust: it verifies what it uses, signs what it makes, and says when a key it relied on is gone."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from splitmesh.client.registry_messages import lineage_from_message, lineage_to_message
from splitmesh.client.registry_values import ArtifactRef
from splitmesh.client.trust import Trust
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.config import ServiceSettings
from splitmesh.model.lineage import Lineage
from splitmesh.trust.claim import Claim
from splitmesh.trust.keyring import Keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import with_key, without_key
from splitmesh.trust.statement import Verified, version_facts
from splitmesh.trust.trusted_key import TrustedKey
from tests.support.signing import HEAD, NOON
from tests.support.trusting import LAB, ONE, PRESS, ROOT, THREE, TWO, Registry, refused, trust, version


@pytest.fixture(autouse=True)
def no_pause_between_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitmesh.client.keyrings.RETRY_S", 1e-9)


async def test_a_version_is_verified_by_the_registry_s_keyring(tmp_path: Path) -> None:
    made = trust(tmp_path, Registry(ONE))
    await made.verify(version())
    assert made.keyring_version == 1
    assert await refused(made, version(None)) is Reason.SIGNATURE_MISSING
    assert await refused(made, version(SigningKey.generate())) is Reason.KEY_UNKNOWN
    swapped = {**version().artifacts, HEAD.name: ArtifactRef(HEAD.name, "d" * 64, HEAD.size_bytes)}
    assert await refused(made, replace(version(), artifacts=swapped)) is Reason.SIGNATURE_INVALID
    assert await refused(made, replace(version(), model="boards")) is Reason.SIGNATURE_INVALID
    assert await refused(made, replace(version(), lineage=Lineage(task="another"))) is Reason.SIGNATURE_INVALID
    assert await refused(made, replace(version(), parent=3)) is Reason.SIGNATURE_INVALID


async def test_what_is_in_use_when_its_key_is_revoked_goes_on_and_an_error_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(ONE, TWO)
    made = trust(tmp_path, registry)
    await made.verify(version())
    await made.verify(version(LAB, 2))
    with caplog.at_level(logging.ERROR):
        for ring in (THREE, with_key(THREE, TrustedKey(SigningKey.generate().public, "new"))):
            registry.rings.append(ring)
            await made.refresh()
            assert made.keyring == ring
    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1
    assert "solder version 1" in told[0]
    assert "stolen" in told[0]
    assert made.withdrawn("solder", 1) is Reason.KEY_REVOKED
    assert made.withdrawn("solder", 2) is None


async def test_what_is_in_use_is_looked_at_again_beside_the_loop_and_what_was_verified_meanwhile_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(ONE, TWO)
    made = trust(tmp_path, registry)
    await made.verify(version())
    again = replace(version(), signatures=(*version(PRESS).signatures, *version(LAB).signatures))
    monkeypatch.setattr("splitmesh.client.keyrings.WAIT_S", 0.01)
    loop, looked = asyncio.get_running_loop(), []

    def verify(self: Claim, keyring: Keyring) -> Verified:
        if threading.current_thread() is not threading.main_thread():
            looked.append(self.name)
            # It was signed again, and is loaded anew while the old signature is looked at.
            asyncio.run_coroutine_threadsafe(made.verify(again), loop).result(10)
        return known(self, keyring)

    known = Claim.verify
    monkeypatch.setattr(Claim, "verify", verify)
    registry.rings.append(THREE)
    await made.refresh()
    assert looked == ["solder"]
    assert made.withdrawn("solder", 1) is None


async def test_a_signer_whose_signatures_would_not_count_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    limited = TrustedKey(LAB.public, "lab", models=("solder*",))
    registry = Registry(ONE)
    made = trust(tmp_path, registry, signer=LAB)
    with pytest.raises(MeshError, match="keys trust") as caught:
        await made.check_signer("solder")
    assert caught.value.reason is Reason.KEY_UNKNOWN
    registry.rings.append(with_key(ONE, limited))  # asked for again before it is refused
    await made.check_signer("solder-2")
    for refusal in (made.check_signer("boards"), made.check_dataset_signer("solder")):
        with pytest.raises(MeshError, match=r"may sign models solder\*, not (model 'boards'|dataset 'solder')"):
            await refusal
    registry.rings.append(without_key(registry.rings[-1], "lab", NOON - timedelta(days=1), revoked=False))
    await made.refresh()
    with pytest.raises(MeshError) as caught:
        await made.check_signer("solder")
    assert caught.value.reason is Reason.KEY_REVOKED
    await trust(tmp_path, registry).check_signer("solder")  # nothing signs here
    await Trust((), tmp_path, LAB).check_signer("solder")  # nobody knows here which keys count


async def test_one_good_signature_is_enough_and_the_worst_refusal_is_told(tmp_path: Path) -> None:
    made = trust(tmp_path, Registry(ONE, TWO, THREE))
    both = replace(version(), signatures=(*version(PRESS).signatures, *version(LAB).signatures))
    await made.verify(both)
    strange = replace(version(), signatures=(*version(SigningKey.generate()).signatures, *version(PRESS).signatures))
    assert await refused(made, strange) is Reason.KEY_REVOKED


async def test_what_is_signed_here_is_verified_there_with_the_signer_s_time(tmp_path: Path) -> None:
    signer = trust(tmp_path / "a", signer=PRESS)
    refs = list(version().artifacts.values())
    envelope = signer.sign("solder", refs, version_facts("push", 0, Lineage().sha256))
    assert envelope is not None
    there = trust(tmp_path / "b", Registry(ONE))
    await there.verify(replace(version(), signatures=(envelope,)))
    assert envelope == signer.sign_version(version())
    assert trust(tmp_path / "c").sign("solder", refs, {}) is None


async def test_a_dataset_s_manifest_is_signed_and_verified(tmp_path: Path) -> None:
    made = trust(tmp_path, Registry(ONE), signer=PRESS)
    envelope = made.sign_dataset("boards", "a" * 64, 10, {"created_by": "site"})
    assert envelope is not None
    await made.verify_dataset("boards", "a" * 64, 10, [envelope], facts={"created_by": "site"}, create_time=NOON)
    for dataset, sha256, size in (("others", "a" * 64, 10), ("boards", "b" * 64, 10), ("boards", "a" * 64, 11)):
        with pytest.raises(MeshError, match="SIGNATURE_INVALID"):
            await made.verify_dataset(dataset, sha256, size, [envelope])
    with pytest.raises(MeshError, match="SIGNATURE_MISSING"):
        await made.verify_dataset("boards", "a" * 64, 10, [])


async def test_a_lineage_that_crossed_the_wire_is_the_one_that_was_signed(tmp_path: Path) -> None:
    lineage = Lineage(task="t", seeds=(1, 2), metrics={"accuracy": 0.98, "b": 1})
    made = trust(tmp_path, Registry(ONE))
    crossed = lineage_from_message(lineage_to_message(lineage))
    await made.verify(replace(version(lineage=lineage), lineage=crossed))
    wanted = replace(version(lineage=lineage), lineage=replace(lineage, metrics={"accuracy": 0.99, "b": 1.0}))
    assert await refused(made, wanted) is Reason.SIGNATURE_INVALID


def test_settings_say_whom_to_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    root, key = tmp_path / "root.pub", tmp_path / "key.pem"
    root.write_bytes(ROOT.public.to_pem())
    key.write_bytes(PRESS.to_pem())
    assert Trust.from_settings(ServiceSettings()) is None
    made = Trust.from_settings(ServiceSettings(trust_root=root, signing_key=key))
    assert made is not None
    assert made.signer is not None
    assert made.signer.public == PRESS.public
    for wrong in ({"trust_root": key}, {"signing_key": root}, {"trust_root": tmp_path / "none"}):
        with pytest.raises(MeshError) as caught:
            Trust.from_settings(ServiceSettings(**wrong))  # type: ignore[arg-type]
        assert caught.value.reason is Reason.FIELD_INVALID
        assert str(next(iter(wrong.values()))) in caught.value.message


async def test_who_only_signs_verifies_nothing(tmp_path: Path) -> None:
    made = Trust((), tmp_path, PRESS)
    made.attach(Registry(ONE))
    await made.verify(version(None))
    made.heard(5)
    assert made.keyring_version == 0
    assert isinstance(made.sign("solder", [], {}), bytes)
