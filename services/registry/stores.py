"""Which stores the settings ask for, SQLite and a folder unless there is a database or a bucket; that they belong together."""

from __future__ import annotations

from collections.abc import Callable

from services.registry.config import RegistrySettings
from services.registry.content.folder import FolderStore
from services.registry.content.port import ContentLimits, ContentStore
from services.registry.metadata.port import MetadataStore
from services.registry.metadata.sql_store import SqlStore
from splitmesh.sql.database import DatabaseLostError


class Claim:
    """Contents belong to one database: two that share them would each remove what the other one names. Both are started."""

    def __init__(self, store: MetadataStore, contents: ContentStore, *, adopt: bool) -> None:
        self._store = store
        self._contents = contents
        self._adopt = adopt

    async def start(self) -> None:
        """NOT_READY when the contents belong to another database, unless this one may take them over."""
        await self._contents.claim(await self._store.identity(), adopt=self._adopt)

    async def stop(self) -> None:
        """They stay this database's."""


def metadata_store(settings: RegistrySettings, on_lost: Callable[[DatabaseLostError], None]) -> MetadataStore:
    """Not started; ``on_lost`` is told when another registry has begun on its database."""
    if url := settings.database_url.get_secret_value():
        return SqlStore(url, lock_wait_s=settings.database_wait_s, on_lost=on_lost)
    return SqlStore.sqlite(settings.data_dir / "registry.sqlite3")


def content_store(settings: RegistrySettings) -> ContentStore:
    """Not started."""
    limits = ContentLimits(
        max_artifact_bytes=settings.max_artifact_bytes,
        max_store_bytes=settings.max_store_bytes,
        min_free_bytes=settings.min_free_bytes,
        upload_wait_s=settings.upload_wait_s,
        stale_upload_s=settings.stale_upload_s,
        sweep_every_s=settings.sweep_every_s,
    )
    if settings.contents_url:
        from services.registry.content.bucket import BucketStore  # imported here: fsspec is needed for nothing else

        return BucketStore(settings.contents_url, settings.data_dir, limits, storage_options=settings.storage_options())
    return FolderStore(settings.data_dir, limits, scrub_every_s=settings.scrub_every_s)
