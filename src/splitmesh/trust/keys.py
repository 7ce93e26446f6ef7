"""Ed25519 keys: made, read, written, used. Knows bytes only; what is signed is told by ``envelope``.

Files are PEM: PKCS #8 for a private key (RFC 8410), SubjectPublicKeyInfo for a public one, as OpenSSL reads and writes them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from splitmesh.errors import field_error

KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_PEM_BYTES = 64 * 1024
"""Longest PEM text that is read."""

_PUBLIC_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class PublicKey:
    """Verifies; ``raw`` are its 32 bytes (RFC 8032). FIELD_INVALID for bytes that are no key."""

    raw: bytes

    def __post_init__(self) -> None:
        """As long as a key is."""
        if len(self.raw) != KEY_BYTES:
            raise field_error("key", f"an Ed25519 key has {KEY_BYTES} bytes, not {len(self.raw)}")

    @cached_property
    def key_id(self) -> str:
        """SHA-256 of the raw bytes, 64 hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """The one key of a PEM file; FIELD_INVALID when it is anything else."""
        found = public_keys(pem)
        if len(found) != 1:
            raise field_error("key", f"{len(found)} public keys in one file, wanted one")
        return found[0]

    def to_pem(self) -> bytes:
        """PEM."""
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self._key.public_bytes(encoding, form)

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """The inverse of :meth:`to_text`; FIELD_INVALID."""
        try:
            return cls(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise field_error("key", "is not base64") from error

    def to_text(self) -> str:
        """Base64 of the raw bytes."""
        return base64.b64encode(self.raw).decode()

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether this key's owner signed the data."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)


class SigningKey:
    """Signs. Never printed: its ``repr`` shows the key id."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.public = PublicKey(raw)

    @classmethod
    def generate(cls) -> SigningKey:
        """A new one, from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """FIELD_INVALID when it is no unencrypted Ed25519 private key."""
        try:
            key = serialization.load_pem_private_key(_bounded(pem), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise field_error("key", "is no private key in PEM, or an encrypted one") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise field_error("key", "is no Ed25519 key")
        return cls(key)

    def to_pem(self) -> bytes:
        """PEM, not encrypted: whoever reads the file can sign."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, data: bytes) -> bytes:
        """64 bytes (RFC 8032)."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        """Without the secret."""
        return f"SigningKey({self.public.key_id[:16]})"


def public_keys(pem: bytes) -> tuple[PublicKey, ...]:
    """Every public key of a PEM file, in order, each once; FIELD_INVALID when there is none, or something else in it."""
    keys: dict[str, PublicKey] = {}
    for block in _PUBLIC_BLOCK.findall(_bounded(pem)):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise field_error("key", "is no public key in PEM") from error
        if not isinstance(key, Ed25519PublicKey):
            raise field_error("key", "is no Ed25519 key")
        public = PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))
        keys[public.key_id] = public
    if not keys:
        raise field_error("key", "there is no public key in PEM here")
    return tuple(keys.values())


def _bounded(pem: bytes) -> bytes:
    if len(pem) > MAX_PEM_BYTES:
        raise field_error("key", f"more than {MAX_PEM_BYTES} bytes are no key")
    return pem
