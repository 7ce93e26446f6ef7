"""Versions that follow from what was asked: the same request makes the same version, and makes it anew once it was deleted.

Knows no request: the caller derives its id from what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from splitmesh.client.registry import ArtifactRef, RegistryClient, VersionInfo
from splitmesh.errors import MeshError, Reason
from splitmesh.model.lineage import Lineage

MAX_TIMES = 100
"""How often the version of one request may have been deleted."""


async def create_repeatable(
    registry: RegistryClient,
    model: str,
    artifacts: Mapping[str, bytes | Path | ArtifactRef],
    *,
    parent: int,
    created_by: str,
    description: str,
    request_id: str,
    lineage: Lineage,
) -> VersionInfo:
    """The version of a request, made now or before; where that was deleted, the next one under ``request_id-2``, ``-3``.

    Raises:
        MeshError: as :meth:`RegistryClient.create_version`; VERSION_NOT_FOUND also when it was deleted ``MAX_TIMES`` times.
    """
    made_from = max(parent, *(one.version for one in lineage.parents if one.model == model), 0)
    time = 1
    while True:
        try:
            return await registry.create_version(
                model,
                artifacts,
                parent=parent,
                created_by=created_by,
                description=description,
                request_id=request_id if time == 1 else f"{request_id}-{time}",
                lineage=lineage,
            )
        except MeshError as error:
            if time == MAX_TIMES or not _was_deleted(error, model, made_from):
                raise
            time += 1


def _was_deleted(error: MeshError, model: str, made_from: int) -> bool:
    """What this request made, and not what it was made from, which has a lower number."""
    about, number = error.metadata, error.metadata.get("version", "")
    of_model = error.reason is Reason.VERSION_NOT_FOUND and about.get("model") == model
    return of_model and about.get("deleted") == "true" and number.isdecimal() and int(number) > made_from
