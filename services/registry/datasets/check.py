"""Reads manifests in child processes with limits, so that no upload can hurt or hold up the registry.

Knows how to start, limit, read and end such a child. What a sound manifest is, ``splitmesh.datasets.manifest`` knows.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from services.registry.check import CheckLimits
from services.registry.limits import Slots
from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.child_env import child_environment

log = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("check_manifest.py")
_ROOT = Path(__file__).parents[3]
_LOGGED_CHARS = 2000
MAX_WAITING = 8
"""Manifests that are read or wait for it; one more is refused."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a sound manifest says."""

    summary: str
    """JSON: task, classes, sites, pictures, picture_bytes, splits (split, pictures, groups, labels)."""
    pictures: tuple[str, ...]
    """Digests, each once, sorted."""


class ManifestCheck:
    """Reads one at a time; a large one needs most of what a child may take."""

    def __init__(self, limits: CheckLimits, *, child: Path = _CHILD) -> None:
        self._limits = limits
        self._child = child
        self._places = Slots("checks of manifests", MAX_WAITING)
        self._free = asyncio.Semaphore(1)

    async def read(self, local: AbstractAsyncContextManager[Path]) -> Found:
        """What the manifest says.

        Args:
            local: the manifest as a file, entered when its turn has come: it may be a copy that takes room.

        Raises:
            MeshError: what ``Dataset.from_json`` found, FRAME_TOO_LARGE when the child hit one of its limits, QUEUE_FULL when
                many wait, and what ``local`` raises.
        """
        with self._places.take():
            async with self._free, local as path:
                output, errors, status = await self._run(path)
        if status < 0:
            raise self._too_large(f"was ended by signal {-status} under")
        if status > 0 or not output:
            log.error("the check of a manifest failed with status %d: %s", status, errors[-_LOGGED_CHARS:])
            raise MeshError(Reason.INTERNAL, "the manifest could not be checked; see the server's log")
        first, _, rest = output.partition("\n")
        verdict = json.loads(first)
        if not verdict["ok"]:
            raise _refused(Reason(verdict["reason"]), verdict["message"])
        return Found(json.dumps(verdict["summary"], sort_keys=True, ensure_ascii=False), tuple(rest.split()))

    async def _run(self, path: Path) -> tuple[str, str, int]:
        limits = self._limits
        # -P: the folder of the script must not shadow other modules; -B: the child may write no files.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-B", str(self._child)),
            *(str(path), str(limits.check_memory_bytes), str(limits.check_cpu_s)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                **child_environment(os.environ),
                "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
            },
        )
        try:
            async with asyncio.timeout(limits.check_deadline_s):
                output, errors = await process.communicate()
        except TimeoutError as error:
            raise self._too_large(f"was not done within {limits.check_deadline_s} s under") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return output.decode(errors="replace"), errors.decode(errors="replace"), process.returncode or 0

    def _too_large(self, what: str) -> MeshError:
        memory_mib, cpu_s = self._limits.check_memory_bytes // (1024 * 1024), self._limits.check_cpu_s
        return MeshError(
            Reason.FRAME_TOO_LARGE,
            f"manifest: reading it {what} the limits of {memory_mib} MiB and {cpu_s} s of processor time",
        )


def _refused(reason: Reason, message: str) -> MeshError:
    fields = [("manifest", message.removeprefix("manifest: "))] if reason is Reason.FIELD_INVALID else []
    return MeshError(reason, message, fields=fields)
