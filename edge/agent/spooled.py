"""What waits in the spools of this host's heads. Knows where a head keeps its spool, nothing of what is in it."""

from __future__ import annotations

from pathlib import Path

from splitmesh.spool.peek import peek

FOLDER = "spool"
"""Below a head's `data_dir`, or below the folder of each of its processes."""


def spooled(head_data_dir: Path | None) -> tuple[int, int]:
    """Records that wait for the link, and that were dropped; nothing where no folder is known. Blocking."""
    if head_data_dir is None:
        return 0, 0
    return peek([head_data_dir / FOLDER, *sorted(head_data_dir.glob(f"replica-*/{FOLDER}"))])
