"""How much memory is left on this host for one more segment, as Linux tells it, control groups included."""

from __future__ import annotations

from pathlib import Path

UNKNOWN_BYTES = 1 << 60
"""Where nobody says: nothing is refused for it."""


def free_memory_bytes(root: Path = Path("/")) -> int:
    """What this process may still take without anything else having to go; caches of files count as free."""
    groups = root / "sys/fs/cgroup"
    left = [_available(root)]
    for limit, used, stat in (
        (groups / "memory.max", groups / "memory.current", groups / "memory.stat"),
        (
            groups / "memory/memory.limit_in_bytes",
            groups / "memory/memory.usage_in_bytes",
            groups / "memory/memory.stat",
        ),
    ):
        most, now = _number(_text(limit)), _number(_text(used))
        if most and now and most < UNKNOWN_BYTES:
            left.append(max(0, most - now + _entry(_text(stat), "inactive_file")))
    return min(left)


def _available(root: Path) -> int:
    words = [line.split() for line in _text(root / "proc/meminfo").splitlines()]
    return next((1024 * _number(line[1]) for line in words if line[:1] == ["MemAvailable:"]), UNKNOWN_BYTES)


def _entry(stat: str, name: str) -> int:
    return next((_number(line.split()[1]) for line in stat.splitlines() if line.split()[:1] == [name]), 0)


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdecimal() else 0  # "max" where there is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
