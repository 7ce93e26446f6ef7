"""A process on a weaker host: the kernel gives it only a share of one core's time (cgroup CPU quota, needs root)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PERIOD_US = 5000
"""Short, so that a frame is slowed down evenly and not stopped for long."""
_V1 = Path("/sys/fs/cgroup/cpu")
_V2 = Path("/sys/fs/cgroup")


def quota_available() -> str:
    """Why processes cannot be slowed down here; empty when they can."""
    try:
        with _group():
            return ""
    except OSError as error:
        return (
            f"this host gives no CPU quota ({error.strerror or error}): needs root and a writable cgroup cpu controller"
        )


@contextmanager
def slowed(pid: int, share: float) -> Iterator[None]:
    """Inside the block the process and what it starts get this share of one core; OSError where that is not possible."""
    quota = max(1000, round(share * PERIOD_US))
    with _group() as group:
        if (group / "cpu.cfs_quota_us").exists():
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
        (group / "cgroup.procs").write_text(str(pid))
        try:
            yield
        finally:
            with suppress(OSError):  # it may be gone already
                (group.parent / "cgroup.procs").write_text(str(pid))


@contextmanager
def _group() -> Iterator[Path]:
    root = _V1 if (_V1 / "cpu.cfs_quota_us").exists() or (_V1 / "cgroup.procs").exists() else _V2
    group = root / f"splitmesh-{os.getpid()}"
    group.mkdir()
    try:
        if not ((group / "cpu.cfs_quota_us").exists() or (group / "cpu.max").exists()):
            raise OSError("no cpu controller")
        yield group
    finally:
        with suppress(OSError):  # busy until the last process has ended
            group.rmdir()
