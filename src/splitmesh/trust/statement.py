"""What a signature says: these contents are a version of this model, or of this dataset, made so.

The payload is an in-toto Statement v1 (https://github.com/in-toto/attestation, spec/v1/statement.md), so that other tools can
read it. It names a model and not a number, which is given by the registry only afterwards: a registry that lies can offer
another version of the same model that was signed as well, but nothing that was signed for another model, and no mixture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.envelope import MAX_PAYLOAD_BYTES, Envelope, invalid, sign
from splitmesh.trust.keyring import Keyring
from splitmesh.trust.keys import SigningKey
from splitmesh.trust.trusted_key import Kind, TrustedKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:splitmesh:{}:v1"

MAX_SUBJECTS = 4096
MAX_FACTS = 64

SIGNED_AT = "signed_at"
"""The fact that says when it was signed, ISO 8601 with a time zone, by the signer's clock."""
DATASET_SUBJECT = "manifest.json"
"""Name of the one subject of a dataset's version."""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """A content that is signed."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Statement:
    """What is signed. ``facts`` are ``created_by``, ``parent``, ``lineage_sha256``, ``signed_at``: see :func:`version_facts`."""

    kind: Kind
    name: str
    subjects: tuple[Subject, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_payload(self) -> bytes:
        """Canonical: the same bytes for the same statement, in whatever order the subjects are."""
        subjects = [
            {"name": one.name, "digest": {"sha256": one.sha256}, "annotations": {"size_bytes": one.size_bytes}}
            for one in sorted(self.subjects)
        ]
        written = {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE.format(self.kind),
            "predicate": {"name": self.name, "facts": dict(self.facts)},
        }
        return json.dumps(written, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_payload(cls, payload: bytes) -> Statement:
        """SIGNATURE_INVALID for anything that is no statement of ours."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise invalid("this statement is longer than any of ours")
        try:
            read = _StatementJson.model_validate_json(payload, strict=True)
        except ValidationError as error:
            raise invalid("what is signed is no statement about a version") from error
        subjects = tuple(Subject(one.name, one.digest.sha256, one.annotations.size_bytes) for one in read.subject)
        if len({one.name for one in subjects}) != len(subjects):
            raise invalid("the statement names a content twice")
        kind: Kind = "model-version" if "model" in read.predicateType else "dataset-version"
        return cls(kind, read.predicate.name, subjects, read.predicate.facts)


@dataclass(frozen=True, slots=True)
class Verified:
    """A statement that a trusted key signed."""

    key_id: str
    key_name: str
    statement: Statement


def version_facts(created_by: str, parent: int, lineage_sha256: str) -> dict[str, str]:
    """What a signature says beside the contents. The registry and every consumer compare it with what they are told."""
    return {"created_by": created_by, "parent": str(parent), "lineage_sha256": lineage_sha256}


def dataset_subject(sha256: str, size_bytes: int) -> Subject:
    """The manifest of a dataset's version."""
    return Subject(DATASET_SUBJECT, sha256, size_bytes)


def sign_statement(statement: Statement, key: SigningKey) -> bytes:
    """An envelope, JSON."""
    return sign(PAYLOAD_TYPE, statement.to_payload(), [key]).to_json()


def verify_statement(
    envelope: bytes,
    keyring: Keyring,
    *,
    kind: Kind,
    name: str,
    subjects: Iterable[Subject],
    facts: Mapping[str, str] | None = None,
    time: datetime | None = None,
) -> Verified:
    """Who says so, when a key of the keyring that may do so signed exactly this.

    Args:
        envelope: DSSE, JSON, as :func:`sign_statement` makes it.
        keyring: the keys that count.
        kind: of what the statement must be.
        name: of the model or dataset it must be about.
        subjects: every content of the version; not one more and not one less may be signed.
        facts: what else is known of the version; where the statement says something about it, it must say the same.
        time: when the version was made, by the registry's clock; with the time the signer states it decides whether a
            retired key still had its time. None: only the signer's counts.

    Raises:
        MeshError: SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED (also retired before it signed).
    """
    opened = Envelope.from_json(envelope)
    if opened.payload_type != PAYLOAD_TYPE:
        raise invalid(f"a signature over {opened.payload_type!r} says nothing about a version")
    key = _signer(opened, keyring)
    statement = Statement.from_payload(opened.payload)
    _compare(statement, kind, name, tuple(sorted(subjects)), facts or {})
    key.check_may_sign(kind, name, _times(statement, time))
    return Verified(key.key_id, key.name, statement)


def _signer(opened: Envelope, keyring: Keyring) -> TrustedKey:
    """The key that signed, a good one where there are several."""
    if not opened.signatures:
        raise MeshError(Reason.SIGNATURE_MISSING, "the envelope holds no signature")
    named = [key for one in opened.signatures if (key := keyring.find(one.key_id)) is not None]
    if not named:
        unknown = opened.signatures[0].key_id[:64]
        raise MeshError(
            Reason.KEY_UNKNOWN,
            f"signed by key {unknown[:16]!r}, which keyring {keyring.version} does not hold",
            metadata={"key_id": unknown, "keyring": str(keyring.version)},
        )
    good = [key for key in named if opened.signed_by(key.public)]
    if not good:
        raise invalid(f"the signature is not one of key {named[0].name!r}: the statement or the signature was changed")
    return min(good, key=lambda key: ("active", "retired", "revoked").index(key.state))


def _compare(
    statement: Statement, kind: Kind, name: str, wanted: tuple[Subject, ...], facts: Mapping[str, str]
) -> None:
    if statement.kind != kind or statement.name != name:
        raise invalid(f"the signature is for {statement.kind} {statement.name[:64]!r}, not for {kind} {name!r}")
    signed = {one.name: one for one in statement.subjects}
    found = {one.name: one for one in wanted}
    if len(found) != len(wanted):
        raise invalid("a content of the version is named twice")
    differing = sorted(one for one in signed.keys() | found.keys() if signed.get(one) != found.get(one))
    if differing:
        how = [_difference(one, signed, found) for one in differing[:5]]
        raise invalid(f"the signature of {name!r} is for other contents: {', '.join(how)}")
    for fact, value in facts.items():
        if statement.facts.get(fact, value) != value:
            raise invalid(f"the signature of {name!r} is for another {fact}")


def _difference(name: str, signed: Mapping[str, Subject], found: Mapping[str, Subject]) -> str:
    if name not in signed:
        return f"{name[:64]} was added"
    return f"{name[:64]} is missing" if name not in found else f"{name[:64]} differs"


def _times(statement: Statement, time: datetime | None) -> list[datetime]:
    times = [time] if time is not None else []
    if SIGNED_AT in statement.facts:
        try:
            signed_at = datetime.fromisoformat(statement.facts[SIGNED_AT])
        except ValueError as error:
            raise invalid("the statement does not say when it was signed in a way that can be read") from error
        if signed_at.tzinfo is None:
            raise invalid("the statement says when it was signed without a time zone")
        times.append(signed_at)
    return times


Fact = Annotated[str, Field(max_length=1024)]


class _Digest(BaseModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Annotations(BaseModel):
    size_bytes: int = Field(ge=0)


class _SubjectJson(BaseModel):
    name: str = Field(min_length=1, max_length=256)
    digest: _Digest
    annotations: _Annotations


class _Predicate(BaseModel):
    name: str = Field(min_length=1, max_length=256)
    facts: dict[Fact, Fact] = Field(max_length=MAX_FACTS)


class _StatementJson(BaseModel):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: list[_SubjectJson] = Field(min_length=1, max_length=MAX_SUBJECTS)
    predicateType: Literal["urn:splitmesh:model-version:v1", "urn:splitmesh:dataset-version:v1"]  # noqa: N815
    predicate: _Predicate
