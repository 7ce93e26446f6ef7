"""A kept report for who asks: as data, and as a page with the pictures that never left this machine before."""

from __future__ import annotations

import asyncio

from services.compressor.store import Store
from splitmesh.compress.report import Report
from splitmesh.errors import MeshError, Reason


class Reports:
    """Reads what the store keeps.

    Args:
        store: of the compressions.
        max_bytes: of an answer; a larger one is refused with FRAME_TOO_LARGE.
    """

    def __init__(self, store: Store, *, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes

    async def read(self, compression_id: str, *, with_html: bool) -> tuple[str, str]:
        """JSON, and the page or nothing. MODEL_CORRUPT when the report is damaged."""
        return await asyncio.to_thread(self._read, compression_id, with_html)

    def _read(self, compression_id: str, with_html: bool) -> tuple[str, str]:
        content = self._store.report(compression_id)
        report = Report.from_json(content)
        html = ""
        if with_html:
            from splitmesh.compress.report_html import render  # draws; only for who wants a page

            html = render(report, self._store.pictures(compression_id))
        if (size := len(content) + len(html.encode())) > self._max_bytes:
            raise MeshError(Reason.FRAME_TOO_LARGE, f"the report has {size} bytes, more than {self._max_bytes}")
        return content.decode(), html
