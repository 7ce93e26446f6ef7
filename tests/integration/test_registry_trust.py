"""What a registry with a trust root lets in: only what a trusted key signed, exactly as it was signed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.registry.app import build
from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import mesh_errors
from splitmesh.kernel.lifecycle import Host
from splitmesh.model.lineage import Lineage
from splitmesh.trust.keyring import Keyring, sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import without_key
from splitmesh.trust.statement import Statement, Subject, sign_statement, version_facts
from splitmesh.trust.trusted_key import TrustedKey
from tests.integration.registry_world import World, digest, parts, reason, running, settings_for

ROOT, ALICE, BOB = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
NOW = datetime.now(UTC)


@dataclass
class Signer:
    """Pushes two parts and asks for a version of them, as signed as a test wants it."""

    world: World
    model: str = "m"

    async def request(self) -> pb.CreateVersionRequest:
        refs = [await self.world.client.push_artifact(name, content) for name, content in parts().items()]
        return pb.CreateVersionRequest(
            model=self.model,
            artifacts=[pb.Artifact(name=ref.name, sha256=ref.sha256, size_bytes=ref.size_bytes) for ref in refs],
            created_by="push",
        )

    async def create(self, request: pb.CreateVersionRequest) -> pb.ModelVersion:
        async with mesh_errors():
            answer: pb.CreateVersionResponse = await self.world.stub.CreateVersion(request)
        return answer.version


def statement(request: pb.CreateVersionRequest, **facts: str) -> Statement:
    """What the request would have to be signed as."""
    subjects = tuple(Subject(one.name, one.sha256, one.size_bytes) for one in request.artifacts)
    known = version_facts(request.created_by, request.parent, Lineage().sha256)
    return Statement("model-version", request.model, subjects, {**known, "signed_at": NOW.isoformat(), **facts})


def ring(version: int = 1, **states: TrustedKey) -> Keyring:
    """Alice may sign all models, Bob those of line 4; follows one without other states."""
    keys = {"alice": TrustedKey(ALICE.public, "alice"), "bob": TrustedKey(BOB.public, "bob", models=("line4-*",))}
    previous = ring(version - 1).sha256 if version > 1 else ""
    return Keyring(version, (ROOT.public,), 1, tuple({**keys, **states}.values()), previous)


def keyring(version: int = 1, **states: TrustedKey) -> bytes:
    """:func:`ring`, signed."""
    return sign_keyring(ring(version, **states), [ROOT])


def root_file(folder: Path) -> Path:
    path = folder / "root.pub"
    path.write_bytes(ROOT.public.to_pem())
    return path


async def put(world: World, envelope: bytes) -> int:
    async with mesh_errors():
        return int((await world.stub.PutKeyring(pb.PutKeyringRequest(keyring=envelope))).version)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with running(tmp_path / "data", trust_root=root_file(tmp_path)) as made:
        yield made


async def refused(signer: Signer, request: pb.CreateVersionRequest) -> str:
    with pytest.raises(MeshError) as error:
        await signer.create(request)
    assert await signer.world.client.list_models() == []
    return error.value.reason.value


async def test_a_signed_version_gets_in_and_its_event_says_by_whose_key(world: World) -> None:
    await put(world, keyring())
    signer = Signer(world)
    request = await signer.request()
    request.signature = sign_statement(statement(request), ALICE)
    version = await signer.create(request)
    assert list(version.signatures) == [request.signature]
    event = (await world.client.events("m"))[0]
    assert (event.kind, event.subject, event.by) == ("version.created", "m:1", "push")
    assert event.key_ids == (ALICE.public.key_id,)
    assert event.peer.startswith("ipv4:127.0.0.1")


def _unsigned(request: pb.CreateVersionRequest) -> bytes:
    return b""


def _other_model(request: pb.CreateVersionRequest) -> bytes:
    return sign_statement(replace(statement(request), name="other"), ALICE)


def _part_swapped(request: pb.CreateVersionRequest) -> bytes:
    first, second = statement(request).subjects
    return sign_statement(replace(statement(request), subjects=(replace(first, sha256=second.sha256), second)), ALICE)


def _part_missing(request: pb.CreateVersionRequest) -> bytes:
    return sign_statement(replace(statement(request), subjects=statement(request).subjects[:1]), ALICE)


def _part_added(request: pb.CreateVersionRequest) -> bytes:
    more = (*statement(request).subjects, Subject("more.json", digest(b""), 0))
    return sign_statement(replace(statement(request), subjects=more), ALICE)


def _other_size(request: pb.CreateVersionRequest) -> bytes:
    first, second = statement(request).subjects
    return sign_statement(replace(statement(request), subjects=(replace(first, size_bytes=1), second)), ALICE)


def _without_facts(request: pb.CreateVersionRequest) -> bytes:
    return sign_statement(replace(statement(request), facts={}), ALICE)


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (_unsigned, "SIGNATURE_MISSING"),
        (lambda request: b"{}", "SIGNATURE_INVALID"),
        (lambda request: b"x" * 40_000, "FIELD_INVALID"),
        (_other_model, "SIGNATURE_INVALID"),
        (_part_swapped, "SIGNATURE_INVALID"),
        (_part_missing, "SIGNATURE_INVALID"),
        (_part_added, "SIGNATURE_INVALID"),
        (_other_size, "SIGNATURE_INVALID"),
        (_without_facts, "SIGNATURE_INVALID"),
        (lambda request: sign_statement(statement(request, created_by="somebody"), ALICE), "SIGNATURE_INVALID"),
        (lambda request: sign_statement(statement(request, parent="7"), ALICE), "SIGNATURE_INVALID"),
        (lambda request: sign_statement(statement(request, lineage_sha256="0" * 64), ALICE), "SIGNATURE_INVALID"),
        (lambda request: sign_statement(statement(request), SigningKey.generate()), "KEY_UNKNOWN"),
        (lambda request: sign_statement(statement(request), ROOT), "KEY_UNKNOWN"),
        (lambda request: sign_statement(statement(request), BOB), "KEY_UNKNOWN"),
    ],
    ids=[
        "unsigned", "no-envelope", "huge", "other-model", "swapped", "missing", "added", "size", "no-facts", "maker",
        "parent", "lineage", "stranger", "root", "other-line",
    ],
)  # fmt: skip
async def test_what_was_not_signed_exactly_so_is_refused_and_never_seen(
    world: World, forge: Callable[[pb.CreateVersionRequest], bytes], expected: str
) -> None:
    await put(world, keyring())
    signer = Signer(world)
    request = await signer.request()
    request.signature = forge(request)
    assert await refused(signer, request) == expected


async def test_without_a_keyring_no_key_is_known(world: World) -> None:
    signer = Signer(world)
    request = await signer.request()
    request.signature = sign_statement(statement(request), ALICE)
    assert await refused(signer, request) == "KEY_UNKNOWN"


async def test_a_revoked_and_a_retired_key_sign_nothing_any_more(world: World) -> None:
    await put(world, keyring())
    signer = Signer(world)
    request = await signer.request()
    request.signature = sign_statement(statement(request), ALICE)
    long_ago = NOW - timedelta(days=1)
    retired = without_key(ring(), "alice", long_ago, revoked=False)
    for newer in (retired, without_key(retired, "alice", long_ago, revoked=True, reason="stolen")):
        await put(world, sign_keyring(newer, [ROOT]))
        assert await refused(signer, request) == "KEY_REVOKED"


async def test_a_keyring_must_follow_the_newest_and_be_signed_by_the_root(world: World) -> None:
    assert await put(world, keyring()) == 1
    assert await put(world, keyring()) == 1, "the same one again is fine"
    stranger = SigningKey.generate()
    forged = sign_keyring(Keyring(2, (ROOT.public,), 1, ()), [stranger])
    taken_over = sign_keyring(Keyring(2, (stranger.public,), 1, ()), [stranger])
    for envelope, expected in (
        (keyring(3), "KEYRING_STALE"),
        (keyring(1, carol=TrustedKey(stranger.public, "carol")), "KEYRING_STALE"),
        (forged, "SIGNATURE_INVALID"),
        (taken_over, "SIGNATURE_INVALID"),
        (b"junk", "SIGNATURE_INVALID"),
        (b"", "FIELD_INVALID"),
        (b"x" * 2_000_000, "FIELD_INVALID"),
    ):
        with pytest.raises(MeshError) as error:
            await put(world, envelope)
        assert error.value.reason.value == expected
    assert await put(world, keyring(2)) == 2
    async with mesh_errors():
        kept = await world.stub.ListKeyrings(pb.ListKeyringsRequest(after_version=1))
    assert list(kept.keyrings) == [keyring(2)]
    assert [(one.kind, one.subject) for one in await world.client.events("keyring")] == [
        ("keyring.put", "keyring:2"),
        ("keyring.put", "keyring:1"),
    ]


async def test_watchers_hear_of_a_new_keyring(world: World) -> None:
    call = world.stub.WatchModel(pb.WatchModelRequest(model="m"))
    assert (await call.read()).keyring_version == 0
    await put(world, keyring())
    assert (await call.read()).keyring_version == 1
    call.cancel()


async def test_trust_outlives_a_restart_and_with_another_root_no_key_counts(tmp_path: Path) -> None:
    data, root = tmp_path / "data", root_file(tmp_path)
    async with running(data, trust_root=root) as world:
        await put(world, keyring())
    async with running(data, trust_root=root) as world:
        signer = Signer(world)
        request = await signer.request()
        request.signature = sign_statement(statement(request), ALICE)
        assert (await signer.create(request)).version == 1
        call = world.stub.WatchModel(pb.WatchModelRequest(model="m"))
        assert (await call.read()).keyring_version == 1
        call.cancel()
    root.write_bytes(BOB.public.to_pem())
    async with running(data, trust_root=root) as world:
        with pytest.raises(MeshError, match="of other roots") as error:
            await Signer(world).create(request)
        assert reason(error)[0] == "KEY_UNKNOWN"
        call = world.stub.WatchModel(pb.WatchModelRequest(model="m"))
        assert (await call.read()).keyring_version == 0
        call.cancel()
    root.write_bytes(b"no key")
    with pytest.raises(MeshError, match="trust root") as error:
        await Host("registry", settings_for(data, trust_root=root), build).start()
    assert error.value.reason.value == "NOT_READY"


async def test_a_second_signature_is_verified_kept_and_replaced_by_its_key(world: World) -> None:
    await put(world, keyring(bob=TrustedKey(BOB.public, "bob")))
    signer = Signer(world)
    request = await signer.request()
    request.signature = sign_statement(statement(request), ALICE)
    await signer.create(request)
    for signature, expected in (
        (sign_statement(statement(request), SigningKey.generate()), "KEY_UNKNOWN"),
        (sign_statement(replace(statement(request), name="other"), BOB), "SIGNATURE_INVALID"),
        (b"", "FIELD_INVALID"),
    ):
        with pytest.raises(MeshError) as error:
            await world.client.add_signature("m", 1, signature)
        assert error.value.reason.value == expected
    first = sign_statement(statement(request), BOB)
    second = sign_statement(statement(request, signed_at=(NOW + timedelta(seconds=1)).isoformat()), BOB)
    for signature in (first, second):
        await world.client.add_signature("m", 1, signature)
    assert set((await world.client.get_version("m", 1)).signatures) == {request.signature, second}
    event = (await world.client.events("m"))[0]
    assert (event.kind, event.key_ids) == ("version.signed", (BOB.public.key_id,))
    with pytest.raises(MeshError) as missing:
        await world.client.add_signature("m", 2, first)
    assert reason(missing)[0] == "VERSION_NOT_FOUND"


async def test_without_a_root_signatures_are_kept_as_they_come_but_must_be_some(tmp_path: Path) -> None:
    async with running(tmp_path) as world:
        signer = Signer(world)
        request = await signer.request()
        request.signature = sign_statement(statement(request, parent="99"), SigningKey.generate())
        version = await signer.create(request)
        assert list(version.signatures) == [request.signature]
        assert (await world.client.events("m"))[0].key_ids == ()
        request.signature = b"{}"
        with pytest.raises(MeshError) as error:
            await signer.create(request)
        assert error.value.reason.value == "SIGNATURE_INVALID"
        request.signature = b""
        assert (await signer.create(request)).version == 2
        stranger = SigningKey.generate()
        ring = sign_keyring(Keyring(1, (stranger.public,), 1, ()), [stranger])
        assert await put(world, ring) == 1
        with pytest.raises(MeshError) as error:
            await put(world, keyring(3))
        assert error.value.reason.value == "KEYRING_STALE"
