"""The child process that reads a manifest nobody trusts yet: ``python check_manifest.py FILE MEMORY_BYTES CPU_S``.

Limits itself before it reads: a manifest of a million pictures takes seconds and gigabytes, which the registry's own process
must not spend. Answers one line of JSON on standard output, ``{"ok": true, "summary": …}`` or ``{"ok": false, "reason": …,
"message": …}``, and after a good one the digests of the pictures, one a line. Knows no registry.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from services.registry.check_model import limit
from splitmesh.errors import MeshError, Reason

MAX_SITES = 1000
"""Named in a summary; a dataset of more is refused."""
MAX_SUMMARY_BYTES = 256 * 1024
_PANIC = "PanicException"
"""What the parser raises, beside MemoryError, when it gets no memory; no module exports it."""


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What to answer, and the digests."""
    from splitmesh.datasets.manifest import Dataset  # imported here: inside the limits

    try:
        dataset = Dataset.from_json(path.read_bytes())
    except MeshError as error:
        return _refusal(error.reason, error.message), []
    except BaseException as error:
        if isinstance(error, MemoryError) or type(error).__name__ == _PANIC:
            return _refusal(Reason.FRAME_TOO_LARGE, "reading it takes too much memory"), []
        raise
    sites = sorted({entry.site for entry in dataset.entries})
    summary = {
        "task": dataset.task,
        "classes": list(dataset.classes),
        "sites": sites,
        "pictures": len(dataset.entries),
        "picture_bytes": sum(entry.picture_bytes for entry in dataset.entries),
        "splits": [
            {"split": split, "pictures": found.pictures, "groups": found.groups, "labels": found.labels}
            for split, found in dataset.statistics.splits.items()
        ],
    }
    size_bytes = len(json.dumps(summary))
    if len(sites) > MAX_SITES or size_bytes > MAX_SUMMARY_BYTES:
        problem = (
            f"manifest: names {len(sites)} sites and {len(dataset.classes)} classes, which is more than can be listed"
        )
        return _refusal(Reason.FRAME_TOO_LARGE, problem), []
    return {"ok": True, "summary": summary}, [entry.picture for entry in dataset.entries]


def _refusal(reason: Reason, message: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason.value, "message": message}


if __name__ == "__main__":
    limit(int(sys.argv[2]), int(sys.argv[3]))
    verdict, digests = read(Path(sys.argv[1]))
    print("\n".join([json.dumps(verdict), *digests]))
