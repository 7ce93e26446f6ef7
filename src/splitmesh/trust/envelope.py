"""Signed payloads: DSSE envelopes, written as JSON and read with every bound checked.

Source: https://github.com/secure-systems-lab/dsse, protocol.md and envelope.md, version 1. A key id in an envelope is only a
hint: which key counts is the reader's decision (``statement``, ``keyring``).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, Field, ValidationError

from splitmesh.errors import MeshError, Reason
from splitmesh.trust.keys import SIGNATURE_BYTES, PublicKey, SigningKey

MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_ENVELOPE_BYTES = 2 * MAX_PAYLOAD_BYTES
MAX_SIGNATURES = 32


@dataclass(frozen=True, slots=True)
class EnvelopeSignature:
    """One signature and the key that is said to have made it."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and its signatures, not verified."""

    payload_type: str
    payload: bytes
    signatures: tuple[EnvelopeSignature, ...]

    def to_json(self) -> bytes:
        """Canonical: the same bytes for the same envelope."""
        signatures = [_SignatureJson(keyid=one.key_id, sig=_to_text(one.signature)) for one in self.signatures]
        written = _EnvelopeJson(payload=_to_text(self.payload), payloadType=self.payload_type, signatures=signatures)
        return written.model_dump_json().encode()

    @classmethod
    def from_json(cls, content: bytes) -> Envelope:
        """SIGNATURE_INVALID for anything that is no envelope, or too long."""
        if len(content) > MAX_ENVELOPE_BYTES:
            raise invalid(f"an envelope has at most {MAX_ENVELOPE_BYTES} bytes, not {len(content)}")
        try:
            read = _EnvelopeJson.model_validate_json(content, strict=True)
            signatures = [EnvelopeSignature(one.keyid, _from_text(one.sig)) for one in read.signatures]
            payload = _from_text(read.payload)
        except (ValidationError, binascii.Error, ValueError) as error:
            raise invalid("this is no signature envelope (DSSE)") from error
        if len(payload) > MAX_PAYLOAD_BYTES or any(len(one.signature) != SIGNATURE_BYTES for one in signatures):
            raise invalid("a payload or a signature in this envelope has a length that none of ours has")
        return cls(read.payloadType, payload, tuple(signatures))

    def signed_by(self, key: PublicKey) -> bool:
        """Whether one of the signatures is the key's, whatever key id it has."""
        signed = encode(self.payload_type, self.payload)
        return any(key.verify(one.signature, signed) for one in self.signatures)


def encode(payload_type: str, payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding (PAE) of DSSE, which no other type and payload have."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, keys: Iterable[SigningKey]) -> Envelope:
    """The payload, signed by each key."""
    data = encode(payload_type, payload)
    return Envelope(payload_type, payload, tuple(EnvelopeSignature(key.public.key_id, key.sign(data)) for key in keys))


def invalid(message: str) -> MeshError:
    """What is signed is not what it seems."""
    return MeshError(Reason.SIGNATURE_INVALID, message)


class _SignatureJson(BaseModel):
    keyid: str = Field(default="", max_length=256)
    sig: str = Field(max_length=256)


class _EnvelopeJson(BaseModel):
    """As the specification says, fields that we do not know are ignored."""

    payload: str
    payloadType: str = Field(max_length=256)  # noqa: N815
    signatures: list[_SignatureJson] = Field(max_length=MAX_SIGNATURES)


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_text(text: str) -> bytes:
    # The specification allows the standard and the URL-safe alphabet.
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
