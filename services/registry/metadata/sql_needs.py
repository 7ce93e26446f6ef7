"""Statements about what versions run with, besides their making and their end. Knows no transaction and no thread."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, exists, insert, select, tuple_

from services.registry.metadata.sql_versions import require_version
from services.registry.metadata.tables import artifacts, version_needs
from splitmesh.errors import MeshError
from splitmesh.model.lineage import VersionName


def without_needs(
    connection: Connection, artifact: str, after: VersionName, limit: int
) -> list[tuple[VersionName, str]]:
    """See the port; a version that was deleted has no artefacts."""
    kept, needs = artifacts.c, version_needs.c
    asked = (
        select(kept.model, kept.version, kept.sha256)
        .where(kept.name == artifact, tuple_(kept.model, kept.version) > (after.model, after.version))
        .where(~exists().where(needs.model == kept.model, needs.version == kept.version))
        .order_by(kept.model, kept.version)
        .limit(limit)
    )
    return [(VersionName(row.model, row.version), row.sha256) for row in connection.execute(asked)]


def set_needs(connection: Connection, model: str, version: int, needs: Sequence[VersionName]) -> None:
    """See the port."""
    require_version(connection, model, version)
    of: dict[str, object] = {"model": model, "version": version}
    connection.execute(delete(version_needs).where(version_needs.c.model == model, version_needs.c.version == version))
    there = {(need.model, need.version) for need in needs if _exists(connection, need)}
    if there:
        rows = [{**of, "needed_model": name, "needed_version": number} for name, number in sorted(there)]
        connection.execute(insert(version_needs), rows)


def _exists(connection: Connection, version: VersionName) -> bool:
    try:
        require_version(connection, version.model, version.version)
    except MeshError:
        return False
    return True
