"""A process that has loaded what a registry needs and makes real registries by forking, each within milliseconds.

Run as ``python -m tests.support.registry_nursery``. A line on standard input, JSON, asks for one: ``folder`` and ``prelude``,
code that runs in it first. A line on standard output answers: ``pid`` and ``address``, or ``error``.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from services.registry.app import build
from splitmesh.kernel.lifecycle import Host
from tests.integration.registry_world import ROOT, WAIT_S, settings_for


class Nursery:
    """The process, as a test sees it; :func:`nursery` starts and ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @asynccontextmanager
    async def registry(self, folder: Path, prelude: str = "") -> AsyncIterator[str]:
        """The address of a registry of its own, which is killed by SIGKILL at the end at the latest, and gone then."""
        async with asyncio.timeout(WAIT_S):
            born = json.loads(
                await asyncio.to_thread(self._ask, json.dumps({"folder": str(folder), "prelude": prelude}))
            )
        assert "error" not in born, born
        descriptor = os.pidfd_open(born["pid"])
        try:
            yield born["address"]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            ended, _, _ = select.select([descriptor], [], [], WAIT_S)
            os.close(descriptor)
            assert ended, "a registry outlived SIGKILL"

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery for the block."""
    command = [sys.executable, "-m", "tests.support.registry_nursery"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Nursery(process)
        finally:
            process.kill()


def _main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked = json.loads(line)
            exec(asked["prelude"], {})
            asyncio.run(_serve(Path(asked["folder"])))


async def _serve(folder: Path) -> None:
    try:
        async with Host("registry", settings_for(folder), build) as host:
            print(json.dumps({"pid": os.getpid(), "address": host.address}), flush=True)
            await asyncio.Event().wait()
    except Exception as error:
        print(json.dumps({"error": repr(error)}), flush=True)
        os._exit(1)


if __name__ == "__main__":
    _main()
