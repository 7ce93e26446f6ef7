"""Which versions may be used here: pinned roots, the keyrings that follow from them, and what was signed by a key of theirs.

The keyring is kept on disk and never goes back, so a line whose cable is cut starts with what it knew; a registry that lies
can withhold a newer keyring but make none. What a revocation does: a version of the revoked key that is in use goes on being
used, because a line must not stop for it; an error says so once, :meth:`Trust.withdrawn` tells it to who describes the node,
and the version is not loaded again, after a restart either. Replace it: push, sign, and move the alias.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from splitmesh.client.keyrings import Keyrings, KeyringSource
from splitmesh.client.registry import RegistryClient
from splitmesh.client.registry_calls import RegistryCalls
from splitmesh.client.registry_values import ArtifactRef, VersionInfo
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.config import ENV_PREFIX, ServiceSettings, data_dir_default
from splitmesh.trust.claim import WORST_FIRST, Claim, refusals
from splitmesh.trust.keyring import Keyring
from splitmesh.trust.keys import PublicKey, SigningKey, public_keys
from splitmesh.trust.statement import (
    SIGNED_AT,
    Statement,
    Subject,
    dataset_subject,
    sign_statement,
    version_facts,
)
from splitmesh.trust.trusted_key import Kind

log = logging.getLogger(__name__)

MAX_WATCHED = 1000
"""Verified versions that are looked at again when the keyring changes."""

Used = tuple[str, int]
"""Model and version."""


class Trust:
    """Verifies and signs for one process; :class:`splitmesh.client.registry_trust.TrustPort`.

    Args:
        roots: the pinned ones; none: nothing is verified.
        folder: where keyrings are kept.
        signer: signs what is made here; None: it is not signed.
        now: the wall clock.
        clock: counts seconds.
    """

    def __init__(
        self,
        roots: Sequence[PublicKey],
        folder: Path,
        signer: SigningKey | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.signer = signer
        self._roots = tuple(roots)
        self._rings = Keyrings(roots, folder, self._look_again, clock=clock)
        self._now = now
        self._used: OrderedDict[Used, Claim] = OrderedDict()
        self._withdrawn: dict[Used, Reason] = {}

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> Trust | None:
        """As ``trust_root`` and ``signing_key`` say; None where neither is set. FIELD_INVALID: a file is no key."""
        if settings.trust_root is None:
            log.info("no trust root is set (%sTRUST_ROOT): versions are used unverified", ENV_PREFIX)
        if settings.trust_root is None and settings.signing_key is None:
            return None
        roots = () if settings.trust_root is None else _from_file("trust_root", settings.trust_root, public_keys)
        signing = settings.signing_key
        signer = None if signing is None else _from_file("signing_key", signing, SigningKey.from_pem)
        return cls(roots, trust_folder(settings), signer)

    def attach(self, registry: KeyringSource) -> None:
        """Where news of keyrings comes from."""
        self._rings.source = registry

    @property
    def keyring(self) -> Keyring:
        """The newest that is known; KEY_UNKNOWN when there is none."""
        return self._rings.require()

    @property
    def keyring_version(self) -> int:
        """Of the newest keyring that is known; 0: none. Asking is what keeps it new: an old answer is asked for again."""
        if self._roots:
            self._rings.ask_when_old()
        return self._rings.version

    def withdrawn(self, model: str, version: int) -> Reason | None:
        """Why a version that was verified here would be refused now; None: it would not, or never was verified here."""
        return self._withdrawn.get((model, version))

    def kept_keyrings(self) -> Sequence[bytes]:
        """Envelopes of all keyrings that are kept here, oldest first, also of roots before these; reads the disk."""
        return self._rings.kept()

    async def verify(self, version: VersionInfo) -> None:
        """Whether the version's contents may be used.

        Raises:
            MeshError: SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED.
        """
        if not self._roots:
            return
        claim = claim_of(version)
        await self._judged(lambda: claim.verify(self.keyring))
        key = (version.model, version.version)
        self._used[key] = claim
        self._used.move_to_end(key)
        self._withdrawn.pop(key, None)
        while len(self._used) > MAX_WATCHED:
            self._withdrawn.pop(self._used.popitem(last=False)[0], None)

    async def verify_dataset(
        self,
        dataset: str,
        sha256: str,
        size_bytes: int,
        signatures: Sequence[bytes],
        *,
        facts: Mapping[str, str] | None = None,
        create_time: datetime | None = None,
    ) -> None:
        """Whether the manifest of a dataset's version may be used; raises as :meth:`verify`."""
        if self._roots:
            subjects = (dataset_subject(sha256, size_bytes),)
            claim = Claim("dataset-version", dataset, subjects, tuple(signatures), facts or {}, create_time)
            await self._judged(lambda: claim.verify(self.keyring))

    async def check_signer(self, name: str) -> None:
        """Whether what is signed here would count for the model: to be asked before anything large is sent.

        Says nothing where nothing signs, and where no root tells which keys count.

        Raises:
            MeshError: KEY_UNKNOWN, the key is in no keyring, or not for this model; KEY_REVOKED.
        """
        await self._check_signer("model-version", name)

    async def check_dataset_signer(self, dataset: str) -> None:
        """The same for a dataset."""
        await self._check_signer("dataset-version", dataset)

    def sign(self, name: str, refs: Iterable[ArtifactRef], facts: Mapping[str, str]) -> bytes | None:
        """An envelope over the statement of a new version of the model; None where nothing signs here."""
        return self._sign("model-version", name, [Subject(ref.name, ref.sha256, ref.size_bytes) for ref in refs], facts)

    def sign_version(self, version: VersionInfo) -> bytes | None:
        """An envelope over the statement of a version that is there already; None where nothing signs here."""
        claim = claim_of(version)
        return self._sign(claim.kind, claim.name, claim.subjects, claim.facts)

    def sign_dataset(self, dataset: str, sha256: str, size_bytes: int, facts: Mapping[str, str]) -> bytes | None:
        """An envelope over the statement of a new version of the dataset; None where nothing signs here."""
        return self._sign("dataset-version", dataset, [dataset_subject(sha256, size_bytes)], facts)

    def heard(self, keyring_version: int) -> None:
        """The registry has this keyring: an older one is replaced, in the background and before the next version is used."""
        if self._roots:
            self._rings.heard(keyring_version)

    async def ask(self) -> None:
        """Asks for a newer keyring; what goes wrong is in the log."""
        if self._roots:
            await self._rings.ask()

    async def refresh(self, registry: KeyringSource | None = None) -> None:
        """Follows the registry's keyrings to the newest, and looks at the versions in use again.

        Raises:
            MeshError: as :meth:`splitmesh.client.keyrings.Keyrings.refresh`.
        """
        if self._roots:
            await self._rings.refresh(registry)

    async def _judged(self, judge: Callable[[], object]) -> None:
        """By the newest keyring that can be known; raises what the judge raises."""
        await self._rings.catch_up()
        try:
            judge()
        except MeshError as error:
            # A key may be trusted since; a revoked one never comes back.
            if error.reason is not Reason.KEY_UNKNOWN or not await self._rings.ask():
                raise
            judge()

    async def _check_signer(self, kind: Kind, name: str) -> None:
        signer = self.signer
        if signer is None or not self._roots:
            return
        key_id = signer.public.key_id

        def judge() -> None:
            key = self.keyring.find(key_id)
            if key is None:
                raise MeshError(
                    Reason.KEY_UNKNOWN,
                    f"the signing key {key_id[:16]} is not in keyring {self.keyring.version}, so nothing that it signs counts; "
                    "who holds a root trusts it with splitmesh keys trust",
                    metadata={"key_id": key_id},
                )
            key.check_may_sign(kind, name, [self._now()])

        await self._judged(judge)

    async def _look_again(self) -> None:
        """At what was verified by an older keyring: said once, and nothing stops."""
        used = dict(self._used)
        # In a thread: a thousand signatures take longer than a frame may wait.
        refused = await asyncio.to_thread(refusals, self.keyring, used)
        for key, claim in used.items():
            if self._used.get(key) is not claim:
                continue  # forgotten, or verified by the new one meanwhile
            refusal = refused.get(key)
            if refusal is None:
                self._withdrawn.pop(key, None)
            elif self._withdrawn.get(key) is not refusal.reason:
                self._withdrawn[key] = refusal.reason
                log.error(
                    "%s version %d was loaded here and would be refused now; it goes on until it is replaced: %s",
                    *key, refusal,
                )  # fmt: skip

    def _sign(self, kind: Kind, name: str, subjects: Sequence[Subject], facts: Mapping[str, str]) -> bytes | None:
        if self.signer is None:
            return None
        said = {**facts, SIGNED_AT: self._now().isoformat(timespec="seconds")}
        return sign_statement(Statement(kind, name, tuple(subjects), said), self.signer)


def is_refusal(error: Exception) -> bool:
    """A version may not be used: trying again soon does not cure it."""
    return isinstance(error, MeshError) and error.reason in WORST_FIRST


def trust_folder(settings: ServiceSettings) -> Path:
    """Where keyrings are kept: beside what a service keeps; of all commands of a user together."""
    return Path(getattr(settings, "data_dir", None) or data_dir_default("cli")) / "trust"


def trust_for(settings: ServiceSettings, channels: Channels) -> Trust | None:
    """The trust that the settings ask for, with news from the registry that ``channels`` can find."""
    trust = Trust.from_settings(settings)
    if trust is not None:
        trust.attach(RegistryCalls(channels))
    return trust


def registry_client(settings: ServiceSettings, channels: Channels) -> RegistryClient:
    """A client of the registry that verifies and signs as the settings say: the one that every service uses.

    Raises:
        MeshError: FIELD_INVALID, ``trust_root`` or ``signing_key`` is no key.
    """
    return RegistryClient(channels, trust=trust_for(settings, channels))


def claim_of(version: VersionInfo) -> Claim:
    """What is said of a version, to be verified."""
    return Claim(
        "model-version",
        version.model,
        tuple(Subject(ref.name, ref.sha256, ref.size_bytes) for ref in version.artifacts.values()),
        tuple(version.signatures),
        version_facts(version.created_by, version.parent, version.lineage.sha256),
        version.create_time,
    )


T = TypeVar("T")


def _from_file(setting: str, path: Path, read: Callable[[bytes], T]) -> T:
    try:
        return read(path.read_bytes())
    except OSError as error:
        raise field_error(setting, f"{path} cannot be read: {error.strerror}") from error
    except MeshError as error:
        raise field_error(setting, f"{path}: {error.fields[0][1] if error.fields else error.message}") from error
