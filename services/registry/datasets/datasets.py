"""The rules of datasets: what makes a version sound, and what it says in short.

Knows the order of the checks, cheap ones first. Does not know how anything is stored, nor messages on the wire.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.registry.content.port import ContentStore
from services.registry.datasets.check import ManifestCheck
from services.registry.datasets.presence import Presence
from services.registry.garbage import Pins
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Actor, Artifact, Dataset, DatasetDraft, DatasetVersion
from services.registry.metadata.refusals import version_not_found
from services.registry.names import (
    MAX_DESCRIPTION_CHARS,
    MAX_REASON_CHARS,
    check_model_name,
    check_number,
    check_text,
)
from services.registry.signatures import Signatures
from splitmesh.datasets.manifest import MAX_MANIFEST_BYTES
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.pages import from_token, number_from_token, page, page_size, to_token
from splitmesh.sql.times import utc_now
from splitmesh.trust.statement import DATASET_SUBJECT

MAX_PAGE_BYTES = 8 << 20
"""Of the versions of a page, roughly; a page has one version at least."""
COUNT_WAIT_S = 5.0
"""Longest wait for a count of pictures."""
READ_AT_ONCE = 20
"""Versions of a page; one can take a quarter of a megabyte where it has many classes."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to become a version."""

    dataset: str
    manifest_sha256: str
    parent: int
    created_by: str
    description: str
    request_id: str
    signature: bytes
    """DSSE envelope; empty: not signed."""


class Datasets:
    """Datasets of one registry.

    Args:
        store: of the records.
        contents: of manifests and of pictures that sites let go.
        signatures: says whether a manifest may be taken.
        pins: shared with the collection of garbage.
        check: reads manifests.
        max_manifest_bytes: a larger manifest is refused unread.
        now: the wall clock.
    """

    def __init__(
        self,
        store: MetadataStore,
        contents: ContentStore,
        signatures: Signatures,
        pins: Pins,
        check: ManifestCheck,
        *,
        max_manifest_bytes: int = MAX_MANIFEST_BYTES,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._contents = contents
        self._signatures = signatures
        self._pins = pins
        self._check = check
        self._presence = Presence(contents)
        self._max_manifest_bytes = max_manifest_bytes
        self._now = now
        self._writes: set[asyncio.Task[DatasetVersion]] = set()

    async def start(self) -> None:
        """Nothing to prepare."""

    async def stop(self) -> None:
        """Finishes what was accepted."""
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._presence.stop()

    async def create(self, wanted: Wanted, peer: str = "") -> DatasetVersion:
        """The new version, or the one this request made first.

        Raises:
            MeshError: FIELD_INVALID (also a manifest that is none, and another one than this request brought first),
                ARTIFACT_NOT_FOUND, VERSION_NOT_FOUND (of the parent), SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN,
                KEY_REVOKED, FRAME_TOO_LARGE, STORAGE_FULL, QUEUE_FULL (many manifests wait to be read).
        """
        _check_wanted(wanted)
        if wanted.request_id and (first := await self._store.find_dataset_request(wanted.dataset, wanted.request_id)):
            return _of_this_request(first, wanted)
        if wanted.parent:
            await self._require_parent(wanted.dataset, wanted.parent)
        async with self._pins.hold([wanted.manifest_sha256]) as pin:
            manifest = await self._manifest(wanted.manifest_sha256)
            facts = {"created_by": wanted.created_by, "parent": str(wanted.parent)}
            signed = await self._signatures.check_dataset(wanted.dataset, manifest, wanted.signature, facts)
            found = await self._check.read(self._contents.local(manifest.sha256))
            async with self._pins.hold(found.pictures) as pictures_pin:
                draft = DatasetDraft(
                    dataset=wanted.dataset,
                    manifest=manifest,
                    parent=wanted.parent,
                    created_by=wanted.created_by,
                    description=wanted.description,
                    request_id=wanted.request_id,
                    summary=found.summary,
                    contents=found.pictures,
                    signature=signed.signature,
                )
                actor = Actor(wanted.created_by, peer, signed.key_ids)
                # A caller that hangs up in the middle cannot stop the write; until it is done its contents must stay.
                write = asyncio.create_task(self._store.create_dataset_version(draft, actor, self._now()))
                pin.keep_until(write)
                pictures_pin.keep_until(write)
                self._writes.add(write)
                write.add_done_callback(self._writes.discard)
                return _of_this_request(await asyncio.shield(write), wanted)

    async def get(self, dataset: str, version: int) -> DatasetVersion:
        """By number, 0: the newest; DATASET_NOT_FOUND, VERSION_NOT_FOUND."""
        _check_name(dataset)
        check_number("version", version)
        return await self._store.get_dataset_version(dataset, version)

    async def pictures_here(self, version: DatasetVersion) -> int | None:
        """Pictures of a version that are contents of this registry; None: not counted within ``COUNT_WAIT_S``."""
        return await self._presence.count(version.manifest.sha256, COUNT_WAIT_S)

    async def list_datasets(self, asked: int, token: str) -> tuple[Sequence[Dataset], str]:
        """One page by name, and the token of the next, empty after the last."""
        size = page_size(asked)
        found = await self._store.list_datasets(from_token("datasets", token), size + 1)
        return page("datasets", found, size, lambda dataset: dataset.name)

    async def list_versions(self, dataset: str, asked: int, token: str) -> tuple[Sequence[DatasetVersion], str]:
        """One page, newest first, and the token of the next, empty after the last; DATASET_NOT_FOUND.

        A page is shorter than asked where its versions have much to say.
        """
        _check_name(dataset)
        size, kind = page_size(asked), f"dataset_versions:{dataset}"
        before, room, found = number_from_token(kind, token), MAX_PAGE_BYTES, list[DatasetVersion]()
        while len(found) < size:
            wanted = min(READ_AT_ONCE, size - len(found))
            versions = await self._store.list_dataset_versions(dataset, before, wanted + 1)
            for version in versions[:wanted]:
                room -= _weight(version)
                if room < 0 and found:
                    return found, to_token(kind, str(found[-1].version))
                found.append(version)
            if len(versions) <= wanted:
                return found, ""
            before = found[-1].version
        return found, to_token(kind, str(before))

    async def delete(
        self, dataset: str, version: int, reason: str, deleted_by: str, peer: str = "", *, even_if_used: bool = False
    ) -> bool:
        """Takes a version away; whether no version of any dataset names its manifest now.

        DATASET_NOT_FOUND, VERSION_NOT_FOUND, VERSION_IN_USE (a model's lineage names it).
        """
        _check_name(dataset)
        check_number("version", version)
        if not version:
            raise version_not_found("dataset", dataset, version)
        check_text("deleted_by", deleted_by)
        check_text("reason", reason, MAX_REASON_CHARS)
        manifest = (await self._store.get_dataset_version(dataset, version)).manifest.sha256
        try:
            await self._store.delete_dataset_version(
                dataset, version, reason, Actor(deleted_by, peer), self._now(), even_if_used=even_if_used
            )
        finally:
            self._presence.forget(manifest)
        return bool(await self._store.unused([manifest]))

    async def _require_parent(self, dataset: str, parent: int) -> None:
        try:
            await self._store.get_dataset_version(dataset, parent)
        except MeshError as error:
            if error.reason is not Reason.DATASET_NOT_FOUND:
                raise
            raise MeshError(Reason.VERSION_NOT_FOUND, f"parent: {error.message}", metadata=error.metadata) from error

    async def _manifest(self, sha256: str) -> Artifact:
        size_bytes = await self._contents.size_of(sha256)
        if size_bytes > self._max_manifest_bytes:
            raise MeshError(
                Reason.FRAME_TOO_LARGE,
                f"the manifest has {size_bytes} bytes; at most {self._max_manifest_bytes} are read",
                metadata={"limit_bytes": str(self._max_manifest_bytes)},
            )
        return Artifact(DATASET_SUBJECT, sha256, size_bytes)


def _check_name(dataset: str) -> None:
    check_model_name(dataset, "dataset")


def _check_wanted(wanted: Wanted) -> None:
    _check_name(wanted.dataset)
    if not _SHA256.fullmatch(wanted.manifest_sha256):
        raise field_error("manifest_sha256", "must be 64 lower-case hexadecimal digits")
    check_number("parent", wanted.parent)
    check_text("created_by", wanted.created_by)
    check_text("request_id", wanted.request_id)
    check_text("description", wanted.description, MAX_DESCRIPTION_CHARS)


def _of_this_request(made: DatasetVersion, wanted: Wanted) -> DatasetVersion:
    if made.manifest.sha256 != wanted.manifest_sha256:
        raise field_error("request_id", f"made version {made.version} of {made.dataset}, which is of another manifest")
    return made


def _weight(version: DatasetVersion) -> int:
    """Bytes of it as a message, roughly."""
    envelopes = sum(len(signature.envelope) for signature in version.signatures)
    return 1000 + 4 * (len(version.summary) + len(version.description)) + envelopes
