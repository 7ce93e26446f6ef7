"""To worker threads and back to the event loop, for frames so small that the way counts.

``ThreadPoolExecutor`` makes a future with locks for each call and wakes the loop for each result: 0.2 ms of processor time a
frame on a loaded loop, as much as a small model (measured). Here a call is one entry of a queue, and results that are ready
together wake the loop once. Knows calls, nothing of what they compute.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from weakref import WeakSet

log = logging.getLogger(__name__)

Call = Callable[[], object]

EXIT_WAIT_S = 10.0
"""Longest wait for calls in progress when the interpreter ends: native code must not outlive it."""


class Threads:
    """At most ``most`` threads, started as they are needed."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._outstanding = 0
        """Calls that were started and have not ended."""
        self._threads: list[threading.Thread] = []
        self._closed = False

    def start(self, call: Call) -> None:
        """Run it as soon as a thread is free; what it raises is logged. RuntimeError after ``close``."""
        with self._lock:
            if self._closed:
                raise RuntimeError("these threads were let go")
            self._outstanding += 1
            self._calls.put(call)
            if self._outstanding > len(self._threads) and len(self._threads) < self._most:
                self._grow()

    def close(self, *, cancel: bool = False) -> None:
        """Let every thread go when its calls are done; with ``cancel`` calls that wait are dropped."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with suppress(Empty):
                while cancel:
                    self._calls.get_nowait()
            for _ in self._threads:
                self._calls.put(None)

    def join(self, timeout_s: float | None = None) -> None:
        """Wait, after ``close``, until the threads have ended, for each at most ``timeout_s`` seconds."""
        for thread in self._threads:
            thread.join(timeout_s)

    def _grow(self) -> None:
        if not self._threads:
            _end_with_interpreter(self)
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException:  # the thread is needed for the next call
                log.exception("a call in %s failed", self._name)
            del call  # nothing of it is kept while nothing is to do
            with self._lock:
                self._outstanding -= 1


class Teller:
    """Calls from any thread on one event loop, those that come together in one wake-up of it, in their order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Call] = deque()
        self._lock = threading.Lock()
        self._woken = False

    def tell(self, call: Call) -> None:
        """Run it on the loop soon; nothing where the loop is closed, as nobody waits any more."""
        self._waiting.append(call)
        with self._lock:
            if self._woken:
                return
            self._woken = True
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        with self._lock:
            self._woken = False
        while self._waiting:
            try:
                self._waiting.popleft()()
            except Exception:  # the others are told all the same
                log.exception("a result could not be told")


_alive: WeakSet[Threads] = WeakSet()


def _end_with_interpreter(threads: Threads) -> None:
    if not _alive:
        atexit.unregister(_end_all)
        atexit.register(_end_all)
    _alive.add(threads)


def _end_all() -> None:
    ending = list(_alive)
    for threads in ending:
        threads.close(cancel=True)
    for threads in ending:
        threads.join(EXIT_WAIT_S)
