"""What one hard frame costs on its way head → tail → head: against the link itself, and against Sedna's joint inference.

First: real processes with the link relay between them, one frame at a time, features as they are (float32, three cuts) and
as an 8-bit code. *Ideal* is the bytes that really crossed, headers of every layer above TCP included, at the profile's
rates, one round trip, and the tail's compute. *Taken* is what the head measured: encode, link, the tail's queue and compute.
The relay knows no packets, so TCP's slow start is in neither.

*Relay* is what a bare TCP echo of as many bytes takes through the same relay, beyond the ideal: how well the link is imitated.

Second: processor time of client and server together for one sample of 3 x 224 x 224 float32, 602,112 bytes, over loopback:
as nested lists in JSON, as Sedna sends it, and as features of the same size through a tail, both with a mean over the
picture for a model; and what really crosses, the 8-bit code of the shipped model's waist, with that model's tail.
"""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks import sedna
from benchmarks.harness import CUT, Result, arguments, publish
from benchmarks.serving.cost import tree_cpu_s
from benchmarks.serving.nets import SIDE, Layer, Net, build, chain, picture
from examples.solder_joints.demo import MODEL, ROOT, SHIPPED_MODEL
from examples.solder_joints.frames import rendered_frames
from splitmesh.cli.model_parts import version_parts
from splitmesh.client import Answer, AnsweredBy, Mesh
from splitmesh.client.compression import CompressionClient
from splitmesh.client.partition import PartitionClient
from splitmesh.client.segment import SegmentLink
from splitmesh.errors import MeshError
from splitmesh.kernel.channels import Channels
from splitmesh.kernel.discovery_static import StaticDiscovery
from splitmesh.model.calibration import pack_calibration
from splitmesh.model.manifest import CALIBRATION, MANIFEST, Manifest
from splitmesh.model.preprocess import Preprocess
from splitmesh.tensor import pack
from splitmesh.testing.links import PROFILES, LinkProfile
from splitmesh.testing.mesh import LocalMesh, ProcessLauncher
from splitmesh.testing.relay import LinkRelay

GOAL_RATIO, GOAL_TIMES_LESS = 1.15, 50.0
NET = "mid"
CUTS = ("r5", "r1", "r0")
"""Of the net, 200,704 to 802,816 bytes of float32."""
MEAN, MEAN_CUT = Net((Layer(48, 7, 4),), 10), "r0"
"""Cut there, exactly as many bytes cross as a picture has, and the tail is a mean and ten scores."""
ECHOES = 20
LINKS = ("private-5g", "public-5g-nsa", "public-5g-sa", "lte")
DEADLINE_MS = 8000
WARM_UP = 5
SETTLE_S = 60.0


@dataclass(frozen=True)
class Deployed:
    """A mesh with every version in it."""

    mesh: LocalMesh
    pictures: list[bytes]
    versions: dict[str, tuple[str, int]]
    """Model and version by what crosses."""
    process_id: int
    """The tail's."""


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    asyncio.run(measure(frames=6 if quick else 60, samples=20 if quick else 100))


async def measure(frames: int, samples: int) -> None:
    """Every cut over every link, then both protocols."""
    rows: list[dict[str, object]] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("deploying", total=None)
        async with _deployed() as deployed:
            crossing = [name for name in deployed.versions if name != "mean"]
            progress.update(task, total=len(crossing) * len(LINKS))
            for name in crossing:
                progress.update(task, description=name)
                gateway = await _serving(deployed, name)
                for link in LINKS:
                    rows.append(await _escalate(deployed, gateway, name, PROFILES[link], frames))
                    progress.advance(task)
                await gateway.close()
            progress.update(task, description="processor time")
            costs = [_sedna(samples)]
            for name in ("mean", "code"):
                costs.append(await _through_a_tail(deployed, name, 5 * samples))
    _publish(rows, costs, frames, samples)


def _publish(rows: list[dict[str, object]], costs: list[dict[str, object]], frames: int, samples: int) -> None:
    worst = max(float(str(row["ratio_p50"])) for row in rows)
    held = sum(float(str(row["ratio_p50"])) <= GOAL_RATIO for row in rows)
    publish(
        Result(
            name="escalation",
            n=frames,
            baseline="bytes that crossed / the link's rates + its round trip + the tail's compute",
            goal=f"one frame takes at most {GOAL_RATIO}x the ideal, p50",
            measured=f"worst p50 {worst:.2f}x; {held} of {len(rows)} within the goal",
            met=worst <= GOAL_RATIO,
            rows=rows,
        )
    )
    whole, same, code = (float(str(row["cpu_ms"])) for row in costs)
    publish(
        Result(
            name="escalation_cpu",
            n=samples,
            baseline="Sedna's joint inference: nested lists in JSON over HTTP (stand-in on the standard library)",
            goal=f"processor time of client and server at least {GOAL_TIMES_LESS:.0f}x less",
            measured=f"{whole / same:.0f}x less for as many bytes of features, {whole / code:.0f}x for what crosses coded",
            met=whole / same >= GOAL_TIMES_LESS,
            rows=costs,
        )
    )


@asynccontextmanager
async def _deployed() -> AsyncIterator[Deployed]:
    work_dir = Path(tempfile.mkdtemp(prefix="splitmesh-escalation-"))
    head = {"models": f"{MODEL},{NET}", "codec": "identity"}
    try:
        launcher = ProcessLauncher(ROOT, work_dir)
        async with LocalMesh(launcher, work_dir, settings={"head": head}) as mesh:
            ready = json.loads(next(work_dir.glob("tail-*.ready")).read_text())
            pictures, code = await _push_shipped(mesh)
            mean = await _push_net(mesh, work_dir, "mean", chain(MEAN, "mean"), [MEAN_CUT])
            versions = {"code": (MODEL, code), "mean": mean[MEAN_CUT]}
            versions |= await _push_net(mesh, work_dir, NET, build(NET), CUTS)
            yield Deployed(mesh, pictures, versions, ready["pid"])
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


async def _push_shipped(mesh: LocalMesh) -> tuple[list[bytes], int]:
    """The shipped model, its waist as an 8-bit code; without an exit, so that everything crosses."""
    preprocess = Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())
    pictures = rendered_frames(20, 200, preprocess, lambda _: None)
    model, labels, prepared = (SHIPPED_MODEL / name for name in ("model.onnx", "labels.json", "preprocess.json"))
    parts = version_parts(model, labels, prepared, None)
    parts[CALIBRATION] = pack_calibration(pictures.calibration)
    pushed = await mesh.registry().create_version(MODEL, parts, created_by="push")
    split = await PartitionClient(mesh.channels).split(MODEL, pushed.version, [CUT])
    version, _ = await CompressionClient(mesh.channels).compress(MODEL, split.version, ["int8-cut"])
    return pictures.frames, version


async def _push_net(
    mesh: LocalMesh, work_dir: Path, name: str, content: bytes, cuts: Sequence[str]
) -> dict[str, tuple[str, int]]:
    model, preprocess = work_dir / "model.onnx", work_dir / "preprocess.json"
    model.write_bytes(content)
    preprocess.write_text(Preprocess(width=SIDE, height=SIDE, mean=(0.5,), std=(0.25,)).model_dump_json())
    parts = version_parts(model, None, preprocess, None)
    pushed = await mesh.registry().create_version(name, parts, created_by="push")
    client = PartitionClient(mesh.channels)
    return {cut: (name, (await client.split(name, pushed.version, [cut])).version) for cut in cuts}


async def _serving(deployed: Deployed, name: str) -> Mesh:
    """A gateway, once the head answers with this version and its tail."""
    model, version = deployed.versions[name]
    deployed.mesh.relay.set_profile(PROFILES["loopback"])
    await deployed.mesh.registry().set_alias(model, "production", version)
    gateway = deployed.mesh.gateway(model=model, deadline_ms=DEADLINE_MS)
    async with asyncio.timeout(SETTLE_S):
        while True:
            try:
                answer = await gateway.infer(deployed.pictures[0])
                if answer.version == version and answer.answered_by is AnsweredBy.CLOUD_TAIL:
                    return gateway
            except MeshError:
                pass  # nothing is loaded yet
            await asyncio.sleep(0.1)


async def _escalate(deployed: Deployed, gateway: Mesh, name: str, link: LinkProfile, frames: int) -> dict[str, object]:
    relay = deployed.mesh.relay
    relay.set_profile(link)
    for turn in range(WARM_UP):
        await gateway.infer(deployed.pictures[turn])
    up_before, down_before = relay.uplink_bytes, relay.downlink_bytes
    answers = [await gateway.infer(deployed.pictures[turn % len(deployed.pictures)]) for turn in range(frames)]
    up = (relay.uplink_bytes - up_before) / frames
    down = (relay.downlink_bytes - down_before) / frames
    crossed = [answer for answer in answers if answer.answered_by is AnsweredBy.CLOUD_TAIL]
    compute_ms = _median([answer.timings.tail_ms for answer in crossed])
    transfer_ms = up * 8e-3 / link.uplink_mbps + down * 8e-3 / link.downlink_mbps
    ideal_ms = transfer_ms + link.rtt_ms + compute_ms
    taken_ms = _median([_taken_ms(answer) for answer in crossed])
    return {
        "what_crosses": f"{name}, {crossed[0].uplink_bytes} B" if crossed else name,
        "link": link.name,
        "wire_up": round(up),
        "wire_down": round(down),
        "ideal_ms": ideal_ms,
        "taken_p50_ms": taken_ms,
        "ratio_p50": taken_ms / ideal_ms,
        "encode_ms": _median([answer.timings.encode_ms for answer in crossed]),
        "link_over_ms": _median([answer.timings.link_ms for answer in crossed]) - transfer_ms - link.rtt_ms,
        "relay_over_ms": await _echo_ms(link, round(up), round(down), min(ECHOES, frames)) - transfer_ms - link.rtt_ms,
        "queue_ms": _median([answer.timings.tail_queue_ms for answer in crossed]),
        "tail_ms": compute_ms,
        "head_ms": _median([_head_ms(answer) for answer in crossed]),
        "not_crossed": frames - len(crossed),
    }


async def _echo_ms(link: LinkProfile, up: int, down: int, turns: int) -> float:
    """Median of a bare echo through such a relay: as many bytes there and back, nothing around them."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                await reader.readexactly(up)
                writer.write(bytes(down))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    times = []
    async with LinkRelay(f"{host}:{port}", link) as relay:
        host, _, port = relay.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(turns):
            begun = time.perf_counter()
            writer.write(bytes(up))
            await reader.readexactly(down)
            times.append((time.perf_counter() - begun) * 1e3)
        writer.close()
    server.close()
    return _median(times)


def _taken_ms(answer: Answer) -> float:
    times = answer.timings
    return times.encode_ms + times.link_ms + times.tail_queue_ms + times.tail_ms


def _head_ms(answer: Answer) -> float:
    """Everything before the features are there."""
    return answer.timings.queue_ms + answer.timings.decode_ms + answer.timings.head_ms


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _sedna(samples: int) -> dict[str, object]:
    sample = picture()
    with sedna.cloud() as (process_id, port):
        edge = sedna.Edge(port)
        edge.predict(sample)
        gc.collect()
        server_s, client_s, begun = tree_cpu_s(process_id), time.process_time(), time.perf_counter()
        for _ in range(samples):
            edge.predict(sample)
        took_s = time.perf_counter() - begun
        client_s, server_s = time.process_time() - client_s, tree_cpu_s(process_id) - server_s
    return _cost("picture as JSON (Sedna)", sedna.body_bytes(sample), samples, client_s, server_s, took_s)


async def _through_a_tail(deployed: Deployed, name: str, samples: int) -> dict[str, object]:
    """Straight to the tail's process, past the relay, whose work would count as the client's."""
    model, version = deployed.versions[name]
    channels = Channels(StaticDiscovery({"tail": [deployed.mesh.address("tail")]}))
    registry = deployed.mesh.registry()
    manifest = Manifest.from_json(await registry.fetch(await registry.get_version(model, version), MANIFEST))
    assert manifest.split is not None
    wire = [tensor.spec() for tensor in manifest.split.wire]
    link = SegmentLink(channels, model, version, "bench", wire=wire)
    await link.start()
    try:
        assert await link.wait_accepted(30.0)
        rng = np.random.default_rng(2)
        features = [(spec.name, _like(rng, spec.shape, spec.dtype)) for spec in wire]
        await link.run(pack(features, "identity"), trace_context=b"", deadline_s=10.0)
        gc.collect()
        server_s, client_s, begun = tree_cpu_s(deployed.process_id), time.process_time(), time.perf_counter()
        for _ in range(samples):
            await link.run(pack(features, "identity"), trace_context=b"", deadline_s=10.0)
        took_s = time.perf_counter() - begun
        client_s, server_s = time.process_time() - client_s, tree_cpu_s(deployed.process_id) - server_s
    finally:
        await link.stop()
        await channels.close()
    size_bytes = len(pack(features, "identity").payload)
    what = "as many bytes of features" if name == "mean" else "8-bit code of the waist"
    return _cost(f"{what} (splitmesh)", size_bytes, samples, client_s, server_s, took_s)


def _like(rng: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    values = rng.standard_normal([max(1, dim) for dim in shape])
    return (values * 40 + 128).clip(0, 255).astype(dtype) if dtype == "uint8" else values.astype(dtype)


def _cost(
    what: str, size_bytes: int, samples: int, client_s: float, server_s: float, took_s: float
) -> dict[str, object]:
    return {
        "what_crosses": what,
        "body_bytes": size_bytes,
        "samples": samples,
        "client_ms": client_s / samples * 1e3,
        "server_ms": server_s / samples * 1e3,
        "cpu_ms": (client_s + server_s) / samples * 1e3,
        "mean_ms": took_s / samples * 1e3,
    }


if __name__ == "__main__":
    main()
