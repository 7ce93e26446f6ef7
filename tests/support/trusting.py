"""A registry that tells keyrings, a clock, and a trust over them, for tests of what a service does with trust."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from splitmesh.client.registry_values import ArtifactRef, VersionInfo
from splitmesh.client.trust import Trust, is_refusal
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage
from splitmesh.trust.keyring import Keyring, sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.ring_changes import with_key, without_key
from splitmesh.trust.statement import version_facts
from splitmesh.trust.trusted_key import TrustedKey
from tests.support.signing import NOON, PARTS, ring_of, signed, statement

ROOT, PRESS, LAB = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
ONE = ring_of(ROOT, TrustedKey(PRESS.public, "press"))
TWO = with_key(ONE, TrustedKey(LAB.public, "lab"))
THREE = without_key(TWO, "press", NOON, revoked=True, reason="stolen")


class Registry:
    """Tells keyrings, or nothing."""

    def __init__(self, *rings: Keyring) -> None:
        self.rings = list(rings)
        self.asked: list[int] = []
        self.error: MeshError | None = None
        self.told = asyncio.Event()
        self.cut = asyncio.Event()
        self.cut.set()

    async def keyrings(self, after: int = 0) -> Sequence[bytes]:
        self.asked.append(after)
        if after:
            self.told.set()
        await self.cut.wait()
        if self.error is not None:
            raise self.error
        return [sign_keyring(ring, [ROOT]) for ring in self.rings if ring.version > after]


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def trust(folder: Path, registry: Registry | None = None, **options: object) -> Trust:
    made = Trust([ROOT.public], folder, now=lambda: NOON, **options)  # type: ignore[arg-type]
    if registry is not None:
        made.attach(registry)
    return made


def version(key: SigningKey | None = PRESS, number: int = 1, lineage: Lineage | None = None) -> VersionInfo:
    refs = {part.name: ArtifactRef(part.name, part.sha256, part.size_bytes) for part in PARTS}
    lineage = lineage or Lineage()
    facts = version_facts("push", 0, lineage.sha256)
    signatures = () if key is None else (signed(key, statement(facts=facts)),)
    return VersionInfo("solder", number, 0, refs, "push", "", (), NOON, lineage, signatures)


async def refused(made: Trust, wanted: VersionInfo) -> Reason:
    with pytest.raises(MeshError) as caught:
        await made.verify(wanted)
    assert is_refusal(caught.value)
    return caught.value.reason
