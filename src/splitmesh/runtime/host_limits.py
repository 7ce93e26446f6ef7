"""How much of its machine this process may use: cores and memory, by affinity and by control groups of version 1 and 2.

Reads what Linux writes below ``/proc`` and ``/sys/fs/cgroup``; every group from this process's own up to the root counts, the
tightest wins. Where nothing is written, as in other systems, the machine is the limit. Knows no model and no back end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes a number near 2^63 where no limit is set."""


def usable_cpus(root: Path = Path("/")) -> float:
    """Cores that this process may keep busy at once; a quota of half a core's time makes it 0.5."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(folder) for folder in (*_folders(root, "cpu"), *_folders(root, ""))]
    return min((float(own), *quotas))


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """Memory that this process and those beside it in its group may use; 0 where nobody says."""
    known = [_memory_total(root)]
    for folder in _folders(root, "memory"):
        known.append(_number(folder / "memory.limit_in_bytes"))
    for folder in _folders(root, ""):
        known.append(_number(folder / "memory.max"))
    return min((one for one in known if 0 < one < NO_LIMIT_BYTES), default=0)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group for a controller of version 1, or (empty) of version 2, and of all groups above it."""
    group = _group(root, controller)
    if group is None:
        return
    base = root / "sys/fs/cgroup" / controller
    own = PurePosixPath(group.lstrip("/"))
    # Within a container the group's path is often the host's, which is not there: what is, is the mounted root.
    for part in (own, *own.parents):
        if ".." not in part.parts and (folder := base / part).is_dir():
            yield folder


def _group(root: Path, controller: str) -> str | None:
    """Line ``4:memory:/group`` of version 1, ``0::/group`` of version 2."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if (controller and controller in names.split(",")) or (not controller and number == "0" and not names):
            return path
    return None


def _quota(folder: Path) -> float:
    """Cores by ``cpu.max`` (version 2) or ``cpu.cfs_quota_us`` (version 1); infinite without one."""
    text = _text(folder / "cpu.max").split()
    if not text:
        text = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
    try:
        quota, period = float(text[0]), float(text[1])
    except (ValueError, IndexError):  # "max", "" or no such file
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _memory_total(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            words = value.split()
            return int(words[0]) * 1024 if words and words[0].isdecimal() else 0
    return 0


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
