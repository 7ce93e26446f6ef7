"""Calls that wait for a disk: they hold up nobody but who asked, not even a process that ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from functools import partial

import pytest

from edge.head.disk import DiskCalls

WAIT_S = 20.0

HANGS = """
import asyncio, threading
from edge.head.disk import DiskCalls

async def main():
    begun = threading.Event()
    def hang():
        begun.set()
        threading.Event().wait()
    call = asyncio.create_task(DiskCalls(1, "disk").do(hang))
    while not begun.is_set():
        await asyncio.sleep(0)
    call.cancel()

asyncio.run(main())
print("ended")
"""


async def test_a_call_returns_and_raises_what_its_work_does() -> None:
    disk = DiskCalls(1, "disk")
    assert await disk.do(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await disk.do(lambda: 1 // 0)
    assert await disk.do(lambda: threading.current_thread().name) == "disk"


async def test_a_call_waits_for_one_that_nobody_waits_for_any_more() -> None:
    disk = DiskCalls(1, "disk")
    begun, goes_on = threading.Event(), threading.Event()
    done: list[str] = []

    def slow() -> None:
        begun.set()
        goes_on.wait(WAIT_S)
        done.append("first")

    first = asyncio.create_task(disk.do(slow))
    assert await asyncio.to_thread(begun.wait, WAIT_S)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(disk.do(partial(done.append, "second")))
    await asyncio.sleep(0)
    assert not second.done()
    goes_on.set()
    await second
    assert done == ["first", "second"]


async def test_who_is_cancelled_while_it_waits_its_turn_is_never_begun() -> None:
    disk = DiskCalls(1, "disk")
    goes_on = threading.Event()
    done: list[str] = []
    first = asyncio.create_task(disk.do(partial(goes_on.wait, WAIT_S)))
    second = asyncio.create_task(disk.do(partial(done.append, "second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    goes_on.set()
    await first
    await disk.do(partial(done.append, "third"))
    assert done == ["third"]


def test_a_process_ends_while_a_disk_hangs() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert ended.stdout == "ended\n"
