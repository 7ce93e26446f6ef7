"""Keys, keyrings and statements for tests of trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from splitmesh.trust.keyring import Keyring, sign_keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.statement import Statement, Subject, sign_statement
from splitmesh.trust.trusted_key import TrustedKey

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
MODEL = "solder"
HEAD = Subject("head.onnx", "a" * 64, 1000)
TAIL = Subject("tail.onnx", "b" * 64, 2000)
PARTS = (HEAD, TAIL)
FACTS = {"created_by": "push", "parent": "0", "lineage_sha256": "c" * 64, "signed_at": NOON.isoformat()}


def statement(
    name: str = MODEL, subjects: Sequence[Subject] = PARTS, facts: Mapping[str, str] | None = None
) -> Statement:
    """What is signed of a version; ``facts`` are others than usual."""
    return Statement("model-version", name, tuple(subjects), {**FACTS, **(facts or {})})


def signed(key: SigningKey, made: Statement | None = None) -> bytes:
    """An envelope of one key."""
    return sign_statement(made or statement(), key)


def ring_of(root: SigningKey, *keys: TrustedKey, version: int = 1) -> Keyring:
    """A keyring with one root."""
    return Keyring(version, (root.public,), 1, keys)


def chain(root: SigningKey, *rings: Keyring) -> list[bytes]:
    """Each signed by the root, and made from the one before."""
    made: list[Keyring] = []
    for ring in rings:
        made.append(replace(ring, previous=made[-1].sha256) if made else ring)
    return [sign_keyring(ring, [root]) for ring in made]
