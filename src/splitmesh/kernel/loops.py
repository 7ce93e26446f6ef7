"""An event loop for processes in which one loop ends while others go on: gRPC tells of what it cancelled a moment later.

All loops of a process share one gRPC poller. Whichever loop polls next hands on the ends of calls of other loops; an ordinary
loop that is closed by then answers with RuntimeError, which is raised among the polling loop's own events (grpcio 1.85).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any


class ForgivingLoop(asyncio.SelectorEventLoop):
    """As the original; what others hand it once it is closed is nobody's concern any more."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As the original, and nothing once the loop is closed."""
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)
