"""Calls that wait for a disk, off the event loop. A disk that hangs keeps the process neither from stopping nor from ending:
nobody joins these threads, as the interpreter and asyncio join those of an executor. What they run must therefore leave the
disk whole wherever it ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class DiskCalls:
    """At most ``most`` calls at once; others wait their turn, also for calls that nobody waits for any more."""

    def __init__(self, most: int, name: str) -> None:
        self._name = name
        self._free = asyncio.Semaphore(most)

    async def do(self, work: Callable[[], T]) -> T:
        """What it returns or raises. Who is cancelled stops waiting; a call that has begun goes on."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()  # from now on nobody else can end it

        def call() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._free.release)

        try:
            threading.Thread(target=call, name=self._name, daemon=True).start()
        except RuntimeError:  # no more threads are to be had
            self._free.release()
            raise
        return await asyncio.wrap_future(done)
