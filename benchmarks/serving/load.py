"""A closed loop of requests against one server, from a process of its own.

``measure`` starts it; the process takes its job on standard input and answers in JSON. It reads the server's processor time
itself, at the moments between which it counts.
"""

from __future__ import annotations

import asyncio
import base64
import json
import selectors
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.cost import tree_cpu_s, tree_memory_bytes
from benchmarks.serving.http1 import Http1Load, HttpCall
from benchmarks.serving.http2 import GrpcCall, Http2Load

ROOT = Path(__file__).resolve().parents[2]
SLOTS_PER_CONNECTION = 2
STALL_S = 20.0


@dataclass(frozen=True, slots=True)
class Load:
    """What one run saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Of the server's processes, per answer."""
    client_cpu_ms: float
    """Of the load client, per answer."""
    memory_mb: float
    answers: int
    errors: int


async def measure(
    address: str, call: GrpcCall | HttpCall, *, pid: int, concurrency: int, seconds: float, warm_up_s: float = 1.0
) -> Load:
    """Ask for so long with so many requests in flight; ``pid`` is the server's first process."""
    job = {
        "address": address,
        "kind": "grpc" if isinstance(call, GrpcCall) else "http",
        "call": {key: _text(value) for key, value in asdict(call).items()},
        "pid": pid,
        "concurrency": concurrency,
        "seconds": seconds,
        "warm_up_s": warm_up_s,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        answer, _ = await process.communicate(json.dumps(job).encode())
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"the load client failed against {address}")
    return Load(**json.loads(answer))


def _text(value: object) -> object:
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _value(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


def run(connections: Sequence[Http1Load | Http2Load], pid: int, seconds: float, warm_up_s: float) -> Load:
    """Drive the connections; TimeoutError when nothing is answered for ``STALL_S``."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
            connection.start()
        _turn(selector, connections, warm_up_s)
        for connection in connections:
            connection.finished.clear()
        cpu, own, begun = tree_cpu_s(pid), time.process_time(), time.perf_counter()
        _turn(selector, connections, seconds)
        elapsed, own_s, cpu_s = time.perf_counter() - begun, time.process_time() - own, tree_cpu_s(pid) - cpu
    finished = [entry for connection in connections for entry in connection.finished]
    times = [seconds * 1e3 for seconds, answered in finished if answered]
    if not times:
        raise RuntimeError(f"not one of {len(finished)} answers was what was asked for")
    return Load(
        per_s=len(times) / elapsed,
        p50_ms=float(np.percentile(times, 50)),
        p99_ms=float(np.percentile(times, 99)),
        cpu_ms=cpu_s * 1e3 / len(times),
        client_cpu_ms=own_s * 1e3 / len(times),
        memory_mb=tree_memory_bytes(pid) / 1e6,
        answers=len(times),
        errors=len(finished) - len(times),
    )


def _turn(selector: selectors.BaseSelector, connections: Sequence[Http1Load | Http2Load], seconds: float) -> None:
    until = time.perf_counter() + seconds
    answered, moved = 0, time.perf_counter()
    while (now := time.perf_counter()) < until:
        for key, events in selector.select(min(1.0, until - now)):
            connection = key.fileobj
            assert isinstance(connection, Http1Load | Http2Load)
            if events & selectors.EVENT_READ:
                connection.on_readable()
            if events & selectors.EVENT_WRITE:
                connection.on_writable()
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_to_write else 0)
            if wanted != key.events:
                selector.modify(connection, wanted)
        count = sum(len(connection.finished) for connection in connections)
        if count != answered:
            answered, moved = count, now
        elif now - moved > STALL_S:
            raise TimeoutError(f"no answer for {STALL_S} s")


def _main() -> None:
    job = json.load(sys.stdin)
    host, _, port = job["address"].rpartition(":")
    fields = {key: _value(value) for key, value in job["call"].items()}
    count = job["concurrency"]
    connections: list[Http1Load | Http2Load] = []
    if job["kind"] == "grpc":
        call = GrpcCall(**fields)
        for start in range(0, count, SLOTS_PER_CONNECTION):
            slots = min(SLOTS_PER_CONNECTION, count - start)
            connections.append(Http2Load(host, int(port), call, slots))
    else:
        connections += [Http1Load(host, int(port), HttpCall(**fields)) for _ in range(count)]
    json.dump(asdict(run(connections, job["pid"], job["seconds"], job["warm_up_s"])), sys.stdout)


if __name__ == "__main__":
    _main()
