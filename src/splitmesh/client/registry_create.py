"""Making a version: what is not there yet is pushed, the statement is signed, the registry is asked once and told again.

A push may take longer than the registry keeps what no version names: what went meanwhile is pushed again. Knows no other call.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from splitmesh.api.registry.v1 import registry_pb2 as pb
from splitmesh.api.registry.v1.registry_pb2_grpc import RegistryServiceStub
from splitmesh.client.artifacts import SERVICE, TRIES
from splitmesh.client.registry_messages import answer_of, artifact_to_message, lineage_to_message
from splitmesh.client.registry_trust import TrustPort
from splitmesh.client.registry_values import ArtifactRef, OnProgress, VersionInfo
from splitmesh.client.small_contents import SmallContents
from splitmesh.client.transfer import Patience, is_passing
from splitmesh.client.version_files import Base, VersionFiles
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.channels import Channels, mesh_errors
from splitmesh.model.lineage import Lineage
from splitmesh.trust.statement import version_facts

log = logging.getLogger(__name__)

CREATE_DEADLINE_S = 300.0
"""Deadline of CreateVersion, seconds: the registry reads every model file in a child process first."""


@dataclass(frozen=True)
class Asked:
    """A version to make; see :meth:`splitmesh.client.registry.RegistryClient.create_version`."""

    model: str
    artifacts: Mapping[str, bytes | Path | ArtifactRef]
    parent: int
    created_by: str
    description: str
    request_id: str
    lineage: Lineage


class Create:
    """Makes versions in the service ``registry`` that ``channels`` can find.

    Args:
        channels: find it.
        trust: signs; None: nobody does.
        files: push what is not there yet.
        small: know what is not there.
    """

    def __init__(self, channels: Channels, trust: TrustPort | None, files: VersionFiles, small: SmallContents) -> None:
        self._channels = channels
        self._trust = trust
        self._files = files
        self._small = small

    async def version(self, asked: Asked, base: Base | None, on_progress: OnProgress | None) -> VersionInfo:
        """See :meth:`splitmesh.client.registry.RegistryClient.create_version`."""
        if self._trust is not None:
            # Before the upload, not after it.
            await self._trust.check_signer(asked.model)
        files = {name: content for name, content in asked.artifacts.items() if not isinstance(content, ArtifactRef)}
        pushed = await self._files.push(files, base, on_progress)
        refs = [
            replace(content, name=name) if isinstance(content, ArtifactRef) else pushed[name]
            for name, content in asked.artifacts.items()
        ]
        request = self._request(asked, refs)
        # Asked for now, they are not garbage for the next hours; what was collected during a long push is pushed again.
        await self._push_missing(files, refs)
        try:
            made = await self._ask(request)
        except MeshError as error:
            if error.reason is not Reason.ARTIFACT_NOT_FOUND or not await self._push_missing(files, refs):
                raise
            made = await self._ask(request)
        if not asked.request_id and dict(made.artifacts) != {ref.name: ref for ref in refs}:
            raise MeshError(
                Reason.PROTOCOL_VIOLATION,
                f"the registry says that it made version {made.version} of {made.model!r}, with other artefacts than asked",
            )
        return made

    def _request(self, asked: Asked, refs: Sequence[ArtifactRef]) -> pb.CreateVersionRequest:
        signature = None
        if self._trust is not None:
            facts = version_facts(asked.created_by, asked.parent, asked.lineage.sha256)
            signature = self._trust.sign(asked.model, refs, facts)
        return pb.CreateVersionRequest(
            model=asked.model,
            artifacts=[artifact_to_message(ref) for ref in refs],
            parent=asked.parent,
            created_by=asked.created_by,
            description=asked.description,
            # With one of our own a lost answer can be asked for again without making a second version.
            request_id=asked.request_id or uuid4().hex,
            lineage=lineage_to_message(asked.lineage),
            signature=signature or b"",
        )

    async def _push_missing(self, files: Mapping[str, bytes | Path], refs: Sequence[ArtifactRef]) -> bool:
        """Whether something was not there any more, and is again now."""
        missing = set(await self._small.missing(list(dict.fromkeys(ref.sha256 for ref in refs))))
        gone = {ref.name: ref for ref in refs if ref.sha256 in missing and ref.name in files}
        if not gone:
            return False
        log.info("the registry has let go of %s: pushed again", ", ".join(gone))
        again = await self._files.push({name: files[name] for name in gone}, None, None)
        for name, ref in gone.items():
            if again[name] != ref:
                raise MeshError(Reason.DIGEST_MISMATCH, f"{name} has changed while it was sent")
        return True

    async def _ask(self, request: pb.CreateVersionRequest) -> VersionInfo:
        patience = Patience(tries=TRIES)
        while True:
            try:
                async with mesh_errors():
                    stub = RegistryServiceStub(await self._channels.to(SERVICE))
                    response = await stub.CreateVersion(request, timeout=CREATE_DEADLINE_S)
                return answer_of(response.version, request.model)
            except MeshError as error:
                # A check that took too long would take too long again.
                if error.reason is Reason.DEADLINE_EXPIRED or not is_passing(error):
                    raise
                await patience.after(error)
