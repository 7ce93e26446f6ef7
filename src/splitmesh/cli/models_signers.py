"""Who signed a version, by the keyring that follows from SPLITMESH_TRUST_ROOT where that is set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from splitmesh.cli.connect import channels, mesh_settings
from splitmesh.client.registry import VersionInfo
from splitmesh.client.registry_calls import RegistryCalls
from splitmesh.errors import MeshError, Reason

if TYPE_CHECKING:
    from splitmesh.client.keyrings import KeyringSource
    from splitmesh.trust.keyring import Keyring

GOOD = "good"
UNVERIFIED = "not verified"


@dataclass(frozen=True, slots=True)
class Signer:
    """One signature of a version."""

    key_id: str
    name: str
    """Of the key in the keyring; empty: not known there."""
    signed_at: str
    """As the signer says."""
    verdict: str
    """:data:`GOOD`, :data:`UNVERIFIED` without a trust root, or the code of the reason why it counts for nothing."""
    problem: str = ""


async def known_keyring(registry: KeyringSource | None = None) -> Keyring | None:
    """The newest keyring: of the registry, of this mesh's where none is named; else the newest that this machine has seen.

    None where no trust root is set. Raises MeshError FIELD_INVALID (the root is no key) and KEY_UNKNOWN (no keyring
    anywhere). A registry that is away or has no right keyring is said on standard error where one is known.
    """
    settings = mesh_settings()
    if settings.trust_root is None:
        return None
    from splitmesh.client.trust import Trust

    trust = Trust.from_settings(settings)
    assert trust is not None
    try:
        if registry is not None:
            await trust.refresh(registry)
        else:
            async with channels() as opened:
                await trust.refresh(RegistryCalls(opened))
    except MeshError as error:
        if not trust.keyring_version:
            text = f"no keyring is known on this machine, and the registry tells none: {error.message}"
            raise MeshError(Reason.KEY_UNKNOWN, text) from error
        print(f"note: going on with keyring {trust.keyring_version}: {error.message}", file=sys.stderr)
    return trust.keyring


def signers(version: VersionInfo, keyring: Keyring | None) -> list[Signer]:
    """One for each signature, in the registry's order."""
    return [_signer(version, envelope, keyring) for envelope in version.signatures]


def worst(found: Sequence[Signer]) -> Signer | None:
    """Why nobody's signature counts, of the first; None when one is good."""
    if any(one.verdict == GOOD for one in found):
        return None
    missing = "this version is not signed, and only signed ones are used"
    return found[0] if found else Signer("", "", "", Reason.SIGNATURE_MISSING.value, missing)


def _signer(version: VersionInfo, content: bytes, keyring: Keyring | None) -> Signer:
    from splitmesh.trust.envelope import Envelope
    from splitmesh.trust.statement import SIGNED_AT, Statement

    try:
        envelope = Envelope.from_json(content)
        key_id = envelope.signatures[0].key_id if envelope.signatures else ""
        signed_at = Statement.from_payload(envelope.payload).facts.get(SIGNED_AT, "")
    except MeshError as error:
        return Signer("", "", "", error.reason.value, error.message)
    if keyring is None:
        return Signer(key_id, "", signed_at, UNVERIFIED)
    known = keyring.find(key_id)
    name = "" if known is None else known.name
    from splitmesh.client.trust import claim_of

    try:
        claim_of(version).verify_one(content, keyring)
    except MeshError as error:
        return Signer(key_id, name, signed_at, error.reason.value, error.message)
    return Signer(key_id, name, signed_at, GOOD)
