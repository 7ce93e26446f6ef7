"""The versions that a version runs with: read from its list of alternatives, also for what an older release made."""

from __future__ import annotations

import asyncio
import logging

from services.registry.content.port import ContentStore
from services.registry.metadata.port import MetadataStore
from services.registry.names import check_number
from splitmesh.errors import MeshError
from splitmesh.model.alternatives import ALTERNATIVES, MAX_ALTERNATIVES_BYTES, AlternativeSet
from splitmesh.model.lineage import VersionName

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Lists read at once."""


async def read_needs(contents: ContentStore, model: str, sha256: str) -> tuple[VersionName, ...]:
    """Versions that a list of alternatives names; they may not exist.

    Raises:
        MeshError: MODEL_CORRUPT, it is no such list; FIELD_INVALID, it names what is no version; those of the contents.
    """
    # One byte more than allowed is enough for the list's own check to refuse it.
    text = await contents.read(sha256, 0, MAX_ALTERNATIVES_BYTES + 1)
    versions = [one.version for one in AlternativeSet.from_json(text).alternatives if one.version]
    for version in versions:
        check_number(ALTERNATIVES, version)
    return tuple(VersionName(model, version) for version in versions)


class OlderNeeds:
    """Has the database know what the versions in it run with that an older release made. Both stores are started.

    Args:
        store: of the versions.
        contents: of their lists.
    """

    def __init__(self, store: MetadataStore, contents: ContentStore) -> None:
        self._store = store
        self._contents = contents

    async def start(self) -> None:
        """What cannot be read is logged and passed over until the next start; SERVICE_UNAVAILABLE, the database is away."""
        after = VersionName("", 0)
        while found := await self._store.without_needs(ALTERNATIVES, after, AT_ONCE):
            await asyncio.gather(*(self._keep(version, sha256) for version, sha256 in found))
            after = found[-1][0]

    async def stop(self) -> None:
        """There is nothing to end."""

    async def _keep(self, version: VersionName, sha256: str) -> None:
        try:
            needs = await read_needs(self._contents, version.model, sha256)
            await self._store.set_needs(version.model, version.version, needs)
        except (MeshError, OSError) as error:
            named = f"{version.model}:{version.version}"
            log.warning("the alternatives of %s are not known and can be deleted under it: %s", named, error)
