"""SHA-256 of bytes and of files. Blocking: for disk threads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from services.registry.content.upload_file import digest_mismatch


def sha256_of(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The same of a file, which may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_digests(contents: Sequence[tuple[str, bytes]]) -> None:
    """DIGEST_MISMATCH for the first that is not what it is said to be."""
    for sha256, data in contents:
        if (found := sha256_of(data)) != sha256:
            raise digest_mismatch(sha256, found)
