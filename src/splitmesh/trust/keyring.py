"""The keys that may sign versions, itself signed by root keys; a chain of keyrings, each made from the one before.

After The Update Framework (https://theupdateframework.github.io/specification/latest/, 5.3 "Update the root role"): a keyring
counts when a threshold of the roots of the one before signed it, so whoever knows one can follow to the newest and never
goes back. Each names the one before it by digest: there is one chain, and nobody who has seen more follows a registry that was
set back and went on from there. A key that was revoked stays so. Where the roots or the threshold change, every one of the new
roots must sign too, and so must every root sign the first: whoever pins the roots needs to pin no threshold. Unlike there, a
keyring does not expire: a line that was cut off for a weekend has to start on Monday with what it knows. Knows no file and no
network; ``ring_changes`` makes the next one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.trust.envelope import Envelope, invalid, sign
from splitmesh.trust.keys import PublicKey, SigningKey
from splitmesh.trust.trusted_key import KeyForm, TrustedKey

PAYLOAD_TYPE = "application/vnd.splitmesh.keyring.v1+json"
MAX_ROOTS = 16
MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Keyring:
    """One version of the keyring. FIELD_INVALID when it does not hold together."""

    version: int
    """Counts from 1."""
    roots: tuple[PublicKey, ...]
    threshold: int
    """How many of the roots must sign the next one."""
    keys: tuple[TrustedKey, ...] = ()
    previous: str = ""
    """SHA-256 of the payload of the one before; the first has none."""
    sha256: str = field(init=False, repr=False, compare=False)
    """Of this one's payload, as it was signed."""

    def __post_init__(self) -> None:
        """What any keyring must be."""
        _check(self)
        object.__setattr__(self, "sha256", hashlib.sha256(self.to_payload()).hexdigest())

    def find(self, key_id: str) -> TrustedKey | None:
        """The key with this id."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    def next(self, envelope: bytes) -> Keyring:
        """The keyring in the envelope, when it follows this one.

        Raises:
            MeshError: KEYRING_STALE, it is not the next version, or follows another one; SIGNATURE_INVALID, too few of the
                right roots signed; KEY_REVOKED, it lets a revoked key come back.
        """
        opened, ring = _open(envelope)
        if ring.version != self.version + 1:
            raise MeshError(
                Reason.KEYRING_STALE,
                f"keyring {ring.version} does not follow keyring {self.version}",
                metadata={"version": str(ring.version), "newest": str(self.version)},
            )
        signed = sum(opened.signed_by(root) for root in self.roots)
        if signed < self.threshold:
            raise invalid(f"keyring {ring.version} is signed by {signed} of the {self.threshold} roots it needs")
        if ring.previous != self.sha256:
            raise MeshError(
                Reason.KEYRING_STALE,
                f"keyring {ring.version} was made from another keyring {self.version} than the one that is known here: "
                "somebody set the registry back and went on from there",
                metadata={"version": str(ring.version), "newest": str(self.version)},
            )
        _require_still_revoked(self, ring)
        if set(ring.roots) != set(self.roots) or ring.threshold != self.threshold:
            _require_all(ring, opened)
        return ring

    @classmethod
    def follow(cls, roots: Sequence[PublicKey], envelopes: Sequence[bytes]) -> Keyring:
        """The newest of a chain of keyrings, from the first one whose roots are exactly the pinned ones and all signed it.

        Those before it belong to roots that were replaced since; they are not needed.

        Raises:
            MeshError: KEY_UNKNOWN, there is none yet; SIGNATURE_INVALID, none begins with these roots, or one is not signed
                as it must be; KEYRING_STALE, a version is missing in between, comes twice or follows another one;
                KEY_REVOKED, a revoked key comes back.
        """
        if not envelopes:
            raise MeshError(
                Reason.KEY_UNKNOWN, "there is no keyring yet; an operator makes it with splitmesh keys init"
            )
        newest: Keyring | None = None
        for envelope in envelopes:
            newest = cls.anchor(roots, envelope) if newest is None else newest.next(envelope)
        if newest is None:
            raise not_anchored(roots)
        return newest

    @classmethod
    def anchor(cls, roots: Sequence[PublicKey], envelope: bytes) -> Keyring | None:
        """The keyring in the envelope, when its roots are exactly these and all of them signed it; else None.

        SIGNATURE_INVALID for what is no keyring at all.
        """
        opened, ring = _open(envelope)
        if set(ring.roots) != set(roots) or not all(opened.signed_by(root) for root in roots):
            return None
        return ring

    def to_payload(self) -> bytes:
        """Canonical: the same bytes for the same keyring."""
        written = {
            "version": self.version,
            "previous": self.previous,
            "roots": [root.to_text() for root in self.roots],
            "threshold": self.threshold,
            "keys": [key.to_fields() for key in self.keys],
        }
        return json.dumps(written, sort_keys=True, separators=(",", ":")).encode()


def sign_keyring(ring: Keyring, roots: Sequence[SigningKey]) -> bytes:
    """An envelope, JSON."""
    return sign(PAYLOAD_TYPE, ring.to_payload(), roots).to_json()


def version_of(envelope: bytes) -> int:
    """The version that an envelope says to hold; not verified. SIGNATURE_INVALID when it holds no keyring."""
    return _open(envelope)[1].version


def leading_to(envelope: bytes, earlier: Sequence[bytes]) -> list[bytes]:
    """The last of ``earlier``, oldest first, that this keyring follows from, each from the one before, as far back as they do.

    A keyring names the one before by its digest, so whoever counts on this one needs no root to know those.
    """
    found = [envelope]
    for before in reversed(earlier):
        try:
            _open(before)[1].next(found[-1])
        except MeshError:
            break
        found.append(before)
    return found[:0:-1]


def roots_of(envelope: bytes) -> tuple[PublicKey, ...]:
    """The roots that an envelope says to hold; not verified. SIGNATURE_INVALID when it holds no keyring."""
    return _open(envelope)[1].roots


def not_anchored(roots: Sequence[PublicKey]) -> MeshError:
    """There are keyrings, but of other roots."""
    pinned = ", ".join(root.key_id[:16] for root in roots)
    return invalid(f"no keyring begins with the pinned roots ({pinned}) and all of their signatures")


def _require_still_revoked(before: Keyring, ring: Keyring) -> None:
    revoked = {key.key_id for key in ring.keys if key.state == "revoked"}
    for key in before.keys:
        if key.state == "revoked" and key.key_id not in revoked:
            raise MeshError(
                Reason.KEY_REVOKED,
                f"keyring {ring.version} lets key {key.name!r} come back, which was revoked",
                metadata={"key_id": key.key_id, "key": key.name},
            )


def _require_all(ring: Keyring, opened: Envelope) -> None:
    missing = [root.key_id[:16] for root in ring.roots if not opened.signed_by(root)]
    if missing:
        raise invalid(
            f"keyring {ring.version} has other roots than the one before; {', '.join(missing)} did not sign it"
        )


def _open(envelope: bytes) -> tuple[Envelope, Keyring]:
    opened = Envelope.from_json(envelope)
    if opened.payload_type != PAYLOAD_TYPE:
        raise invalid("what is signed is no keyring")
    try:
        read = _KeyringForm.model_validate_json(opened.payload)
        ring = Keyring(
            read.version,
            tuple(PublicKey.from_text(text) for text in read.roots),
            read.threshold,
            tuple(one.trusted() for one in read.keys),
            read.previous,
        )
    except ValidationError as error:
        raise invalid("what is signed is no keyring") from error
    except MeshError as error:
        raise invalid(f"this keyring does not hold together: {error.message}") from error
    # Not of what is written now: a program that knows more fields, or fewer, has to find the same.
    object.__setattr__(ring, "sha256", hashlib.sha256(opened.payload).hexdigest())
    return opened, ring


def _check(ring: Keyring) -> None:
    if ring.version < 1:
        raise field_error("version", "counts from 1")
    if not 1 <= len(ring.roots) <= MAX_ROOTS or len(set(ring.roots)) != len(ring.roots):
        raise field_error("roots", f"from 1 to {MAX_ROOTS}, each once")
    if not 1 <= ring.threshold <= len(ring.roots):
        raise field_error("threshold", f"from 1 to the number of roots, {len(ring.roots)}")
    ids = {key.key_id for key in ring.keys}
    if len(ring.keys) > MAX_KEYS or len(ids) != len(ring.keys):
        raise field_error("keys", f"at most {MAX_KEYS}, each once")
    if any(root.key_id in ids for root in ring.roots):
        raise field_error("keys", "a root signs keyrings, never versions")
    active = [key.name for key in ring.keys if key.state == "active"]
    if len(set(active)) != len(active):
        raise field_error("keys", "two active keys have the same name")
    for key in ring.keys:
        key.check()


class _KeyringForm(BaseModel):
    version: int
    previous: str = Field(default="", max_length=64)
    roots: list[Annotated[str, Field(max_length=64)]] = Field(max_length=MAX_ROOTS)
    threshold: int
    keys: list[KeyForm] = Field(max_length=MAX_KEYS)
