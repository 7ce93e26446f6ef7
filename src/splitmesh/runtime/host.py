"""What this host is: processor, cores, memory, GPUs, and what computes segments here. Pure: no network, no telemetry.

``fingerprint`` covers all that a measurement depends on: a choice that was made by measuring holds while it stays, and is made
again when it changes. :func:`describe_host` loads every installed back end; who must not (because a driver may crash, or to
stay small) has it done by a child process with :func:`describe_host_apart`, which is this module run as a program.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.host_backends import BackendFacts, find_backends
from splitmesh.runtime.host_limits import usable_cpus, usable_memory_bytes

_FLAGS = """
    sse4_2 avx avx2 fma f16c avx_vnni avx_vnni_int8 avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx512_fp16
    amx_tile amx_int8 amx_bf16 amx_fp16 neon asimdhp asimddp fphp i8mm bf16 sve sve2 sme
"""
FLAGS = frozenset(_FLAGS.split())
"""Instruction sets that matter for inference, by the kernel's names; ARM's ``asimd`` is called neon."""
GPU_QUESTION = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
GPU_TIMEOUT_S = 10.0
APART_TIMEOUT_S = 120.0
"""Loading a back end for a GPU for the first time takes tens of seconds."""
MIB = 1 << 20

Run = Callable[[Sequence[str], float], str]


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A graphics processor."""

    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a host is and can do."""

    cpu_model: str
    cpu_flags: tuple[str, ...]
    """Those of :data:`FLAGS` that it has, sorted."""
    cpus: float
    """Cores that it may keep busy, by affinity and quota; may be a fraction."""
    memory_bytes: int
    """That it may use; 0: unknown."""
    architecture: str
    os: str
    """Operating system and kernel."""
    gpus: tuple[GpuFacts, ...] = ()
    backends: tuple[BackendFacts, ...] = ()

    @property
    def cores(self) -> int:
        """Whole cores, at least 1."""
        return max(1, int(self.cpus))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what a measurement depends on.

        Not the memory, which decides whether something fits and not how quick it is, not the kernel's release, and not the
        words of a reason.
        """
        depends = [
            self.cpu_model,
            self.cpu_flags,
            self.cpus,
            self.architecture,
            [asdict(gpu) for gpu in self.gpus],
            [[one.name, one.version, one.precisions, not one.unusable] for one in self.backends],
        ]
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> HostFacts:
        """The inverse. Raises ValueError, KeyError or TypeError for anything else."""
        made: dict[str, Any] = json.loads(text)
        gpus = tuple(GpuFacts(**one) for one in made.pop("gpus"))
        backends = tuple(
            BackendFacts(**{**one, "precisions": tuple(one["precisions"])}) for one in made.pop("backends")
        )
        return cls(**{**made, "cpu_flags": tuple(made["cpu_flags"])}, gpus=gpus, backends=backends)


def describe_host(
    *,
    root: Path = Path("/"),
    run: Run | None = None,
    backends: Callable[[], Sequence[BackendFacts]] = find_backends,
) -> HostFacts:
    """This host as it is now; takes seconds the first time.

    Args:
        root: where ``proc`` and ``sys`` are.
        run: runs a command for so many seconds at most and gives what it prints; raises OSError or SubprocessError.
        backends: who looks for back ends.
    """
    text = _cpuinfo(root)
    return HostFacts(
        cpu_model=_first(text, ("model name", "Model", "cpu model", "Hardware")) or _processor(),
        cpu_flags=_flags(text),
        cpus=usable_cpus(root),
        memory_bytes=usable_memory_bytes(root),
        architecture=platform.machine() or "unknown",
        os=f"{platform.system()} {platform.release()}",
        gpus=find_gpus(run or _run),
        backends=tuple(backends()),
    )


def describe_host_apart(environment: Mapping[str, str], *, timeout_s: float = APART_TIMEOUT_S) -> HostFacts:
    """:func:`describe_host` by a child process: a crash of a driver stays there, and so does the memory. Blocking.

    Raises MeshError NOT_READY when the child fails or takes longer.
    """
    command = [sys.executable, "-m", "splitmesh.runtime.host"]
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=True,
            text=True,
        )
        return HostFacts.from_json(done.stdout.strip().splitlines()[-1])
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no word"])[-1]
        problem = f"ended with {error.returncode}: {last[:200]}"
    except subprocess.TimeoutExpired:
        problem = f"took longer than {timeout_s:g} s"
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        problem = f"did not say anything of use: {error}"
    raise MeshError(Reason.NOT_READY, f"looking at what is installed on this host {problem}", retry_after_s=60.0)


def find_gpus(run: Run) -> tuple[GpuFacts, ...]:
    """NVIDIA's, as their own tool says; none where it is missing, fails or does not answer in time."""
    try:
        text = run(GPU_QUESTION, GPU_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return ()
    found = []
    for line in text.splitlines():
        # A name may hold a comma, the two figures after it do not.
        parts = [part.strip() for part in line.rsplit(",", 2)]
        if len(parts) == 3 and parts[0] and parts[1].isdecimal():
            found.append(GpuFacts(parts[0], int(parts[1]) * MIB, parts[2]))
    return tuple(found)


def _run(command: Sequence[str], timeout_s: float) -> str:
    done = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=True, text=True
    )
    return done.stdout


def _cpuinfo(root: Path) -> str:
    try:
        return (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""


def _first(text: str, names: Sequence[str]) -> str:
    """The first of these that is there, in this order."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and value.strip():
            values.setdefault(name.strip(), value.strip())
    return next((values[name] for name in names if name in values), "")


def _flags(text: str) -> tuple[str, ...]:
    """What every core has: with cores of two kinds, a thread may run on either."""
    sets = [
        {"neon" if word == "asimd" else word for word in value.split()}
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon and name.strip() in ("flags", "Features")
    ]
    return tuple(sorted(FLAGS.intersection(*sets))) if sets else ()


def _processor() -> str:
    return platform.processor() or f"{platform.system()} {platform.machine()}"


def main() -> None:
    """One line of JSON; what libraries print meanwhile goes to standard error."""
    keep = os.dup(1)
    os.dup2(2, 1)
    text = describe_host().to_json()
    os.write(keep, text.encode() + b"\n")


if __name__ == "__main__":
    main()
