"""Who sits at the terminal, for the registry's log."""

from __future__ import annotations

import getpass
import socket

MAX_CHARS = 100


def who() -> str:
    """``user@machine``, as the system says; nobody's word for anything: keys are what proves who somebody is."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"[:MAX_CHARS]
