"""What a process and all it started cost: processor time and memory, from /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def tree_cpu_s(root: int) -> float:
    """User and system seconds of ``root``, of all that live below it, and of its children that ended."""
    fields = _below(root)
    own = sum(int(entry[11]) + int(entry[12]) for entry in fields.values())
    ended = sum(int(entry[13]) + int(entry[14]) for entry in fields.values())
    return (own + ended) * _TICK_S


def tree_pids(root: int) -> list[int]:
    """``root`` and all that live below it."""
    return list(_below(root))


def tree_memory_bytes(root: int) -> int:
    """Resident bytes that are a process's own, and each shared page once per process that shares it evenly (PSS)."""
    return sum(_pss(pid, int(entry[21])) for pid, entry in _below(root).items())


def _pss(pid: int, resident_pages: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resident_pages * _PAGE_BYTES


def _below(root: int) -> dict[int, list[str]]:
    """Fields of /proc/PID/stat behind the name, by process."""
    fields: dict[int, list[str]] = {}
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # ended meanwhile
                continue
            fields[int(entry.name)] = stat.rpartition(")")[2].split()
            children[int(fields[int(entry.name)][1])].append(int(entry.name))
    found, waiting = {}, [root]
    while waiting:
        pid = waiting.pop()
        if pid in fields:
            found[pid] = fields[pid]
            waiting += children[pid]
    return found
