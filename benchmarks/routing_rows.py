"""What an exit and the whole model say of pictures from several sites: numbers for benchmarks of routing, computed once, cached.

``joints``: real solder joints, a small ResNet taught on a part of the units of sites A to C, never of D. ``rendered``: the
project's own pictures of four stations with the shipped model, which knows all four. What is kept of a picture are the pooled
features at a cut, the whole model's probabilities and the coded size of the cut; exits are fitted to these in
``routing_cases.py``. Knows nothing of scores and thresholds. Teaching needs torch, reading the cache does not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from safetensors.numpy import load, save

from benchmarks.trained import CACHE, DATA, ROOT
from examples.solder_joints import real_data
from examples.solder_joints.render import LABELS, dataset, to_jpeg
from splitmesh.model.classes import as_probabilities
from splitmesh.model.cuts import resolve_cut
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.pooling import pool
from splitmesh.model.preprocess import Preprocess
from splitmesh.model.quantize import calibrate, quantise_cut
from splitmesh.model.split import split_model
from splitmesh.routing.division import divided
from splitmesh.runtime import open_session
from splitmesh.tensor import codecs

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]
Texts = NDArray[np.str_]
Pixels = NDArray[np.uint8]
Change = Callable[[Image.Image], Image.Image]

SITES = ("A", "B", "C", "D")
REVISION = 1
"""Counts up when what is kept of a picture changes."""
CALIBRATED = 128
"""Pictures that the 8-bit ranges of the cut come from, of the fit part."""
BATCH = 64

SIDE, WIDTH, EPOCHS = 64, 16, 12
"""Of the ResNet for the real joints; as accurate on them as one of twice the width and side."""
FIT_SHARE = 0.3
"""Of the units of A to C, which the network is taught on."""

SHIPPED_MODEL = ROOT / "examples" / "solder_joints" / "model"
RENDERED_SEED = 52_001
RENDERED_CUT, RENDERED_GRID = "waist", 4


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Pictures of four sites, in no particular order."""

    features: NDArray[np.float32]
    """``[n, F]``, pooled at the cut."""
    whole: Floats
    """``[n, classes]``."""
    truth: Numbers
    """``[n]``; 0 is a good joint."""
    site: Texts
    """``[n]`` of ``SITES``."""
    unit: Numbers
    """``[n]``: pictures of one unit show each other's joints."""
    fit: NDArray[np.bool_]
    """``[n]``: the whole model was taught on it, or exits may be."""
    size: Numbers
    """``[n]``: bytes of the cut in 8 bits, packed by zstd."""

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the exit sits."""

    tensor: str
    grid: int
    """Cells per side that the exit's features are pooled in."""


JOINTS_CUTS = {"one cell": Cut("stage1", 1), "4 x 4 cells": Cut("stage1", 4)}
"""The product pools in 4 x 4 cells from 512 calibration pictures on, in one cell below that."""


def available() -> bool:
    """Whether the real pictures are there."""
    return (DATA / "solder_joints" / "labels.csv").is_file()


def joints(cut: Cut, seed: int, progress: Progress) -> Line:
    """Real joints under one division by unit; the network is taught anew for each seed."""
    key = {"line": "joints", "seed": seed, "cut": asdict(cut), "net": [SIDE, WIDTH, EPOCHS], "share": FIT_SHARE}
    return _cached(key, lambda: _joints(cut, seed, progress))


def rendered(each: int, progress: Progress) -> Line:
    """So many pictures of each station; a third of them are for fits."""
    key = {"line": "rendered", "each": each, "seed": RENDERED_SEED, "grid": RENDERED_GRID}
    return _cached(key, lambda: _rendered(each, progress))


def described(
    model: bytes, cut: Cut, preprocess: Preprocess, pixels: Pixels, fit: NDArray[np.bool_]
) -> Mapping[str, object]:
    """Of pictures ``[n, height, width, channels]``: ``features``, ``whole`` and ``size`` of a :class:`Line`."""
    graph = Graph(load_model(model))
    name = graph.inputs[0]
    split = split_model(graph, resolve_cut(graph, (cut.tensor,)))
    head = split.head.SerializeToString()
    feeds = [{name: preprocess.normalise(pixels[start : start + BATCH])} for start in range(0, len(pixels), BATCH)]
    chosen = pixels[np.flatnonzero(fit)[:CALIBRATED]]
    ranges = calibrate(head, [{name: preprocess.normalise(chosen)}])
    rounded, _ = quantise_cut(split.head, split.tail, ranges)[:2]
    features, whole, size = list[NDArray[np.float32]](), list[Floats](), list[int]()
    with (
        closing(open_session(model)) as full,
        closing(open_session(head)) as plain,
        closing(open_session(rounded.SerializeToString())) as coded,
    ):
        output = full.outputs[0].name
        for feed in feeds:
            whole.append(as_probabilities(full.run(feed)[output]))
            features.append(pool(plain.run(feed)[cut.tensor], cut.grid).astype(np.float32))
            (codes,) = coded.run(feed).values()
            size += [len(codecs.encode("zstd", row.tobytes())) for row in codes]
    return {"features": np.concatenate(features), "whole": np.concatenate(whole), "size": np.array(size)}


def station_pixels(
    site: str, count: int, seed: int, tick: Callable[[], None], change: Change | None = None
) -> tuple[Pixels, Numbers]:
    """Rendered pictures of one station through JPEG, changed before that if wanted, and their classes."""
    preprocess = shipped_preprocess()
    pixels, targets = [], []
    for picture in dataset(count, seed, [site]):
        pixels.append(preprocess.pixels(to_jpeg(change(picture.image) if change else picture.image)))
        targets.append(LABELS.index(picture.label))
        tick()
    return np.stack(pixels), np.array(targets, dtype=np.int64)


def changed(each: int, seed: int, changes: Mapping[str, Change], progress: Progress) -> Line:
    """Rendered pictures of station A, all of each change in turn; ``unit`` is the number of the change."""
    key = {"line": "changed", "each": each, "seed": seed, "changes": list(changes), "grid": RENDERED_GRID}
    return _cached(key, lambda: _changed(each, seed, changes, progress))


def _changed(each: int, seed: int, changes: Mapping[str, Change], progress: Progress) -> Line:
    bar = progress.add_task("render the changes", total=each * len(changes))
    made = [station_pixels("A", each, seed, lambda: progress.advance(bar), change) for change in changes.values()]
    progress.remove_task(bar)
    pixels = np.concatenate([part for part, _ in made])
    fit = np.zeros(len(pixels), dtype=np.bool_)
    parts = described(
        (SHIPPED_MODEL / "model.onnx").read_bytes(),
        Cut(RENDERED_CUT, RENDERED_GRID),
        shipped_preprocess(),
        pixels,
        ~fit,
    )
    truth = np.concatenate([classes for _, classes in made])
    unit = np.repeat(np.arange(len(changes)), each)
    return Line(truth=truth, site=np.repeat(["A"], len(truth)), unit=unit, fit=fit, **parts)  # type: ignore[arg-type]


def shipped_preprocess() -> Preprocess:
    """Of the shipped model."""
    return Preprocess.model_validate_json((SHIPPED_MODEL / "preprocess.json").read_bytes())


def _joints(cut: Cut, seed: int, progress: Progress) -> Line:
    from benchmarks.training import Lesson, teach  # torch

    found = real_data.load(DATA / "solder_joints")
    plain = Preprocess(width=SIDE, height=SIDE, mode="L", resize="stretch")
    pixels = np.stack([plain.pixels(joint.image.read_bytes()) for joint in found])
    truth = np.array([real_data.QUALITIES.index(joint.quality) for joint in found], dtype=np.int64)
    site = np.array([joint.site[0] for joint in found])
    names = {unit: number for number, unit in enumerate(sorted({joint.unit for joint in found}))}
    unit = np.array([names[joint.unit] for joint in found], dtype=np.int64)
    fit = (divided(len(found), [FIT_SHARE, 1 - FIT_SHARE], seed=seed, groups=unit) == 0) & (site != "D")
    values = pixels[fit].astype(np.float32) / 255
    scaled = {"mean": (round(float(values.mean()), 4),), "std": (round(float(values.std()), 4),)}
    preprocess = plain.model_copy(update=scaled)

    def taught() -> bytes:
        bar = progress.add_task(f"teach the joints' network, seed {seed}", total=1.0)
        lesson = Lesson(WIDTH, SIDE, EPOCHS, seed)
        model = teach(lesson, preprocess, pixels[fit], truth[fit], 2, lambda done: progress.update(bar, completed=done))
        progress.remove_task(bar)
        return model

    net = CACHE / f"routing-net-{_digest({'seed': seed, 'net': [SIDE, WIDTH, EPOCHS], 'share': FIT_SHARE})}.onnx"
    if not net.is_file():
        _written(net, taught())
    parts = described(net.read_bytes(), cut, preprocess, pixels, fit)
    return Line(truth=truth, site=site, unit=unit, fit=fit, **parts)  # type: ignore[arg-type]


def _rendered(each: int, progress: Progress) -> Line:
    bar = progress.add_task("render the joints of four stations", total=each * len(SITES))
    made = [
        station_pixels(site, each, RENDERED_SEED + number, lambda: progress.advance(bar))
        for number, site in enumerate(SITES)
    ]
    pixels = np.concatenate([part for part, _ in made])
    fit = np.tile(np.arange(each) < each // 3, len(SITES))
    parts = described(
        (SHIPPED_MODEL / "model.onnx").read_bytes(), Cut(RENDERED_CUT, RENDERED_GRID), shipped_preprocess(), pixels, fit
    )
    progress.remove_task(bar)
    truth = np.concatenate([classes for _, classes in made])
    return Line(truth=truth, site=np.repeat(SITES, each), unit=np.arange(len(truth)), fit=fit, **parts)  # type: ignore[arg-type]


def _cached(key: Mapping[str, object], make: Callable[[], Line]) -> Line:
    path = CACHE / f"routing-rows-{_digest(key)}.safetensors"
    if not path.is_file():
        line = make()
        arrays = {field.name: np.ascontiguousarray(getattr(line, field.name)) for field in fields(Line)}
        sites = np.searchsorted(SITES, line.site)
        _written(path, save(arrays | {"site": sites.astype(np.int64), "fit": line.fit.astype(np.uint8)}))
    held = load(path.read_bytes())
    return Line(**held | {"site": np.array(SITES)[held["site"]], "fit": held["fit"].astype(np.bool_)})


def _written(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def _digest(key: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps({**key, "revision": REVISION}, sort_keys=True).encode()).hexdigest()[:16]
