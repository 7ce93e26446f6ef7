"""The rules of profiles: which model they belong to and how large they may be.

A profile is kept by the content of the whole model, so a split or compressed version finds those of the version that it
was made from. Knows nothing of how they are measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import ProfileRecord
from services.registry.names import check_model_name
from splitmesh.errors import MeshError, Reason, field_error
from splitmesh.model.manifest import WHOLE
from splitmesh.model.profile_data import Profile
from splitmesh.sql.times import utc_now

MAX_PROFILE_BYTES = 8 << 20
"""Of one profile as text; a thousand cuts take about 1 MiB."""


class Profiles:
    """Profiles of one registry."""

    def __init__(self, store: MetadataStore, *, max_reply_bytes: int, now: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._max_reply_bytes = max_reply_bytes
        self._now = now

    async def put(self, model: str, version: int, profile: Profile) -> None:
        """Keeps it; MODEL_NOT_FOUND, VERSION_NOT_FOUND, MODEL_INCOMPLETE, FIELD_INVALID (too large), STORAGE_FULL."""
        digest = await self._digest(model, version)
        content = profile.model_dump_json()
        size = len(content.encode())
        if size > MAX_PROFILE_BYTES:
            raise field_error("profile", f"takes {size} bytes; at most {MAX_PROFILE_BYTES} are kept")
        key = profile.key.model_dump_json()
        await self._store.put_profile(ProfileRecord(digest, key, profile.key.node, content, self._now()))

    async def list(self, model: str, version: int, node: str) -> list[tuple[Profile, datetime]]:
        """Newest first, as many as fit in a reply; only of one node unless it is empty. Raises as :meth:`put`."""
        digest = await self._digest(model, version)
        records = await self._store.list_profiles(digest, node, self._max_reply_bytes)
        return [(await asyncio.to_thread(Profile.from_json, one.content), one.update_time) for one in records]

    async def _digest(self, model: str, version: int) -> str:
        check_model_name(model)
        record = await self._store.get_version(model, version)
        for artifact in record.artifacts:
            if artifact.name == WHOLE:
                return artifact.sha256
        raise MeshError(
            Reason.MODEL_INCOMPLETE,
            f"version {version} of {model!r} has no {WHOLE}, so nothing to profile",
            metadata={"missing": WHOLE},
        )
