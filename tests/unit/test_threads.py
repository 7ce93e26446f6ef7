"""Calls run in as many threads as allowed, outlive each other's failures, and are told to the loop together."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from splitmesh.kernel.threads import Teller, Threads

WAIT_S = 10.0


def test_as_many_calls_run_at_once_as_there_are_threads() -> None:
    threads = Threads(2, "test")
    both, third = threading.Barrier(3), threading.Event()
    for _ in range(2):
        threads.start(lambda: both.wait(WAIT_S))
    threads.start(third.set)
    assert not third.is_set()
    both.wait(WAIT_S)
    assert third.wait(WAIT_S)
    threads.close()
    threads.join(WAIT_S)


def test_a_thread_is_started_only_when_it_is_needed() -> None:
    threads, names = Threads(8, "test"), set[str]()
    for _ in range(20):
        done = threading.Event()

        def call(done: threading.Event = done) -> None:
            names.add(threading.current_thread().name)
            done.set()

        threads.start(call)
        assert done.wait(WAIT_S)
        while threads._outstanding:  # the call has told that it is done, its thread not yet
            time.sleep(0)
    assert len(names) == 1
    threads.close()


def test_a_call_that_fails_leaves_its_thread_to_the_next(caplog: pytest.LogCaptureFixture) -> None:
    threads, done = Threads(1, "test"), threading.Event()
    threads.start(lambda: 1 / 0)
    threads.start(done.set)
    assert done.wait(WAIT_S)
    threads.close()
    threads.join(WAIT_S)
    assert "division by zero" in caplog.text


def test_after_the_close_calls_that_wait_are_done_unless_they_are_dropped() -> None:
    for cancel in (False, True):
        threads, begun, go, waited = Threads(1, "test"), threading.Event(), threading.Event(), threading.Event()

        def hold(begun: threading.Event = begun, go: threading.Event = go) -> None:
            begun.set()
            assert go.wait(WAIT_S)

        threads.start(hold)
        threads.start(waited.set)
        assert begun.wait(WAIT_S)
        threads.close(cancel=cancel)
        go.set()
        threads.join(WAIT_S)
        assert waited.is_set() is not cancel
        with pytest.raises(RuntimeError, match="let go"):
            threads.start(waited.set)


def test_a_program_that_ends_waits_for_the_call_in_progress_and_for_nothing_else() -> None:
    program = """
import threading, time
from splitmesh.kernel.threads import Threads
threads, begun = Threads(1, "test"), threading.Event()
def call():
    begun.set()
    time.sleep(0.2)
    print("done", flush=True)
threads.start(call)
threads.start(lambda: print("dropped", flush=True))
begun.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "done\n"


async def test_what_is_told_together_wakes_the_loop_once_and_keeps_its_order() -> None:
    loop, wakes, told = asyncio.get_running_loop(), 0, list[int]()
    all_told = asyncio.Event()

    class Counting:
        def call_soon_threadsafe(self, call: object) -> None:
            nonlocal wakes
            wakes += 1
            loop.call_soon_threadsafe(call)  # type: ignore[arg-type]

    teller = Teller(Counting())  # type: ignore[arg-type]
    for number in range(5):
        teller.tell(partial(told.append, number))
    teller.tell(all_told.set)
    async with asyncio.timeout(WAIT_S):
        await all_told.wait()
    assert told == [0, 1, 2, 3, 4]
    assert wakes == 1


async def test_nothing_told_from_many_threads_is_lost() -> None:
    teller, told, everything = Teller(asyncio.get_running_loop()), 0, asyncio.Event()

    def count() -> None:
        nonlocal told
        told += 1
        if told == 4000:
            everything.set()

    threads = Threads(4, "test")

    def tell() -> None:
        for _ in range(1000):
            teller.tell(count)

    for _ in range(4):
        threads.start(tell)
    async with asyncio.timeout(WAIT_S):
        await everything.wait()
    threads.close()


async def test_a_result_that_cannot_be_told_does_not_hold_back_the_next(caplog: pytest.LogCaptureFixture) -> None:
    teller, told = Teller(asyncio.get_running_loop()), asyncio.Event()
    teller.tell(lambda: 1 / 0)
    teller.tell(told.set)
    async with asyncio.timeout(WAIT_S):
        await told.wait()
    assert "could not be told" in caplog.text


def test_a_closed_loop_is_told_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    Teller(loop).tell(lambda: pytest.fail("nobody waits any more"))
