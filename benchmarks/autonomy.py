"""What does a host lose when anything around it, or it itself, is killed, stopped or cut off? A thousand faults from a seed,
under load.

Real processes; the cable is relays between head and agent and everything else. Faults: SIGKILL of head, agent, router,
registry, fleet and tail, each started again; SIGSTOP of one of them; the cable cut, so that all that is sent is swallowed,
for longer or shorter than it takes to see that; the head's disk full. Frames flow all the time, each of a camera of its own,
so that every hard one is a sample.

After each fault: captured = committed + queued + counted drops in the head's spool, each figure counted by itself. In the
end, when everything is back: what the spool calls committed is what the fleet and the router have, each record once, and
nothing is queued. A record that the fleet has twice, or lacks although it was acknowledged, would differ here. A full disk
needs root (a tmpfs of its own for the head), otherwise it is left out and the table says so."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, deployed_mesh, publish
from examples.solder_joints.demo import MODEL
from splitmesh.client import AnsweredBy
from splitmesh.client.routing import Goals, RoutingClient
from splitmesh.errors import MeshError
from splitmesh.spool.store import balances_beside
from splitmesh.spool.values import Balance
from splitmesh.testing.links import PROFILES
from splitmesh.testing.mesh import LocalMesh
from splitmesh.testing.processes import MODULES, ServiceProcess

SEED = 11
FAULTS, QUICK_FAULTS = 1000, 7
SEEN_S, BACK_S = 3.5, 2.0
"""Goals: a dead link is seen, and escalation is back after healing."""
DISK_BYTES = 512 << 20
INTERVAL_S = 0.05
CAMERAS = 2
IN_MEMORY = "memory-"
"""Begins the name of a life of the head whose reports were never on its disk."""
DEADLINE_MS = 1000
SETTLE_S = 60.0
SHORT_CUT_S, LONG_CUT_S = 0.7, 5.0
STOPPED_S = (0.2, 1.5)
FULL_S = 1.0
KILLED = ("head", "fleet", "router", "tail", "agent", "registry")
STOPPED = ("router", "registry", "fleet", "tail", "agent")
SERVICES = (*(name for name in MODULES if name != "partitioner"), "partitioner")


@dataclass
class Found:
    """What was seen of the faults."""

    faults: Counter[str] = field(default_factory=Counter)
    balances: int = 0
    """That did not hold."""
    restart_s: list[float] = field(default_factory=list)
    """Of a head, from its start to its first answer."""
    seen_s: list[float] = field(default_factory=list)
    """From the cut until a frame was not even sent."""
    back_s: list[float] = field(default_factory=list)
    """From healing to the first answer of a tail."""


class Load:
    """Cameras that ask without an end, and what they were told."""

    def __init__(self, mesh: LocalMesh, pictures: list[bytes]) -> None:
        self._mesh, self._pictures = mesh, pictures
        self._numbers = itertools.count(1)
        self.answered: Counter[str] = Counter()
        self._waiting: list[tuple[Callable[[AnsweredBy, str], bool], asyncio.Future[float]]] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        async with self._mesh.gateway(deadline_ms=DEADLINE_MS) as gateway, asyncio.TaskGroup() as cameras:
            for _ in range(CAMERAS):
                cameras.create_task(self._camera(gateway))

    async def first(self, wanted: Callable[[AnsweredBy, str], bool]) -> float:
        """When the next answer like this came, on the monotonic clock."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        async with asyncio.timeout(SETTLE_S):
            return await future

    async def _camera(self, gateway) -> None:  # type: ignore[no-untyped-def]
        while True:
            number = next(self._numbers)
            # What stands behind a picture's end is not decoded: it only makes every frame a sample of its own.
            frame = self._pictures[number % len(self._pictures)] + b"%012d" % number
            try:
                answer = await gateway.infer(frame, camera=f"camera-{number}", retries=0)
            except MeshError as error:
                self.answered[f"error {error.reason}"] += 1
            else:
                self.answered[f"{answer.answered_by.name} {answer.fallback_reason}".strip()] += 1
                self._tell(answer.answered_by, answer.fallback_reason)
            await asyncio.sleep(INTERVAL_S)

    def _tell(self, who: AnsweredBy, reason: str) -> None:
        for entry in list(self._waiting):
            wanted, future = entry
            if wanted(who, reason):
                self._waiting.remove(entry)
                if not future.done():
                    future.set_result(time.monotonic())


def anyone(who: AnsweredBy, reason: str) -> bool:
    """Any answer."""
    return True


def from_tail(who: AnsweredBy, reason: str) -> bool:
    """A tail's."""
    return who is AnsweredBy.CLOUD_TAIL


def not_sent(who: AnsweredBy, reason: str) -> bool:
    """The head knows that there is no way to a tail."""
    return who is AnsweredBy.EDGE_FALLBACK and reason == "SERVICE_UNAVAILABLE"


class Ledger:
    """What router and fleet have, read from their own files beside them, and each life's reports before a router forgets the
    life."""

    def __init__(self, mesh_dir: Path) -> None:
        self._router, self._fleet = mesh_dir / "router" / "router.sqlite", mesh_dir / "fleet" / "fleet.db"
        self._reports: dict[str, int] = defaultdict(int)

    def look(self) -> None:
        """At the reports of each life that the router remembers."""
        with suppress(sqlite3.OperationalError), closing(_read_only(self._router)) as db:
            for boot, floor, early in db.execute("SELECT boot_id, floor, early FROM seen WHERE node = 'head-1'"):
                self._reports[boot] = max(self._reports[boot], floor + len(json.loads(early)))

    def reports(self) -> int:
        """Of outcomes, that the router has added and that came from the disk."""
        return sum(n for boot, n in self._reports.items() if not boot.startswith(IN_MEMORY))

    def from_memory(self) -> int:
        """Those that the disk did not take."""
        return sum(n for boot, n in self._reports.items() if boot.startswith(IN_MEMORY))

    def records(self) -> tuple[int, int]:
        """Of samples, in the fleet: all, and different ones."""
        with closing(_read_only(self._fleet)) as db:
            query = "SELECT body FROM records WHERE edge = 'head-1'"
            ids = [json.loads(bytes(body) if isinstance(body, bytes) else body)["id"] for (body,) in db.execute(query)]
        return len(ids), len(set(ids))


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True)


class Faults:
    """Breaks things and mends them."""

    def __init__(self, mesh: LocalMesh, load: Load, disk: Path, draws: random.Random, *, may_fill: bool) -> None:
        self.found = Found()
        self._mesh, self._load, self._disk, self._draws = mesh, load, disk, draws
        # Those of a quick run come first.
        self._kinds: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("cut for long", lambda: self._cut(LONG_CUT_S)),
            *([("full disk", self._fill)] if may_fill else []),
            *((f"kill {name}", self._killing(name)) for name in KILLED),
            ("cut shortly", lambda: self._cut(SHORT_CUT_S)),
            *((f"stop {name}", self._stopping(name)) for name in STOPPED),
        ]

    async def one(self, number: int) -> None:
        """The first ones are one of each kind."""
        name, work = self._kinds[number] if number < len(self._kinds) else self._draws.choice(self._kinds)
        self.found.faults[name] += 1
        await work()
        for balance in balances_beside(self._disk / "spool").values():
            self.found.balances += not balance.holds

    def _killing(self, service: str) -> Callable[[], Awaitable[None]]:
        async def kill() -> None:
            await self._mesh.kill(service)
            await asyncio.sleep(self._draws.uniform(0.0, 0.3))
            began = time.monotonic()
            await self._mesh.start(service)
            if service == "head":
                self.found.restart_s.append(await self._load.first(anyone) - began)

        return kill

    def _stopping(self, service: str) -> Callable[[], Awaitable[None]]:
        async def stop() -> None:
            running = self._mesh._services[service]
            if not isinstance(running, ServiceProcess):
                raise TypeError(f"{service} is no process")
            running.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._draws.uniform(*STOPPED_S))
            running.process.send_signal(signal.SIGCONT)

        return stop

    async def _cut(self, seconds: float) -> None:
        await self._load.first(from_tail)
        relays = list(self._mesh.relays.values())
        for relay in relays:
            relay.down(refuse_new=False)
        began = time.monotonic()
        if seconds >= LONG_CUT_S:
            seen = asyncio.create_task(self._load.first(not_sent))
            await asyncio.sleep(seconds)
            # Not seen while it lasted: no figure, and no goal is met.
            self.found.seen_s.append(seen.result() - began if seen.done() else math.inf)
            seen.cancel()
            await asyncio.gather(seen, return_exceptions=True)
        else:
            await asyncio.sleep(seconds)
        self._mesh.heal()
        healed = time.monotonic()
        self.found.back_s.append(await self._load.first(from_tail) - healed)

    async def _fill(self) -> None:
        filler = self._disk / "filler"
        await asyncio.to_thread(_fill, filler)
        await asyncio.sleep(FULL_S)
        filler.unlink()


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with suppress(OSError), path.open("ab", buffering=0) as file:  # what is left of the last pages
        while True:
            file.write(bytes(512))


@asynccontextmanager
async def head_disk() -> AsyncIterator[tuple[Path, bool]]:
    """Where the head keeps its state, and whether it may be filled: a disk of its own."""
    folder = Path(tempfile.mkdtemp(prefix="splitmesh-autonomy-"))
    mounted = os.geteuid() == 0 and _ran("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    try:
        yield folder, mounted
    finally:
        if mounted:
            _ran("umount", "--lazy", str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _ran(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


async def settled(disk: Path, ledger: Ledger) -> Mapping[str, Balance]:
    """Balances once nothing is queued any more, or as they are after a minute."""
    found: Mapping[str, Balance] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while True:
                ledger.look()
                found = balances_beside(disk / "spool")
                if not any(balance.queued for balance in found.values()):
                    break
                await asyncio.sleep(0.1)
    return found


async def measure(count: int) -> None:
    """So many faults."""
    async with head_disk() as (disk, may_fill):
        head = {"data_dir": str(disk), "sample_bytes_per_s": str(64 << 20), "report_interval_s": "0.5"}
        async with deployed_mesh(
            PROFILES["private-5g"],
            frames=20,
            calibration=300,
            settings={"head": head},
            services=SERVICES,
            cable=True,
        ) as (mesh, pictures):
            await RoutingClient(mesh.channels).set_goals(MODEL, Goals(1e-6))
            load, ledger = Load(mesh, pictures), Ledger(mesh._work_dir)
            loading = asyncio.create_task(load.run())
            await load.first(from_tail)
            faults = Faults(mesh, load, disk, random.Random(SEED), may_fill=may_fill)
            with Progress(transient=True) as progress:
                task = progress.add_task("faults", total=count)
                for number in range(count):
                    await faults.one(number)
                    ledger.look()
                    progress.advance(task)
            await load.first(from_tail)
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            balances = await settled(disk, ledger)
            report(faults.found, load, balances, ledger, may_fill=may_fill)


def report(found: Found, load: Load, balances: Mapping[str, Balance], ledger: Ledger, *, may_fill: bool) -> None:
    """The table."""
    outcomes, samples = balances.get("outcomes", Balance()), balances.get("samples", Balance())
    records, different = ledger.records()
    lost = max(0, outcomes.committed - ledger.reports()) + max(0, samples.committed - records)
    twice = max(0, ledger.reports() - outcomes.committed) + records - different
    open_ = found.balances + sum(not balance.holds for balance in balances.values())
    queued = sum(balance.queued for balance in balances.values())
    rows: list[dict[str, object]] = [
        {"what": "reports of outcomes: captured", "value": outcomes.captured},
        {
            "what": "reports of outcomes: acknowledged / in the router",
            "value": f"{outcomes.committed} / {ledger.reports()}",
        },
        {"what": "reports of outcomes: told from memory, past a full disk", "value": ledger.from_memory()},
        {"what": "records of samples: captured", "value": samples.captured},
        {"what": "records of samples: acknowledged / in the fleet", "value": f"{samples.committed} / {records}"},
        {"what": "dropped, by reason", "value": json.dumps({**outcomes.dropped, **samples.dropped})},
        {"what": "still queued", "value": queued},
        {"what": "balances that did not hold", "value": open_},
        {"what": "acknowledged and lost", "value": lost},
        {"what": "twice", "value": twice},
        _times("head: start to first answer, s", found.restart_s),
        _times("dead link seen after, s", found.seen_s),
        _times("escalation back after healing, s", found.back_s),
        *({"what": f"frames: {what}", "value": n} for what, n in sorted(load.answered.items())),
        *({"what": f"faults: {what}", "value": n} for what, n in sorted(found.faults.items())),
    ]
    if not may_fill:
        rows.append({"what": "faults: full disk", "value": "left out: needs root"})
    slow = max(found.seen_s, default=0.0) > SEEN_S or max(found.back_s, default=0.0) > BACK_S
    publish(
        Result(
            name="autonomy",
            n=found.faults.total(),
            baseline="counts in memory only: what a killed head had not reported is gone",
            goal=f"no balance open, nothing acknowledged lost, nothing twice; dead link seen <= {SEEN_S} s, back <= {BACK_S} s",
            measured=f"{open_} open, {lost} lost, {twice} twice; seen {max(found.seen_s, default=0.0):.2f} s,"
            f" back {max(found.back_s, default=0.0):.2f} s at worst",
            met=not (open_ or lost or twice or queued or slow),
            rows=rows,
        )
    )


def _times(what: str, seconds: list[float]) -> dict[str, object]:
    if not seconds:
        return {"what": what, "value": "-"}
    return {"what": what, "value": f"p50 {np.median(seconds):.2f}, max {max(seconds):.2f} (n = {len(seconds)})"}


def main() -> None:
    """Entry point."""
    asyncio.run(measure(QUICK_FAULTS if arguments(__doc__).quick else FAULTS))


if __name__ == "__main__":
    main()
