"""Keyrings that a program has followed, on its disk, so that it never goes back and needs no registry to start.

Knows files. What is in them is verified by whoever reads them, again each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from splitmesh.durable import write_file
from splitmesh.errors import MeshError, Reason
from splitmesh.trust.envelope import MAX_ENVELOPE_BYTES
from splitmesh.trust.keys import PublicKey

MAX_KEYRINGS = 10_000
"""Most that are read."""


EARLIER = "earlier"
"""Folder of those that lead to the first of these roots: they bring back a registry that lost them, and decide nothing here."""


class RingFolder:
    """Envelopes by version, of one set of roots; another set has another folder below ``folder``."""

    def __init__(self, folder: Path, roots: Sequence[PublicKey]) -> None:
        name = hashlib.sha256("".join(sorted(root.key_id for root in roots)).encode()).hexdigest()
        self._folder = folder / name[:32]

    def load(self) -> list[bytes]:
        """Oldest first, up to the first that cannot be read; not verified."""
        return _load(self._folder)

    def load_earlier(self) -> list[bytes]:
        """The same of those before the first of these roots."""
        return _load(self._folder / EARLIER)

    def keep(self, version: int, envelope: bytes) -> None:
        """Durable when it returns; STORAGE_FULL."""
        _keep(self._folder, version, envelope)

    def keep_earlier(self, version: int, envelope: bytes) -> None:
        """The same for one before the first of these roots."""
        _keep(self._folder / EARLIER, version, envelope)


def _load(folder: Path) -> list[bytes]:
    found: list[bytes] = []
    try:
        files = sorted(folder.glob("[0-9]*.json"))[:MAX_KEYRINGS]
        for file in files:
            with file.open("rb") as stream:
                found.append(stream.read(MAX_ENVELOPE_BYTES + 1))
    except OSError:
        # As if it had not been there: the registry has it too.
        return found
    return found


def _keep(folder: Path, version: int, envelope: bytes) -> None:
    try:
        write_file(folder / f"{version:08}.json", envelope)
    except OSError as error:
        raise MeshError(Reason.STORAGE_FULL, f"cannot keep keyring {version}: {error.strerror}") from error
