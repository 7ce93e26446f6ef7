"""Checks model files in child processes with limits, so that no upload can hurt the registry.

Knows how to start, limit, read and end such a child. What a sound model is, ``splitmesh.model.load`` knows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections import OrderedDict
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.child_env import child_environment

log = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("check_model.py")
_REMEMBERED = 1024
_LOGGED_CHARS = 2000


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """Bounds on one child; see the settings of the same names."""

    check_memory_bytes: int
    check_cpu_s: int
    check_deadline_s: float
    max_checks: int


@dataclass(frozen=True, slots=True)
class Interface:
    """What a sound model takes and gives, by name."""

    inputs: frozenset[str]
    outputs: frozenset[str]


class ModelCheck:
    """Runs the checks, a few at once; remembers what passed, because content never changes under its digest."""

    def __init__(self, limits: CheckLimits, *, child: Path = _CHILD) -> None:
        self._limits = limits
        self._child = child
        self._free = asyncio.Semaphore(limits.max_checks)
        self._passed: OrderedDict[str, Interface] = OrderedDict()

    async def check(self, name: str, sha256: str, local: AbstractAsyncContextManager[Path]) -> Interface:
        """What a sound model takes and gives.

        Args:
            name: what people call the file.
            sha256: of its content.
            local: the file; entered when its turn has come, because it may be a copy that takes room, and not at all when the
                content passed before.

        Raises:
            MeshError: what ``load_file`` found, MODEL_TOO_LARGE when the child hit one of its limits, or what ``local`` raises.
        """
        if sha256 in self._passed:
            return self._passed[sha256]
        async with self._free:
            if sha256 in self._passed:
                return self._passed[sha256]
            async with local as path:
                output, errors, status = await self._run(name, path)
        return self._interface(name, sha256, output, errors, status)

    def _interface(self, name: str, sha256: str, output: str, errors: str, status: int) -> Interface:
        if status < 0:
            raise self._too_large(name, f"was ended by signal {-status} under")
        if status > 0 or not output:
            log.error("the check of %s failed with status %d: %s", name, status, errors[-_LOGGED_CHARS:])
            raise MeshError(Reason.INTERNAL, f"{name} could not be checked; see the server's log")
        verdict = json.loads(output)
        if not verdict["ok"]:
            raise MeshError(Reason(verdict["reason"]), f"{name}: {verdict['message']}", metadata={"artifact": name})
        found = self._passed[sha256] = Interface(frozenset(verdict["inputs"]), frozenset(verdict["outputs"]))
        if len(self._passed) > _REMEMBERED:
            self._passed.popitem(last=False)
        return found

    async def _run(self, name: str, path: Path) -> tuple[str, str, int]:
        limits = self._limits
        # -P: the folder of the script must not shadow other modules; -B: the child may write no files.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-B", str(self._child)),
            *(str(path), str(limits.check_memory_bytes), str(limits.check_cpu_s)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # One thread: the address space of a thread pool would count against the limit.
            env={**child_environment(os.environ), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            async with asyncio.timeout(limits.check_deadline_s):
                output, errors = await process.communicate()
        except TimeoutError as error:
            raise self._too_large(name, f"was not done within {limits.check_deadline_s} s under") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return output.decode(errors="replace"), errors.decode(errors="replace"), process.returncode or 0

    def _too_large(self, name: str, what: str) -> MeshError:
        memory_mib, cpu_s = self._limits.check_memory_bytes // (1024 * 1024), self._limits.check_cpu_s
        return MeshError(
            Reason.MODEL_TOO_LARGE,
            f"{name}: checking it {what} the limits of {memory_mib} MiB and {cpu_s} s of processor time",
            metadata={"artifact": name},
        )
