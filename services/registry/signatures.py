"""Which signatures the registry takes, of versions and of datasets.

With a trust root nothing unsigned gets in; without one signatures are kept as they come and consumers judge them. Knows
what must be signed; how, ``splitmesh.trust`` knows, and whose keys count, ``keyrings``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.registry.keyrings import Keyrings
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor, Artifact, Draft, Signature, Version
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.trust.envelope import Envelope
from splitmesh.trust.statement import Subject, dataset_subject, verify_statement, version_facts
from splitmesh.trust.trusted_key import Kind

MAX_SIGNATURE_BYTES = 32 * 1024
"""Of one envelope; over 64 artefacts with the longest names it takes about 25 KiB."""


@dataclass(frozen=True, slots=True)
class Signed:
    """What is known about a signature that was taken."""

    signature: Signature | None = None
    """None: there is none, and none is needed."""
    key_ids: tuple[str, ...] = ()
    """Verified; empty where nothing is verified."""


class Signatures:
    """The trust of one registry.

    Args:
        store: keeps the keyrings.
        trust_root: file with the root's public keys; None: signatures are kept unverified.
        told: called with the version of the newest keyring, 0: none, at start and whenever it is another.
        now: the wall clock.
    """

    def __init__(
        self,
        store: MetadataStore,
        trust_root: Path | None,
        told: Callable[[int], None] = lambda version: None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keyrings = Keyrings(store, trust_root, told, now)
        self._now = now

    async def start(self) -> None:
        """Reads the root and walks the keyrings; NOT_READY when the root cannot be read or the chain is broken."""
        await self._keyrings.start()

    async def stop(self) -> None:
        """Waits for what was accepted."""
        await self._keyrings.stop()

    async def check_version(self, draft: Draft, envelope: bytes) -> Signed:
        """Whether a version may be made as it is said to be.

        Raises:
            MeshError: SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED; FIELD_INVALID (too large).
        """
        facts = version_facts(draft.created_by, draft.parent, draft.lineage.sha256)
        subjects = [Subject(one.name, one.sha256, one.size_bytes) for one in draft.artifacts]
        return await self._check("model-version", draft.model, subjects, facts, envelope)

    async def check_added(self, version: Version, envelope: bytes) -> Signed:
        """Whether a signature is one of this version; errors as of :meth:`check_version`."""
        if not envelope:
            raise field_error("signature", "there is none")
        facts = version_facts(version.created_by, version.parent, version.lineage.sha256)
        subjects = [Subject(one.name, one.sha256, one.size_bytes) for one in version.artifacts]
        return await self._check("model-version", version.model, subjects, facts, envelope)

    async def check_dataset(
        self, name: str, manifest: Artifact, envelope: bytes, facts: Mapping[str, str] | None = None
    ) -> Signed:
        """Whether a version of a dataset may be made of this manifest; errors as of :meth:`check_version`."""
        subject = dataset_subject(manifest.sha256, manifest.size_bytes)
        return await self._check("dataset-version", name, [subject], facts or {}, envelope)

    async def put_keyring(self, envelope: bytes, actor: Actor) -> int:
        """As :meth:`services.registry.keyrings.Keyrings.put`."""
        return await self._keyrings.put(envelope, actor)

    async def keyrings(self, after: int) -> Sequence[bytes]:
        """As :meth:`services.registry.keyrings.Keyrings.list`."""
        return await self._keyrings.list(after)

    async def _check(
        self, kind: Kind, name: str, subjects: Sequence[Subject], facts: Mapping[str, str], envelope: bytes
    ) -> Signed:
        if len(envelope) > MAX_SIGNATURE_BYTES:
            raise field_error("signature", f"has {len(envelope)} bytes, at most {MAX_SIGNATURE_BYTES} are kept")
        if not self._keyrings.verifies:
            return Signed(await asyncio.to_thread(_unverified, envelope) if envelope else None)
        if not envelope:
            raise MeshError(
                Reason.SIGNATURE_MISSING,
                f"this registry takes only what is signed, and this version of {name!r} is not: set a signing key",
            )
        verified = await asyncio.to_thread(
            verify_statement,
            envelope,
            await self._keyrings.newest(),
            kind=kind,
            name=name,
            subjects=subjects,
            facts=facts,
            time=self._now(),
        )
        if missing := facts.keys() - verified.statement.facts.keys():
            raise MeshError(
                Reason.SIGNATURE_INVALID, f"the signature of {name!r} does not say {', '.join(sorted(missing))}"
            )
        return Signed(Signature(verified.key_id, envelope), (verified.key_id,))


def _unverified(envelope: bytes) -> Signature:
    signatures = Envelope.from_json(envelope).signatures
    if not signatures:
        raise MeshError(Reason.SIGNATURE_INVALID, "the envelope holds no signature")
    return Signature(signatures[0].key_id, envelope)
