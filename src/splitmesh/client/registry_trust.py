"""Whether a version's bytes may be used here: asked of the trust once per version and keyring, then remembered.

Knows no keys and no signatures: those are the trust's (``splitmesh.client.trust``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from splitmesh.client.registry_values import ArtifactRef, VersionInfo
from splitmesh.errors import MeshError, Reason

MAX_REMEMBERED = 1000
"""Verified versions remembered; some kilobytes each."""
MAX_PUSHED = 10_000
"""Digests remembered of contents that were pushed from here; some hundred bytes each."""

_MAY_BE_SIGNED_SINCE = frozenset(
    {Reason.SIGNATURE_MISSING, Reason.SIGNATURE_INVALID, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED}
)

Withdrawn = Callable[[str, int], Reason | None]
"""Why a version (model, number) that is in use here would not be loaded again."""


class TrustPort(Protocol):
    """Who decides which versions may be used here, and signs those that are made here."""

    @property
    def keyring_version(self) -> int:
        """Of the keyring that :meth:`verify` goes by; 0: none yet. What was verified by another one is verified again."""

    async def verify(self, version: VersionInfo) -> None:
        """MeshError SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED unless its bytes may be used."""

    def withdrawn(self, model: str, version: int) -> Reason | None:
        """Why a version that was verified here would be refused now; None: it would not, or never was verified here."""

    async def check_signer(self, name: str) -> None:
        """MeshError KEY_UNKNOWN, KEY_REVOKED where what :meth:`sign` makes for the model is known to count for nothing."""

    def sign(self, name: str, refs: Sequence[ArtifactRef], facts: Mapping[str, str]) -> bytes | None:
        """A DSSE envelope over the statement of a new version of the model ``name``; None where nothing signs here."""

    def heard(self, keyring_version: int) -> None:
        """The registry's newest keyring has this version: an older one here is out of date."""


class Verified:
    """Verifies versions through a trust.

    Args:
        trust: None: every version may be used.
        fresh: reads a version from the registry again, with the signatures that it has now.
    """

    def __init__(self, trust: TrustPort | None, fresh: Callable[[str, int], Awaitable[VersionInfo]]) -> None:
        self._trust = trust
        self._fresh = fresh
        self._known: OrderedDict[tuple[int, Hashable], frozenset[str]] = OrderedDict()
        self._pushed: OrderedDict[str, None] = OrderedDict()

    async def require(self, version: VersionInfo) -> VersionInfo:
        """The version, with newer signatures where it was signed since it was read; raises what the trust raises."""
        trust = self._trust
        if trust is None:
            return version
        signed = _signed(version)
        while (key := (trust.keyring_version, signed)) not in self._known:
            # Again under a keyring that came meanwhile: it may judge otherwise.
            version = await self._verified(trust, version)
            self._known[key] = frozenset(ref.sha256 for ref in version.artifacts.values())
        self._known.move_to_end(key)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return version

    def pushed(self, ref: ArtifactRef) -> None:
        """This client hashed the content itself, so it may sign it later by its digest."""
        self._pushed[ref.sha256] = None
        self._pushed.move_to_end(ref.sha256)
        while len(self._pushed) > MAX_PUSHED:
            self._pushed.popitem(last=False)

    def require_content(self, ref: ArtifactRef) -> None:
        """MeshError SIGNATURE_MISSING for a content that was not pushed from here and is of no version that was verified here.

        Nobody signs what he has not seen.
        """
        if self._trust is None or ref.sha256 in self._pushed:
            return
        if not any(ref.sha256 in contents for contents in self._known.values()):
            text = f"{ref.name} was not pushed from here, and is of no version that was verified here"
            raise MeshError(Reason.SIGNATURE_MISSING, text)

    async def _verified(self, trust: TrustPort, version: VersionInfo) -> VersionInfo:
        try:
            await trust.verify(version)
        except MeshError as refusal:
            if refusal.reason not in _MAY_BE_SIGNED_SINCE:
                raise
            version = await self._read_again(version, refusal)
            await trust.verify(version)
        return version

    async def _read_again(self, version: VersionInfo, refusal: MeshError) -> VersionInfo:
        try:
            fresh = await self._fresh(version.model, version.version)
        except MeshError:
            raise refusal from None
        if set(fresh.signatures) <= set(version.signatures) or _signed(fresh) != _signed(version):
            raise refusal
        return replace(version, signatures=fresh.signatures)


def _signed(version: VersionInfo) -> Hashable:
    """All that a statement says of a version, so that none of it can be changed under what was verified."""
    refs = frozenset((name, ref.name, ref.sha256, ref.size_bytes) for name, ref in version.artifacts.items())
    return (
        version.model,
        version.version,
        version.parent,
        version.created_by,
        version.create_time,
        version.lineage.sha256,
        refs,
    )
