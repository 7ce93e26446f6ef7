"""How fast files reach and leave a registry, what a cut link costs, and how large patches between versions are.

Throughput is that of a whole transfer, digests and fsync included, as a ratio to a plain file copy over a socket
(`plain_copy.py`: fsync at the end, no digest) over the same loopback and through the same link relay, one after the other, the
medians of several rounds. *Cuts*: the link is cut nine times, after every tenth of the file; what crossed altogether, against
the file. *Patches*: real training (a ResNet-18 of 45 MB on rendered joints; its last layer, its last stage, all of it trained
further) and static int8.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from rich.progress import Progress

from benchmarks.harness import Result, arguments, publish
from benchmarks.plain_copy import Copier
from benchmarks.registry_deltas import delta_rows
from benchmarks.registry_process import World, registry_world
from splitmesh.client.registry import ArtifactRef, RegistryClient
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.testing.links import PROFILES, LinkProfile
from splitmesh.testing.relay import LinkRelay

MB = 10**6
GOAL_RATIO, GOAL_FROM_MB = 0.9, 10
CUT_MB = 20


@dataclass(frozen=True, slots=True)
class Case:
    """One row of throughput."""

    direction: str
    """``push`` or ``pull``."""
    link: LinkProfile
    size_mb: int
    rounds: int


class Bench:
    """A registry and a copying process behind a link each."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world = world
        self._rng = rng

    async def throughput(self, case: Case) -> dict[str, object]:
        """One row."""
        plain, ours = [], []
        source, target = self._world.folder / "source", self._world.folder / "target"
        other, mine = (target, source) if case.direction == "push" else (source, target)
        with Copier(case.direction, other) as copier:
            async with (
                LinkRelay(copier.address, case.link) as to_copy,
                LinkRelay(self._world.running.address, case.link) as to_registry,
            ):
                # Nothing stands between the ends on loopback: a relay there would be what is measured.
                direct = case.link.name == "loopback"
                copy_at = copier.address if direct else to_copy.address
                channels = Channels(
                    StaticDiscovery({"registry": [self._world.running.address if direct else to_registry.address]})
                )
                try:
                    registry = RegistryClient(channels)
                    for _ in range(case.rounds):
                        source.write_bytes(self._rng.bytes(case.size_mb * MB))
                        plain.append(await _timed(partial(asyncio.to_thread, copier.copy, copy_at, mine)))
                        ours.append(await self._ours(case, registry, source, target))
                finally:
                    await channels.close()
        return {
            "what": f"{case.direction}, {case.link.name}",
            "MB": case.size_mb,
            "n": case.rounds,
            "plain_copy_MB_s": case.size_mb / median(plain),
            "registry_MB_s": case.size_mb / median(ours),
            "ratio": median(plain) / median(ours),
        }

    async def _ours(self, case: Case, registry: RegistryClient, source: Path, target: Path) -> float:
        if case.direction == "push":
            return await _timed(lambda: registry.push_artifact("file", source))
        ref = await self._world.registry.push_artifact("file", source)
        target.unlink(missing_ok=True)
        return await _timed(lambda: registry.pull_to_file(ref, target))

    async def cuts(self, direction: str) -> dict[str, object]:
        """One row: nine cuts of one transfer."""
        source, target = self._world.folder / "source", self._world.folder / "target"
        source.write_bytes(self._rng.bytes(CUT_MB * MB))
        target.unlink(missing_ok=True)
        async with LinkRelay(self._world.running.address, PROFILES["private-5g"]) as relay:
            channels = Channels(StaticDiscovery({"registry": [relay.address]}))
            try:
                registry = RegistryClient(channels)
                if direction == "pull":
                    ref: ArtifactRef = await self._world.registry.push_artifact("file", source)
                    moving = asyncio.create_task(registry.pull_to_file(ref, target))
                else:
                    moving = asyncio.create_task(_only(registry.push_artifact("file", source)))

                def crossed() -> int:
                    return relay.downlink_bytes if direction == "pull" else relay.uplink_bytes

                cuts = 0
                while not moving.done():
                    await asyncio.wait([moving], timeout=0.005)
                    if cuts < 9 and crossed() >= (cuts + 1) * CUT_MB * MB // 10:
                        relay.down(cut_after_s=0.0)
                        relay.up()
                        cuts += 1
                await moving
                return {
                    "what": f"{direction}, cut at every 10 %",
                    "MB": CUT_MB,
                    "n": cuts,
                    "plain_copy_MB_s": "",
                    "registry_MB_s": "",
                    "ratio": f"{crossed() / (CUT_MB * MB):.3f}x crossed",
                }
            finally:
                await channels.close()


async def _only(work: Awaitable[object]) -> None:
    await work


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def compare(cases: list[Case], *, train: bool) -> None:
    """Every row."""
    rows: list[dict[str, object]] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("transfers", total=len(cases) + 2)
        for case in cases:
            async with registry_world() as world:
                rows.append(await Bench(world, np.random.default_rng(0)).throughput(case))
            progress.advance(task)
        held = [row for row in rows if int(str(row["MB"])) > GOAL_FROM_MB]
        for direction in ("push", "pull"):
            async with registry_world() as world:
                rows.append(await Bench(world, np.random.default_rng(1)).cuts(direction))
            progress.advance(task)
        rows += await asyncio.to_thread(delta_rows, progress, small=not train)
    worst = min(held, key=lambda row: float(str(row["ratio"])))
    ratio = float(str(worst["ratio"]))
    publish(
        Result(
            name="registry_transfer",
            n=sum(case.rounds for case in cases),
            baseline="a plain file copy over a socket, on the same loopback and through the same relay",
            goal=f">= {GOAL_RATIO}x above {GOAL_FROM_MB} MB",
            measured=f"worst {ratio:.2f}x ({worst['what']}, {worst['MB']} MB)",
            met=ratio >= GOAL_RATIO,
            rows=rows,
        )
    )


def main() -> None:
    """Entry point."""
    loopback, link = PROFILES["loopback"], PROFILES["private-5g"]
    both = ("push", "pull")
    if arguments(__doc__).quick:
        asyncio.run(compare([Case(one, loopback, 20, 3) for one in both], train=False))
        return
    cases = [Case(one, loopback, size, 9) for one in both for size in (1, 20, 100, 400)]
    cases += [Case(one, link, size, 5) for one in both for size in (1, 20, 50)]
    asyncio.run(compare(cases, train=True))


if __name__ == "__main__":
    main()
