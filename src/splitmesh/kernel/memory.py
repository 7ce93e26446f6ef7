"""How this process keeps memory: what is freed, for the next frame; what stays, out of the garbage collector's way.

By default glibc gives large blocks back to the system as soon as they are free and asks for them again with the next frame:
about 100 page faults for a tensor of 0.6 MB, 0.3 ms of the 0.75 ms that gRPC takes for it (measured). Knows glibc's mallopt(3);
elsewhere nothing is changed there.

Python's collector looks at everything that lives, in one go, when enough has been added: 50 ms on a head with all its modules
(measured), in which no frame is answered, and mostly while frames pile up behind a link that is down.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 64 * 1024 * 1024
"""Free memory that each arena may keep; a process has at most eight arenas per core and seldom uses more than a few."""
MMAP_BYTES = 32 * 1024 * 1024
"""Smaller blocks come from an arena; the most that glibc takes."""
OPTIONS = {M_TRIM_THRESHOLD: KEPT_BYTES, M_MMAP_THRESHOLD: MMAP_BYTES}
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Who sets one of these decides alone."""


def keep_freed_memory() -> bool:
    """Reuse freed blocks for the next frame; whether that was set."""
    if any(name in os.environ for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        log.debug("this C library has no mallopt")
        return False
    return all(mallopt(option, value) == 1 for option, value in OPTIONS.items())


def settle() -> None:
    """Take what lives now (modules, settings, the app) as here to stay: the garbage collector looks at what comes later only."""
    gc.collect()
    gc.freeze()
