"""What a head costs on top of the model: OIP and InferenceService, alone and as streams, against the same session in process.

One float32 picture of 602 KB a request, a net of 0.3 ms and one of 4 ms, 1, 8 and 32 requests in flight from a lean client in a
process of its own. The baseline is the session alone, timed before and after each load: in one thread for one request in
flight, else in a thread per core, as two runs side by side cost each other caches and, on many hosts, half a core. Small
requests, what many cameras send, are measured beside it: a JPEG, decoded by the head. *gRPC alone* is a Python server that
takes the same messages and answers with as many bytes without looking at them: what no server on grpc.aio can go below.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, publish
from benchmarks.serving.asking import jpeg, jpeg_call, native_call, oip_call
from benchmarks.serving.bare import bare_server
from benchmarks.serving.head import PREPROCESS, serving_head
from benchmarks.serving.http2 import GrpcCall
from benchmarks.serving.load import Load, measure
from benchmarks.serving.nets import INPUT, NETS, OUTPUT, build, picture
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array

CONCURRENCY = (1, 8, 32)
CORES = os.cpu_count() or 1
MAX_ADDED_CPU_MS, MAX_ADDED_P50_MS = 0.8, 1.0
WARM_UP_RUNS = 20
STREAMED = "OIP stream"
BARE = "gRPC alone"

Content = bytes | dict[str, Array]
"""An encoded picture, or the model's input."""


@dataclass(frozen=True, slots=True)
class Alone:
    """The model without a server."""

    p50_ms: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """One net by one protocol with so many in flight."""

    net: str
    protocol: str
    concurrency: int
    load: Load
    alone: Alone

    @property
    def added_cpu_ms(self) -> float:
        """Of the head's process, per request."""
        return self.load.cpu_ms - self.alone.cpu_ms

    @property
    def added_p50_ms(self) -> float:
        """Of the client's clock; with more in flight than cores it is mostly waiting."""
        return self.load.p50_ms - self.alone.p50_ms


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    asyncio.run(compare(1.0, CONCURRENCY[:2], runs=50) if quick else compare(6.0, CONCURRENCY, runs=200))


async def compare(seconds: float, concurrency: tuple[int, ...], *, runs: int) -> None:
    """Both nets, every protocol; ``runs`` of the model alone before each load and after it."""
    found: list[Found] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("serving overhead", total=len(NETS) * len(concurrency) * 6)
        for net in NETS:
            sample = picture()
            session = open_session(build(net))
            scores = np.asarray(session.run({INPUT: sample})[OUTPUT], np.float32)
            still = jpeg()
            calls: dict[str, tuple[GrpcCall, Content]] = {
                STREAMED: (oip_call(net, sample, stream=True), {INPUT: sample}),
                "OIP unary": (oip_call(net, sample), {INPUT: sample}),
                "StreamInfer": (native_call(sample, scores, stream=True), {INPUT: sample}),
                "Infer": (native_call(sample, scores), {INPUT: sample}),
                f"StreamInfer, {len(still) // 1000} KB JPEG": (jpeg_call(still), still),
            }
            streamed = calls[STREAMED][0]
            async with bare_server(streamed.marker + scores.tobytes()) as served:
                for count in concurrency:
                    load = await measure(
                        served.address, streamed, pid=served.pid, concurrency=count, seconds=seconds, warm_up_s=0.5
                    )
                    found.append(Found(net, BARE, count, load, Alone(0.0, 0.0)))
                    progress.advance(task)
            async with serving_head(net) as served:
                for protocol, (call, content) in calls.items():
                    for count in concurrency:
                        threads = min(count, CORES)
                        before = _alone(session, content, threads, runs)
                        load = await measure(
                            served.address, call, pid=served.pid, concurrency=count, seconds=seconds, warm_up_s=0.5
                        )
                        after = _alone(session, content, threads, runs)
                        found.append(Found(net, protocol, count, load, _mean(before, after)))
                        progress.advance(task)
    publish(_result(found))


def _alone(session: Session, content: Content, threads: int, runs: int) -> Alone:
    """Median time and mean processor time of one run, of a picture with its decoding."""

    def once(_: int) -> float:
        start = time.perf_counter()
        session.run({INPUT: PREPROCESS.batch([content])} if isinstance(content, bytes) else content)
        return (time.perf_counter() - start) * 1e3

    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(once, range(WARM_UP_RUNS)))
        used = time.process_time()
        times = list(workers.map(once, range(runs)))
        cpu_ms = (time.process_time() - used) * 1e3
    return Alone(float(np.median(times)), cpu_ms / runs)


def _mean(one: Alone, other: Alone) -> Alone:
    return Alone((one.p50_ms + other.p50_ms) / 2, (one.cpu_ms + other.cpu_ms) / 2)


def _result(found: list[Found]) -> Result:
    judged = [one for one in found if one.protocol == STREAMED]
    bare = [one for one in found if one.protocol == BARE]
    cpu = max(one.added_cpu_ms for one in judged)
    p50 = max(one.added_p50_ms for one in judged if one.concurrency == 1)
    return Result(
        name="serving_overhead",
        n=sum(one.load.answers for one in found),
        baseline=f"the same session in this process, as many threads as in flight, at most {CORES}; client on the same cores",
        goal=f"by {STREAMED} at most {MAX_ADDED_CPU_MS} ms of CPU a request and, one at a time, {MAX_ADDED_P50_MS} ms of p50",
        measured=f"at most {cpu:.2f} ms of CPU and {p50:.2f} ms of p50 are added; gRPC alone takes up to "
        f"{max(one.added_cpu_ms for one in bare):.2f} and {max(one.added_p50_ms for one in bare if one.concurrency == 1):.2f}",
        met=cpu <= MAX_ADDED_CPU_MS and p50 <= MAX_ADDED_P50_MS,
        rows=[_row(one) for one in found],
    )


def _row(one: Found) -> dict[str, object]:
    return {
        "net": one.net,
        "protocol": one.protocol,
        "in_flight": one.concurrency,
        "per_s": round(one.load.per_s),
        "p50_ms": one.load.p50_ms,
        "p99_ms": one.load.p99_ms,
        "model_p50_ms": one.alone.p50_ms,
        "added_p50_ms": one.added_p50_ms,
        "cpu_ms": one.load.cpu_ms,
        "model_cpu_ms": one.alone.cpu_ms,
        "added_cpu_ms": one.added_cpu_ms,
        "client_cpu_ms": one.load.client_cpu_ms,
        "MB": round(one.load.memory_mb),
        "errors": one.load.errors,
    }


if __name__ == "__main__":
    main()
