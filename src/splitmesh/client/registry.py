"""The registry for everyone who uses it: push and pull artefacts, make versions, move and follow aliases.

Uploads and downloads resume where a broken link left them, and give up only after several failures without progress.
Everything raises MeshError. Content is verified by its SHA-256 before anyone sees it, and where there is a trust, no byte of a
version is handed out before the trust has verified the version.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from splitmesh.client.artifacts import Artifacts
from splitmesh.client.deltas import Deltas
from splitmesh.client.rate import Rate
from splitmesh.client.registry_calls import RegistryCalls
from splitmesh.client.registry_create import Asked, Create
from splitmesh.client.registry_trust import TrustPort, Verified
from splitmesh.client.registry_values import (
    AliasChange,
    AliasMove,
    ArtifactRef,
    Garbage,
    ModelInfo,
    OnProgress,
    RegistryEvent,
    VersionInfo,
)
from splitmesh.client.registry_watch import Watch, states
from splitmesh.client.small_contents import SmallContents
from splitmesh.client.version_files import VersionFiles
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.kernel.channels import Channels
from splitmesh.model.lineage import Lineage

__all__ = [
    "AliasChange",
    "AliasMove",
    "ArtifactRef",
    "Garbage",
    "ModelInfo",
    "OnProgress",
    "RegistryClient",
    "RegistryEvent",
    "TrustPort",
    "VersionInfo",
]


class RegistryClient(RegistryCalls):
    """Speaks to the service ``registry`` that ``channels`` can find.

    Args:
        channels: find it.
        trust: verifies versions before their bytes are handed out, and signs those that are made; None: nobody does.
        rate: one for all transfers of this process; None: as fast as the link.
    """

    def __init__(self, channels: Channels, *, trust: TrustPort | None = None, rate: Rate | None = None) -> None:
        super().__init__(channels)
        self._trust = trust
        self._artifacts = Artifacts(channels, rate)
        self._small = SmallContents(channels, self._artifacts, rate)
        self._deltas = Deltas(channels, self._artifacts)
        self._files = VersionFiles(self._artifacts, self._deltas, rate)
        self._create = Create(channels, trust, self._files, self._small)
        self._verified = Verified(trust, self.get_version)

    async def verify(self, version: VersionInfo) -> VersionInfo:
        """The version whose bytes may be used here: itself, or with signatures that it got since it was read.

        Costs microseconds after the first time. Raises MeshError SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN,
        KEY_REVOKED.
        """
        return await self._verified.require(version)

    def withdrawn(self, model: str, version: int) -> Reason | None:
        """Why a version that was verified here would not be again, such as KEY_REVOKED; None: it would, or nothing is."""
        return None if self._trust is None else self._trust.withdrawn(model, version)

    async def push_artifact(
        self, name: str, content: bytes | Path, *, on_progress: OnProgress | None = None
    ) -> ArtifactRef:
        """Uploads what the registry does not have yet.

        Raises:
            MeshError: FIELD_INVALID (the file cannot be read), FRAME_TOO_LARGE, STORAGE_FULL, DIGEST_MISMATCH (the file
                changed meanwhile), or what kept the registry from answering.
        """
        ref = await self._artifacts.push(name, content, on_progress)
        self._verified.pushed(ref)
        return ref

    async def push_files(
        self,
        files: Mapping[str, bytes | Path],
        *,
        base: Path | Mapping[str, bytes | Path] | None = None,
        on_progress: OnProgress | None = None,
    ) -> dict[str, ArtifactRef]:
        """Uploads several by name, a few at once; ``on_progress`` is told the bytes of all of them.

        Args:
            files: contents by artefact name.
            base: files of an earlier version that the registry has: a folder, or contents by name. Of a file with the same
                name in it only what changed is sent, where that is much less.
            on_progress: told bytes done and altogether.

        Raises:
            MeshError: as :meth:`push_artifact`.
        """
        refs = await self._files.push(files, base, on_progress)
        for ref in refs.values():
            self._verified.pushed(ref)
        return refs

    async def pull_artifact(self, ref: ArtifactRef, *, on_progress: OnProgress | None = None) -> bytes:
        """A content that belongs to no version, verified by its digest alone; of a version's: :meth:`fetch`.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND, DIGEST_MISMATCH, or what kept the registry from answering.
        """
        return await self._artifacts.pull(ref, on_progress)

    async def pull_to_file(
        self, ref: ArtifactRef, path: Path, *, base: Path | None = None, on_progress: OnProgress | None = None
    ) -> None:
        """As :meth:`pull_artifact`, to ``path``, which changes only when everything is verified and synced.

        Goes on where an earlier try was killed, or the power was cut. With ``base``, a file that may have much in common with
        it, only what changed is fetched where that is much less.

        Raises:
            MeshError: also STORAGE_FULL, the file cannot be written; QUEUE_FULL, somebody else is fetching it to this path.
        """
        await self._files.get(ref, path, base, on_progress)

    async def fetch(self, version: VersionInfo, name: str, *, on_progress: OnProgress | None = None) -> bytes:
        """One artefact of a version; MODEL_INCOMPLETE when it has none of that name, VERSION_NOT_FOUND when it was deleted
        meanwhile, and as :meth:`verify` and :meth:`pull_artifact`.
        """
        ref = version.artifact(name)
        await self.verify(version)
        async with self._while_there(version):
            return await self.pull_artifact(ref, on_progress=on_progress)

    async def pull_version(
        self,
        version: VersionInfo,
        folder: Path,
        *,
        names: Sequence[str] | None = None,
        base: Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> dict[str, Path]:
        """A version's files in a folder, a few at once; where each is.

        What is there already and right is not fetched again, and what an earlier pull left unfinished is gone on with. A
        file appears under its name only whole and verified, and never in place of a link or a folder.

        Args:
            version: verified first, see :meth:`verify`.
            folder: made when it is not there.
            names: artefacts wanted; None: all.
            base: folder with another version's files: what is the same is copied from there, and of a file with
                the same name, there or in ``folder``, only what changed is fetched where that is much less.
            on_progress: told bytes done and altogether, over all files; what was there counts as done.

        Raises:
            MeshError: MODEL_INCOMPLETE, FIELD_INVALID (a link or a folder is in the way), VERSION_NOT_FOUND (it was deleted
                meanwhile), and as :meth:`pull_to_file`.
        """
        refs = [version.artifact(name) for name in (version.artifacts if names is None else dict.fromkeys(names))]
        await self.verify(version)
        async with self._while_there(version):
            return await self._files.pull(refs, folder, base, on_progress)

    async def create_version(
        self,
        model: str,
        artifacts: Mapping[str, bytes | Path | ArtifactRef],
        *,
        parent: int = 0,
        created_by: str,
        description: str = "",
        request_id: str = "",
        lineage: Lineage | None = None,
        base: Path | Mapping[str, bytes | Path] | None = None,
        on_progress: OnProgress | None = None,
    ) -> VersionInfo:
        """Pushes what is not there yet, signs where there is a key, makes the version; safe to repeat by ``request_id``.

        A reference stands for what another version holds already, or what was pushed before; where there is a trust, this
        client has verified that version, or pushed it itself. ``base`` and ``on_progress`` are those of :meth:`push_files`.

        Raises:
            MeshError: as :meth:`push_artifact`; MODEL_CORRUPT, MODEL_INCOMPLETE and the other reasons of a model that is
                refused; SIGNATURE_MISSING, SIGNATURE_INVALID, KEY_UNKNOWN, KEY_REVOKED; VERSION_NOT_FOUND,
                DATASET_NOT_FOUND (of the lineage).
        """
        for content in artifacts.values():
            if isinstance(content, ArtifactRef):
                self._verified.require_content(content)
        asked = Asked(model, artifacts, parent, created_by, description, request_id, lineage or Lineage())
        return await self._create.version(asked, base, on_progress)

    async def missing(self, sha256s: Sequence[str]) -> list[str]:
        """Which of these contents the registry does not have, in the order asked."""
        return await self._small.missing(sha256s)

    async def push_contents(
        self, contents: AsyncIterable[tuple[str, bytes]], *, on_progress: OnProgress | None = None
    ) -> int:
        """Uploads many contents by digest, small ones several in a message; how many. All are on disk when it returns.

        Ask :meth:`missing` first, to send only those. ``on_progress`` is told bytes on disk and bytes read so far.

        Raises:
            MeshError: DIGEST_MISMATCH, a content is not what its digest says; FRAME_TOO_LARGE, STORAGE_FULL, or what kept the
                registry from answering.
        """
        return await self._small.push(contents, on_progress)

    def pull_contents(self, sha256s: Sequence[str]) -> AsyncGenerator[tuple[str, bytes], None]:
        """Many contents with their digests, verified, in the order asked.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND, DIGEST_MISMATCH, or what kept the registry from answering.
        """
        return self._small.pull(sha256s)

    async def make_delta(self, base_sha256: str, sha256: str) -> ArtifactRef | None:
        """A patch from one content to another, as a content; None where it is not much smaller. ARTIFACT_NOT_FOUND."""
        return await self._deltas.make(base_sha256, sha256)

    async def apply_delta(self, base_sha256: str, delta_sha256: str, sha256: str, size_bytes: int) -> None:
        """Makes a content in the registry from another one and a patch that were pushed before.

        Raises:
            MeshError: ARTIFACT_NOT_FOUND, DIGEST_MISMATCH, PAYLOAD_CORRUPT, FRAME_TOO_LARGE, STORAGE_FULL, QUEUE_FULL.
        """
        await self._deltas.apply(base_sha256, delta_sha256, sha256, size_bytes)

    def watch_model(self, model: str, alias: str = "", after: int = 0) -> AsyncGenerator[AliasChange, None]:
        """Follows a model's aliases, or one of them: first where they point now, then every move, each once.

        Never ends by itself and outlives outages of the registry, during which nothing comes; what happened meanwhile comes
        afterwards, move by move.

        Args:
            model: may not exist yet.
            alias: may not exist yet; empty: all.
            after: sequence of the last change that the caller knows: those since come first, then where the aliases point
                now, should the registry have been set back to a backup.

        Raises:
            MeshError: only when the request is wrong, or the answer (PROTOCOL_VIOLATION).
        """
        return Watch(self._channels, self._trust, model, alias, after).changes()

    def watch_alias(self, model: str, alias: str) -> AsyncGenerator[VersionInfo | None, None]:
        """Where the alias points now (None: it does not exist), then where it points after each change.

        As :meth:`watch_model`, except that of several moves only the last one comes to a caller who was busy meanwhile; an
        unchanged state is never repeated. MeshError FIELD_INVALID without an alias.
        """
        if not alias:
            raise field_error("alias", "is missing: name the one to follow")
        return states(self.watch_model(model, alias))

    @asynccontextmanager
    async def _while_there(self, version: VersionInfo) -> AsyncGenerator[None, None]:
        """Says VERSION_NOT_FOUND of a version whose contents went with it meanwhile."""
        try:
            yield
        except MeshError as error:
            if error.reason is Reason.ARTIFACT_NOT_FOUND and await self._is_gone(version):
                raise MeshError(
                    Reason.VERSION_NOT_FOUND, f"version {version.version} of {version.model!r} was deleted meanwhile"
                ) from error
            raise

    async def _is_gone(self, version: VersionInfo) -> bool:
        try:
            await self.get_version(version.model, version.version)
        except MeshError as error:
            return error.reason in (Reason.VERSION_NOT_FOUND, Reason.MODEL_NOT_FOUND)
        return False
