"""A version and the signatures that came with it, as somebody else says they belong together: whether a keyring agrees."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keyring import Keyring
from splitmesh.trust.statement import Subject, Verified, verify_statement
from splitmesh.trust.trusted_key import Kind

WORST_FIRST = (Reason.KEY_REVOKED, Reason.SIGNATURE_INVALID, Reason.KEY_UNKNOWN, Reason.SIGNATURE_MISSING)
"""Why a version may not be used."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim:
    """A version of a model or a dataset, not verified."""

    kind: Kind
    name: str
    subjects: tuple[Subject, ...]
    """Its contents."""
    signatures: tuple[bytes, ...]
    """Envelopes."""
    facts: Mapping[str, str] = field(default_factory=dict)
    time: datetime | None = None
    """When it was made, as the registry says."""

    def verify(self, keyring: Keyring) -> Verified:
        """Who vouches for it; one good signature is enough.

        Raises:
            MeshError: SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED: the worst of what is wrong.
        """
        refusals = [
            MeshError(
                Reason.SIGNATURE_MISSING, f"this version of {self.name!r} is not signed, and only signed ones are used"
            )
        ]
        for envelope in self.signatures:
            try:
                return self.verify_one(envelope, keyring)
            except MeshError as error:
                refusals.append(error)
        raise min(refusals, key=lambda error: WORST_FIRST.index(error.reason))

    def verify_one(self, envelope: bytes, keyring: Keyring) -> Verified:
        """The same of one of its signatures."""
        return verify_statement(
            envelope,
            keyring,
            kind=self.kind,
            name=self.name,
            subjects=self.subjects,
            facts=self.facts,
            time=self.time,
        )


def refusals(keyring: Keyring, claims: Mapping[Key, Claim]) -> dict[Key, MeshError]:
    """Those that the keyring does not agree with, and why."""
    found: dict[Key, MeshError] = {}
    for key, claim in claims.items():
        try:
            claim.verify(keyring)
        except MeshError as error:
            found[key] = error
    return found
