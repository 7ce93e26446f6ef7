"""The next keyring: a key added, retired or revoked, other roots. Pure: what it makes is signed and pushed by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.trust.keyring import Keyring
from splitmesh.trust.keys import PublicKey
from splitmesh.trust.trusted_key import TrustedKey

MIN_ID_DIGITS = 8
"""Fewest digits of a key id that stand for it."""


def first_keyring(roots: Sequence[PublicKey], threshold: int, keys: Sequence[TrustedKey] = ()) -> Keyring:
    """Version 1; every root must sign it. FIELD_INVALID."""
    return Keyring(1, tuple(roots), threshold, tuple(keys))


def with_key(ring: Keyring, key: TrustedKey) -> Keyring:
    """Another key trusted, or another part of the work for one that is active. FIELD_INVALID; KEY_REVOKED, it was revoked."""
    known = ring.find(key.key_id)
    if known is not None and known.state == "revoked":
        raise MeshError(
            Reason.KEY_REVOKED,
            f"key {known.name!r} was revoked and never comes back; make a new one",
            metadata=_about(known),
        )
    keys = tuple(one for one in ring.keys if one is not known)
    return _next(ring, keys=(*keys, key))


def without_key(ring: Keyring, wanted: str, until: datetime, *, revoked: bool, reason: str = "") -> Keyring:
    """A key retired (what it signed so far stays good) or ``revoked`` (nothing does).

    ``wanted`` is as :func:`pick` takes it. KEY_UNKNOWN; FIELD_INVALID, it is retired or revoked already.
    """
    known = pick(ring, wanted)
    if known.state == "revoked" or (known.state == "retired" and not revoked):
        raise field_error("key", f"{known.name!r} is {known.state} already")
    ended = replace(known, state="revoked" if revoked else "retired", until=until, reason=reason)
    return _next(ring, keys=tuple(ended if one is known else one for one in ring.keys))


def with_roots(ring: Keyring, roots: Sequence[PublicKey], threshold: int) -> Keyring:
    """Other roots; a threshold of the old and every new one must sign it. FIELD_INVALID."""
    return _next(ring, roots=tuple(roots), threshold=threshold)


def pick(ring: Keyring, wanted: str) -> TrustedKey:
    """A key by the name of an active one, by its id or its first digits, or by a name that only one ever had.

    Raises:
        MeshError: KEY_UNKNOWN, there is none; FIELD_INVALID, several.
    """
    named = [key for key in ring.keys if key.name == wanted]
    active = [key for key in named if key.state == "active"]
    digits = [key for key in ring.keys if len(wanted) >= MIN_ID_DIGITS and key.key_id.startswith(wanted)]
    found = active or named or digits
    if not found:
        raise MeshError(Reason.KEY_UNKNOWN, f"keyring {ring.version} has no key {wanted!r}")
    if len(found) > 1:
        raise field_error("key", f"{wanted!r} stands for several: {', '.join(key.key_id[:16] for key in found)}")
    return found[0]


def _next(ring: Keyring, **changes: Any) -> Keyring:
    return replace(ring, version=ring.version + 1, previous=ring.sha256, **changes)


def _about(key: TrustedKey) -> dict[str, str]:
    return {"key_id": key.key_id, "key": key.name}
