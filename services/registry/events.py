"""Who did what and when, in pages. The stores write the events themselves, each with its act."""

from __future__ import annotations

from collections.abc import Sequence

from services.registry.metadata.port import MetadataStore
from services.registry.metadata.records import Event
from services.registry.names import check_model_name
from splitmesh.kernel.pages import number_from_token, page, page_size


class Events:
    """Events of one registry."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store

    async def list(self, name: str, asked: int, token: str) -> tuple[Sequence[Event], str]:
        """One page, newest first, and the token of the next, empty after the last; of one name unless it is empty."""
        if name:
            check_model_name(name, "name")
        size, kind = page_size(asked), f"events:{name}"
        found = await self._store.list_events(name, number_from_token(kind, token), size + 1)
        return page(kind, found, size, lambda event: event.sequence)
