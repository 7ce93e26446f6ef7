"""What many followers cost a registry: thousands of watchers of one alias that moves, and a herd that pulls one head at once.

*Seen*: from the moment an operator asks for the move until a watcher has the message, the move's transaction on disk included.
Every watcher is a real stream, in two client processes beside the registry on the same cores. *Herd*: clients in one process ask
for the same artefact at the same moment; the registry serves 64 at once (its default) and tells the others to come again, which
they do. The baseline is one client alone. Memory is the registry's resident set, at the end for watchers, the peak for the herd.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, publish
from benchmarks.registry_process import registry_world
from benchmarks.registry_watchers import Crowd, watch
from examples.solder_joints.demo import SHIPPED_MODEL
from splitmesh.cli.model_parts import version_parts
from splitmesh.client.registry import ArtifactRef, RegistryClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery

MODEL, ALIAS = "followed", "production"
HERD_BYTES = 20_000_000
PROCESSES = 2
MAX_SEEN_P99_S = 2.0


async def prepare(registry: RegistryClient) -> ArtifactRef:
    """Two versions of a model, the second with a large artefact, and an alias; that artefact."""
    parts = version_parts(SHIPPED_MODEL / "model.onnx", None, SHIPPED_MODEL / "preprocess.json", None)
    large = {**parts, "head.bin": np.random.default_rng(0).bytes(HERD_BYTES)}
    versions = [await registry.create_version(MODEL, one, created_by="benchmark") for one in (parts, large)]
    await registry.set_alias(MODEL, ALIAS, 1)
    return versions[1].artifacts["head.bin"]


async def watched(watchers: int, moves: int, progress: Progress) -> dict[str, object]:
    """One row: so many watchers, so many moves one after the other."""
    task = progress.add_task(f"{watchers} watchers", total=moves)
    context = multiprocessing.get_context("spawn")
    async with registry_world() as found:
        await prepare(found.registry)
        before_mb = found.memory_mb
        pipes: list[Connection] = []
        for part in range(PROCESSES):
            mine, theirs = context.Pipe()
            share = watchers // PROCESSES + (part < watchers % PROCESSES)
            crowd = Crowd(found.running.address, MODEL, ALIAS, share)
            context.Process(target=watch, args=(crowd, theirs), daemon=True).start()
            pipes.append(mine)
        await asyncio.gather(*(asyncio.to_thread(pipe.recv) for pipe in pipes))
        with_mb, cpu_s = found.memory_mb, found.cpu_s
        seen_s: list[float] = []
        for move in range(moves):
            for pipe in pipes:
                pipe.send("next")
            asked = time.monotonic_ns()
            await found.registry.set_alias(MODEL, ALIAS, 2 - move % 2)
            for times in await asyncio.gather(*(asyncio.to_thread(pipe.recv) for pipe in pipes)):
                seen_s += [(moment - asked) / 1e9 for moment in times]
            progress.advance(task)
        cpu_s, peak_mb = found.cpu_s - cpu_s, found.memory_mb
        for pipe in pipes:
            pipe.send("stop")
    return {
        "what": f"{watchers} watchers",
        "n": len(seen_s),
        "p50_s": float(np.percentile(seen_s, 50)),
        "p99_s": float(np.percentile(seen_s, 99)),
        "worst_s": max(seen_s),
        "cpu_ms_each": cpu_s / len(seen_s) * 1e3,
        "memory_mb": peak_mb,
        "kb_each": (with_mb - before_mb) * 1e3 / watchers,
    }


async def herded(clients: int, progress: Progress) -> dict[str, object]:
    """One row: so many clients pull the same artefact at once, each with a connection of its own."""
    task = progress.add_task(f"{clients} pulls", total=clients)
    async with registry_world() as found:
        ref, peak_mb = await prepare(found.registry), found.memory_mb
        took_s: list[float] = []

        async def pull() -> None:
            channels = Channels(StaticDiscovery({"registry": [found.running.address]}))
            try:
                await RegistryClient(channels).pull_artifact(ref)
                took_s.append(time.perf_counter() - began)
                progress.advance(task)
            finally:
                await channels.close()

        began = time.perf_counter()
        pulls = asyncio.gather(*(pull() for _ in range(clients)))
        while not pulls.done():
            await asyncio.wait([pulls], timeout=0.1)
            peak_mb = max(peak_mb, found.memory_mb)
        await pulls
        cpu_s = found.cpu_s
    return {
        "what": f"{clients} pulls of {HERD_BYTES // 10**6} MB",
        "n": clients,
        "p50_s": float(np.percentile(took_s, 50)),
        "p99_s": float(np.percentile(took_s, 99)),
        "worst_s": max(took_s),
        "cpu_ms_each": cpu_s / clients * 1e3,
        "memory_mb": peak_mb,
        "kb_each": clients * HERD_BYTES / max(took_s) / 1e6,
    }


async def compare(watchers: tuple[int, ...], moves: int, herds: tuple[int, ...]) -> None:
    """Every row."""
    with Progress(transient=True) as progress:
        rows = [await watched(count, moves, progress) for count in watchers]
        pulls = [await herded(count, progress) for count in herds]
    worst = max(float(str(row["p99_s"])) for row in rows)
    rates = [float(str(row.pop("kb_each"))) for row in pulls]
    for row, rate in zip(pulls, rates, strict=True):
        row["kb_each"] = f"{rate:.0f} MB/s"
    publish(
        Result(
            name="registry_load",
            n=sum(int(str(row["n"])) for row in rows + pulls),
            baseline="one client that pulls alone",
            goal=f"p99 until seen <= {MAX_SEEN_P99_S} s",
            measured=f"p99 {worst:.2f} s; {rates[-1] / rates[0]:.2f}x the lone client's throughput under the herd",
            met=worst <= MAX_SEEN_P99_S,
            rows=rows + pulls,
        )
    )


def main() -> None:
    """Entry point."""
    if arguments(__doc__).quick:
        asyncio.run(compare((200,), 3, (1, 10)))
    else:
        asyncio.run(compare((1000, 5000), 20, (1, 50, 200)))


if __name__ == "__main__":
    main()
