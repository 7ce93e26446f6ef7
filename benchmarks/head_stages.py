"""Where a frame's time goes in a head, in processor time: decode, normalise, head, pack; each the way it was and as it is.

Then frames of several cameras at once through the head's line and threads, computed singly and together. Pictures are drawn
and enlarged to camera sizes; the model is the shipped one, cut at its waist. Processor time is what other work on the host
disturbs least.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import CUT, Result, arguments, publish
from edge.head.active import ActiveModel, warm_up
from edge.head.config import HeadSettings
from edge.head.frame import FrameRequest, Picture
from edge.head.line import Line
from edge.head.perceive import perceive
from edge.head.together import Together
from edge.head.tune import measure_batches
from examples.solder_joints.demo import SHIPPED_MODEL
from examples.solder_joints.render import dataset
from splitmesh.client.registry import VersionInfo
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import HEAD, Manifest
from splitmesh.model.preprocess import Preprocess
from splitmesh.runtime import Session, open_session
from splitmesh.tensor import TensorLimits, pack

SIZES = ((1920, 1080), (640, 480), (240, 200))
IN_FLIGHT = 16
FAR_S = 60.0

Pixels = NDArray[np.uint8]
Normalise = Callable[[Pixels], NDArray[np.float32]]


def main() -> None:
    """Entry point."""
    quick = arguments(__doc__).quick
    repeats = 20 if quick else 200
    manifest, artifacts = split_bytes((SHIPPED_MODEL / "model.onnx").read_bytes(), [CUT])
    shipped = Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())
    head = open_session(artifacts[HEAD])
    warm_up(head)
    rows: list[dict[str, object]] = []
    for width, height in SIZES:
        data = camera_jpeg(width, height)
        colour = Preprocess(width=224, height=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        rows += _stages(f"{width}x{height} to grey 128", data, shipped, head, repeats)
        rows += _stages(f"{width}x{height} to colour 224", data, colour, None, repeats)
    before, now = (next(row for row in rows if row["way"] == way)["total_ms"] for way in ("before", "scaled"))
    publish(
        Result(
            name="head_stages",
            n=repeats,
            baseline="the same frame decoded in full and normalised over three channels at a time",
            goal="none stated",
            measured=f"a {SIZES[0][0]}x{SIZES[0][1]} JPEG takes {before:.2f} ms before and {now:.2f} ms scaled",
            met=None,
            rows=rows,
        )
    )
    _publish_together(manifest.model_copy(update={"preprocess": shipped}), artifacts[HEAD], repeats)


def camera_jpeg(width: int, height: int) -> bytes:
    """A drawn joint at a camera's size, with a sensor's noise."""
    drawn = next(iter(dataset(1, 1))).image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray((np.asarray(drawn) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def _stages(picture: str, data: bytes, full: Preprocess, head: Session | None, repeats: int) -> list[dict[str, object]]:
    scaled = full.model_copy(update={"decode": "scaled"})
    ways: list[tuple[str, Preprocess, Normalise]] = [
        ("before", full, partial(_normalise_before, full)),
        ("full", full, full.normalise),
        ("scaled", scaled, scaled.normalise),
    ]
    times: dict[str, list[list[float]]] = {way: [] for way, _, _ in ways}
    for _ in range(repeats):
        for way, preprocess, normalise in ways:  # in turns, so that what disturbs one disturbs all
            times[way].append(_frame(data, preprocess, normalise, head))
    rows: list[dict[str, object]] = []
    for way, lists in times.items():
        decode, norm, run, packed = (median(column) for column in zip(*lists, strict=True))
        stages = {"decode_ms": decode, "normalise_ms": norm, "head_ms": run, "pack_ms": packed}
        rows.append({"picture": picture, "way": way, **stages, "total_ms": decode + norm + run + packed})
    return rows


def _frame(data: bytes, preprocess: Preprocess, normalise: Normalise, head: Session | None) -> list[float]:
    """Milliseconds of this thread for each stage."""
    at = [time.thread_time()]
    pixels = preprocess.pixels(data)
    at.append(time.thread_time())
    batch = normalise(pixels[None])
    at.append(time.thread_time())
    outputs = {} if head is None else head.run({head.inputs[0].name: batch})
    at.append(time.thread_time())
    if outputs:
        pack(list(outputs.items()), "zstd")
    at.append(time.thread_time())
    return [(end - begin) * 1e3 for begin, end in pairwise(at)]


def _normalise_before(preprocess: Preprocess, pixels: Pixels) -> NDArray[np.float32]:
    """Over all channels of a pixel, then a copy into planes."""
    mean = np.asarray(preprocess.mean, dtype=np.float32) * np.float32(255)
    scale = np.float32(1) / (np.asarray(preprocess.std, dtype=np.float32) * np.float32(255))
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    planes -= mean.reshape(1, -1, 1, 1)
    planes *= scale.reshape(1, -1, 1, 1)
    return np.ascontiguousarray(planes)


def _publish_together(manifest: Manifest, head: bytes, repeats: int) -> None:
    single = open_session(head)
    batching = measure_batches(single, warm_up(single))
    most = max(2, batching.most)
    together = Together(open_session(head), max_batch=most, at_once=HeadSettings().usable_cores())
    info = VersionInfo("bench", 1, 0, {}, "push", "", (), datetime.now(UTC))
    ways = {
        "singly": ActiveModel(info, manifest, single, None),
        f"together, up to {most}": ActiveModel(info, manifest, together, None, company=most),
    }
    data, frames = camera_jpeg(240, 200), 20 * repeats
    seen: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(5):
        for way, active in ways.items():
            seen[way].append(asyncio.run(_at_once(active, data, frames // 5)))
    rows: list[dict[str, object]] = []
    for way, figures in seen.items():
        rate, cpu_ms = (median(column) for column in zip(*figures, strict=True))
        rows.append({"head": way, "in_flight": IN_FLIGHT, "frames_per_s": rate, "cpu_ms_per_frame": cpu_ms})
    publish(
        Result(
            name="head_together",
            n=frames,
            baseline="every frame computed alone",
            goal="none stated",
            measured=f"measured at load: up to {batching.most} together; per frame "
            + ", ".join(f"{count}: {ms:.2f} ms" for count, ms in batching.per_frame_ms.items()),
            met=None,
            rows=rows,
        )
    )


async def _at_once(active: ActiveModel, data: bytes, frames: int) -> tuple[float, float]:
    """Frames per second and the process's milliseconds per frame, with so many frames in the head at any time."""
    line, left = Line(HeadSettings().usable_cores()), iter(range(frames))
    job = partial(
        perceive, active, FrameRequest(Picture(data)), max_pixels=1 << 24, limits=TensorLimits(), codec="zstd"
    )

    async def camera() -> None:
        for _ in left:
            expires = asyncio.get_running_loop().time() + FAR_S
            await line.do(job, expires=expires, took=active.took, company=active.company)

    begun, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(camera() for _ in range(IN_FLIGHT)))
    took_s, busy_s = time.perf_counter() - begun, time.process_time() - busy
    line.close()
    return frames / took_s, busy_s / frames * 1e3


if __name__ == "__main__":
    main()
