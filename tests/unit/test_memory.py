"""Memory that one frame freed is there for the next one, without the system's help."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from splitmesh.kernel.memory import VARIABLES

PROGRAM = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from splitmesh.kernel.memory import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "kept" else False)

def frame(_):
    blocks = [bytearray(600_000) for _ in range(4)]
    return len(blocks)

with ThreadPoolExecutor(1) as worker:
    list(worker.map(frame, range(5)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    list(worker.map(frame, range(200)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def faults(mode: str, **environment: str) -> tuple[bool, int]:
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, env=clean | environment
    )
    was_set, count = done.stdout.split()
    return was_set == "True", int(count)


@glibc
def test_large_blocks_are_reused_without_page_faults() -> None:
    _, plain = faults("plain")
    was_set, kept = faults("kept")
    assert was_set
    assert kept < plain / 5


@glibc
def test_an_operator_who_set_glibc_himself_decides() -> None:
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] is False
