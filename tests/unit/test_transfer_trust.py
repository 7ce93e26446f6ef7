"""Verifying a version once per keyring: never skipped, never believed under another keyring, cheap afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from splitmesh.client.registry import ArtifactRef, VersionInfo
from splitmesh.client.registry_trust import MAX_PUSHED, MAX_REMEMBERED, Verified
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage

VERSION = VersionInfo(
    model="solder",
    version=3,
    parent=2,
    artifacts={"head.onnx": ArtifactRef("head.onnx", "a" * 64, 10)},
    created_by="push",
    description="",
    aliases=(),
    create_time=datetime(2026, 11, 1, tzinfo=UTC),
    signatures=(b"good",),
)


class _Trust:
    """Takes versions with a signature ``good``, unless its key was revoked."""

    def __init__(self) -> None:
        self.keyring_version = 1
        self.asked = 0
        self.revoked_at: int | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    async def verify(self, version: VersionInfo) -> None:
        self.asked += 1
        keyring_version = self.keyring_version
        await asyncio.sleep(0)
        self.meanwhile()
        if self.revoked_at is not None and keyring_version >= self.revoked_at:
            raise MeshError(Reason.KEY_REVOKED, "stolen")
        if b"good" not in version.signatures:
            raise MeshError(Reason.SIGNATURE_MISSING, "unsigned")

    def withdrawn(self, *_: Any) -> None: ...

    async def check_signer(self, *_: Any) -> None: ...

    def sign(self, *_: Any) -> bytes | None:
        return None

    def heard(self, keyring_version: int) -> None:
        self.keyring_version = max(self.keyring_version, keyring_version)


class _Registry:
    """Has one version; may be away."""

    def __init__(self) -> None:
        self.version: VersionInfo | None = VERSION
        self.asked = 0

    async def get_version(self, model: str, version: int) -> VersionInfo:
        self.asked += 1
        if self.version is None:
            raise MeshError(Reason.SERVICE_UNAVAILABLE, "the cable is cut")
        return self.version


@pytest.fixture
def trust() -> _Trust:
    return _Trust()


@pytest.fixture
def registry() -> _Registry:
    return _Registry()


@pytest.fixture
def verified(trust: _Trust, registry: _Registry) -> Verified:
    return Verified(trust, registry.get_version)


async def _refusal(verified: Verified, version: VersionInfo) -> Reason:
    with pytest.raises(MeshError) as caught:
        await verified.require(version)
    return caught.value.reason


async def test_without_a_trust_everything_may_be_used(registry: _Registry) -> None:
    unsigned = replace(VERSION, signatures=())
    assert await Verified(None, registry.get_version).require(unsigned) is unsigned
    assert registry.asked == 0


async def test_a_good_version_is_asked_about_once(verified: Verified, trust: _Trust, registry: _Registry) -> None:
    for _ in range(3):
        assert await verified.require(VERSION) is VERSION
    assert (trust.asked, registry.asked) == (1, 0)


async def test_a_new_keyring_is_asked_again_and_may_refuse(verified: Verified, trust: _Trust) -> None:
    await verified.require(VERSION)
    trust.keyring_version, trust.revoked_at = 2, 2
    assert await _refusal(verified, VERSION) is Reason.KEY_REVOKED


async def test_a_keyring_that_comes_while_a_version_is_verified_is_asked_too(verified: Verified, trust: _Trust) -> None:
    trust.revoked_at = 2
    trust.meanwhile = lambda: trust.heard(2)
    assert await _refusal(verified, VERSION) is Reason.KEY_REVOKED
    assert trust.asked == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"version": 4},
        {"parent": 1},
        {"created_by": "somebody"},
        {"create_time": datetime(2020, 1, 1, tzinfo=UTC)},
        {"lineage": Lineage(task="another")},
        {"artifacts": {}},
        {"artifacts": {"head.onnx": ArtifactRef("head.onnx", "b" * 64, 10)}},
        {"artifacts": {"head.onnx": ArtifactRef("head.onnx", "a" * 64, 11)}},
        {"artifacts": {"tail.onnx": ArtifactRef("head.onnx", "a" * 64, 10)}},
        {"artifacts": {**VERSION.artifacts, "tail.onnx": ArtifactRef("tail.onnx", "c" * 64, 1)}},
    ],
)
async def test_what_was_verified_vouches_for_nothing_else(
    verified: Verified, trust: _Trust, change: dict[str, Any]
) -> None:
    await verified.require(VERSION)
    assert await _refusal(verified, replace(VERSION, signatures=(), **change)) is Reason.SIGNATURE_MISSING
    assert trust.asked == 2


async def test_a_version_signed_after_it_was_read_is_read_again(
    verified: Verified, trust: _Trust, registry: _Registry
) -> None:
    unsigned = replace(VERSION, signatures=(), aliases=("production",))
    assert await verified.require(unsigned) == replace(VERSION, aliases=("production",))
    assert await verified.require(unsigned) is unsigned
    assert (trust.asked, registry.asked) == (2, 1)


@pytest.mark.parametrize("fresh", [None, replace(VERSION, signatures=()), replace(VERSION, created_by="another")])
async def test_a_registry_that_is_away_or_lies_or_has_no_more_changes_no_refusal(
    verified: Verified, trust: _Trust, registry: _Registry, fresh: VersionInfo | None
) -> None:
    registry.version = fresh
    assert await _refusal(verified, replace(VERSION, signatures=())) is Reason.SIGNATURE_MISSING
    assert trust.asked == 1


async def test_a_trust_that_fails_otherwise_is_no_yes(verified: Verified, trust: _Trust, registry: _Registry) -> None:
    def fail() -> None:
        raise MeshError(Reason.STORAGE_FULL, "no room for the keyring")

    trust.meanwhile = fail
    assert await _refusal(verified, VERSION) is Reason.STORAGE_FULL
    trust.meanwhile = lambda: None
    await verified.require(VERSION)
    assert (trust.asked, registry.asked) == (2, 0)


async def test_no_more_is_remembered_than_was_promised(verified: Verified, trust: _Trust) -> None:
    for number in range(MAX_REMEMBERED + 5):
        await verified.require(replace(VERSION, version=number))
    assert len(verified._known) == MAX_REMEMBERED
    await verified.require(replace(VERSION, version=MAX_REMEMBERED + 4))
    assert trust.asked == MAX_REMEMBERED + 5
    await verified.require(replace(VERSION, version=0))
    assert trust.asked == MAX_REMEMBERED + 6


def _signs(verified: Verified, ref: ArtifactRef) -> bool:
    try:
        verified.require_content(ref)
    except MeshError:
        return False
    return True


async def test_a_content_is_signed_by_its_digest_only_when_it_was_verified_or_pushed_here(verified: Verified) -> None:
    head, tail = VERSION.artifact("head.onnx"), ArtifactRef("tail.onnx", "b" * 64, 10)
    assert not _signs(verified, head)
    await verified.require(VERSION)
    assert (_signs(verified, head), _signs(verified, tail)) == (True, False)
    verified.pushed(tail)
    assert _signs(verified, tail)
    for number in range(MAX_PUSHED):
        verified.pushed(ArtifactRef("x", f"{number:064}", 1))
    assert not _signs(verified, tail)
    assert len(verified._pushed) == MAX_PUSHED
