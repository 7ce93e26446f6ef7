"""This host's figures for a heartbeat: processor, memory, disk. Read from /proc; 0 where that is not there."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from splitmesh.api.fleet.v1 import fleet_pb2

_IDLE, _IOWAIT = 3, 4
"""Columns of the first line of /proc/stat behind its name (proc(5))."""


class Vitals:
    """Of one host.

    Args:
        data_dir: whose disk is looked at.
        root: where ``proc`` is.
    """

    def __init__(self, data_dir: Path, root: Path = Path("/")) -> None:
        self._data_dir = data_dir
        self._root = root
        self._before = self._ticks()

    def read(self) -> fleet_pb2.Heartbeat:
        """As they are now; the processor's share is since the last call. Blocking, for a moment."""
        before, self._before = self._before, self._ticks()
        busy, all_of_it = (now - then for now, then in zip(self._before, before, strict=True))
        beat = fleet_pb2.Heartbeat(
            cpu_share=min(1.0, max(0.0, busy / all_of_it)) if all_of_it > 0 else 0.0, memory_bytes=self._memory_bytes()
        )
        with suppress(OSError):
            beat.disk_free_bytes = shutil.disk_usage(self._data_dir).free
        return beat

    def _ticks(self) -> tuple[int, int]:
        """Busy ones and all of them since the host started."""
        words = self._text("stat").partition("\n")[0].split()
        if words[:1] != ["cpu"] or not all(word.isdecimal() for word in words[1:]):
            return 0, 0
        # Guests' time (the last two) is counted in the first two already.
        ticks = [int(word) for word in words[1:9]]
        return sum(ticks) - sum(ticks[_IDLE : _IOWAIT + 1]), sum(ticks)

    def _memory_bytes(self) -> int:
        known: dict[str, int] = {}
        for line in self._text("meminfo").splitlines():
            name, _, value = line.partition(":")
            words = value.split()
            if words and words[0].isdecimal():
                known[name] = int(words[0]) * 1024
        return max(0, known.get("MemTotal", 0) - known.get("MemAvailable", 0))

    def _text(self, name: str) -> str:
        try:
            return (self._root / "proc" / name).read_text(encoding="ascii", errors="replace")
        except OSError:
            return ""
