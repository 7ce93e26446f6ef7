"""The same ONNX models behind other servers and behind a head: requests per second, latency, processor time and memory.

One float32 picture of 602 KB a request, the runtime with one thread, everything on this machine, a closed loop of 1, 8 and
32 requests in flight. All gRPC servers are asked by the same lean client (``serving/http2.py``), so that the two cores are
theirs; the HTTP ones by as lean a one. Servers run one after the other, in rounds; figures are medians of the rounds.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.harness import Result, arguments, publish
from benchmarks.serving.asking import native_call, oip_call
from benchmarks.serving.head import Served, serving_head
from benchmarks.serving.load import Load, measure
from benchmarks.serving.nets import INPUT, NETS, OUTPUT, build, picture
from benchmarks.serving.rivals import RIVALS, Call, Rival, SkippedError, install, serving
from splitmesh.runtime import open_session

COMPARED = (8, 32)
"""In flight, where the goal is stated."""
LEAD = 1.5
"""How many times the best other server's requests per second the head is to answer with the tiny net."""
OURS, OURS_UNARY, OURS_NATIVE = "splitmesh, OIP stream", "splitmesh, OIP unary", "splitmesh, StreamInfer"
OURS_TWO = f"{OURS}, 2 processes"

Key = tuple[str, str]
"""Net, server."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 2
    seconds: float = 5.0
    concurrency: tuple[int, ...] = (1, 8, 32)


@dataclass(slots=True)
class Case:
    """One net with its picture and what the runtime makes of it."""

    net: str
    model: Path
    picture: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(slots=True)
class Seen:
    """All runs."""

    loads: dict[Key, dict[int, list[Load]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    skipped: dict[Key, str] = field(default_factory=dict)


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    rivals = [rival for rival in RIVALS if not quick or (rival.installed and rival.script == "kserve")]
    plan = Plan(rounds=1, seconds=1.5, concurrency=(8,)) if quick else Plan()
    asyncio.run(compare(rivals, plan, list(NETS)))


async def compare(rivals: Sequence[Rival], plan: Plan, nets: Sequence[str]) -> None:
    """Install, measure, publish."""
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="splitmesh-bench-") as folder, Progress(transient=True) as progress:
        cases = [_case(net, Path(folder)) for net in nets]
        task = progress.add_task("installing", total=len(rivals) + plan.rounds * len(cases) * (len(rivals) + 2))
        usable = []
        for rival in rivals:
            progress.update(task, description=f"installing {rival.name}")
            try:
                await asyncio.to_thread(install, rival)
                usable.append(rival)
            except SkippedError as error:
                seen.skipped |= {(net, rival.name): str(error) for net in nets}
            progress.advance(task)
        for case in cases * plan.rounds:
            for name, server in _servers(usable, case):
                progress.update(task, description=f"{case.net}, {name}")
                await _measure(server, name, case.net, seen, plan)
                progress.advance(task)
    publish(_result(seen, nets, plan.concurrency))


@asynccontextmanager
async def _head(case: Case) -> AsyncIterator[tuple[Served, dict[str, Call]]]:
    async with serving_head(case.net) as served:
        yield (
            served,
            {
                OURS: oip_call(case.net, case.picture, stream=True),
                OURS_UNARY: oip_call(case.net, case.picture),
                OURS_NATIVE: native_call(case.picture, case.scores, stream=True),
            },
        )


@asynccontextmanager
async def _two_heads(case: Case) -> AsyncIterator[tuple[Served, dict[str, Call]]]:
    async with serving_head(case.net, settings={"processes": "2", "workers": "2"}) as served:
        yield served, {OURS_TWO: oip_call(case.net, case.picture, stream=True)}


@asynccontextmanager
async def _rival(rival: Rival, case: Case) -> AsyncIterator[tuple[Served, dict[str, Call]]]:
    async with serving(rival, case.model, case.picture, case.scores) as served:
        yield served, {f"{rival.name}, {rival.protocol}": rival.call(case.picture)}


Server = AbstractAsyncContextManager[tuple[Served, dict[str, Call]]]


def _servers(rivals: Sequence[Rival], case: Case) -> Iterator[tuple[str, Server]]:
    yield "splitmesh", _head(case)
    yield OURS_TWO, _two_heads(case)
    for rival in rivals:
        yield rival.name, _rival(rival, case)


async def _measure(server: Server, name: str, net: str, seen: Seen, plan: Plan) -> None:
    """Every way in which the server can be asked, at every concurrency."""
    try:
        async with server as (served, calls):
            for way, call in calls.items():
                for count in plan.concurrency:
                    load = await measure(
                        served.address, call, pid=served.pid, concurrency=count, seconds=plan.seconds, warm_up_s=0.7
                    )
                    seen.loads[net, way][count].append(load)
    except (SkippedError, RuntimeError) as error:
        seen.skipped[net, name] = str(error).splitlines()[0]


def _case(net: str, folder: Path) -> Case:
    model = folder / f"{net}.onnx"
    model.write_bytes(build(net))
    sample = picture()
    scores = open_session(model.read_bytes()).run({INPUT: sample})[OUTPUT]
    return Case(net, model, sample, np.asarray(scores, np.float32))


def _result(seen: Seen, nets: Sequence[str], concurrency: Sequence[int]) -> Result:
    rows: list[dict[str, object]] = []
    verdicts, findings = [], []
    compared = [count for count in COMPARED if count in concurrency]
    for net in nets:
        servers = [server for of, server in seen.loads if of == net]
        for server in sorted(servers, key=lambda server: -_median(seen, (net, server), compared[0], "per_s")):
            rows.append(_row(seen, net, server, concurrency))
        for (of, name), why in seen.skipped.items():
            if of == net and rows:
                rows.append({**dict.fromkeys(rows[0], ""), "net": net, "server": f"{name}: skipped, {why}"})
        others = [server for server in servers if not server.startswith("splitmesh")]
        if others and OURS in servers:
            lead, saving = _lead(seen, net, others, compared)
            verdicts.append(lead >= (LEAD if net == "tiny" else 1.0) and saving > 1.0)
            findings.append(f"{net}: {lead:.2f}x the best other's req/s, 1/{saving:.2f} of its CPU at worst")
    return Result(
        name="serving_peers",
        n=round(sum(load.answers for ways in seen.loads.values() for loads in ways.values() for load in loads)),
        baseline=f"the best other server, with {' and '.join(map(str, compared))} in flight, each figure for itself",
        goal=f"OIP stream first in req/s and CPU per request on both nets, {LEAD}x in req/s with the tiny one",
        measured="; ".join(findings) or "nothing to compare with",
        met=all(verdicts) if verdicts else None,
        rows=rows,
    )


def _lead(seen: Seen, net: str, others: Sequence[str], compared: Sequence[int]) -> tuple[float, float]:
    """By how much OIP stream leads, at the concurrency where it leads least: in requests per second, in processor time."""
    rates, costs = [], []
    for count in compared:
        ours = (net, OURS)
        rates.append(
            _median(seen, ours, count, "per_s") / max(_median(seen, (net, other), count, "per_s") for other in others)
        )
        costs.append(
            min(_median(seen, (net, other), count, "cpu_ms") for other in others) / _median(seen, ours, count, "cpu_ms")
        )
    return min(rates), min(costs)


def _row(seen: Seen, net: str, server: str, concurrency: Sequence[int]) -> dict[str, object]:
    row: dict[str, object] = {"net": net, "server": server}
    key = (net, server)
    for count in concurrency:
        p50, p99 = (_median(seen, key, count, name) for name in ("p50_ms", "p99_ms"))
        row[f"c={count} /s"] = round(_median(seen, key, count, "per_s"))
        row[f"c={count} p50/p99"] = f"{p50:.1f}/{p99:.0f}"
        row[f"c={count} cpu ms"] = _median(seen, key, count, "cpu_ms")
    row["MB"] = round(_median(seen, key, concurrency[-1], "memory_mb"))
    row["errors"] = sum(load.errors for loads in seen.loads[key].values() for load in loads)
    return row


def _median(seen: Seen, key: Key, count: int, name: str) -> float:
    return median(getattr(load, name) for load in seen.loads[key][count]) if seen.loads[key][count] else float("nan")


if __name__ == "__main__":
    main()
