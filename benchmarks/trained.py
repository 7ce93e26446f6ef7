"""Networks trained on real pictures, for benchmarks that need features of something that works: trained once, cached.

    python -m benchmarks.trained            # train what is missing, show what there is

``joints-resnet`` and ``cells-resnet``: a ResNet-18 of half width on solder joints and on solar cells. Training takes the
train split only, for a fixed number of epochs: nothing is chosen by the other splits. Needs torch for training, not for
reading the cache (``build/bench/cache``, by digest of the settings). Knows nothing of cuts, exits or compression.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from examples.solder_joints import real_data
from splitmesh.model.artifacts import tensor_infos
from splitmesh.model.graph import Graph
from splitmesh.model.load import load_model
from splitmesh.model.manifest import WHOLE, Manifest, SegmentInfo
from splitmesh.model.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "bench" / "cache"
DATA = Path(os.environ.get("SPLITMESH_DATA", ROOT.parent / "shared" / "data"))
"""Folder of ``solder_joints`` and ``solar_cells``; their pictures are no part of this repository."""

SPLITS = ("train", "val", "test")
CELL_QUALITIES = ("ok", "ng")


@dataclass(frozen=True)
class Settings:
    """Everything the trained network depends on, beside the pictures."""

    dataset: str
    network: str
    """``resnet``: ResNet-18 of the given width."""
    pixels: int
    """Side of the input."""
    width: int
    epochs: int
    seed: int = 0
    revision: int = 1
    """Counts up when the training itself changes."""

    def digest(self) -> str:
        """Of the cache's file names."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


NETS = {
    "joints-resnet": Settings("solder_joints", "resnet", 128, 32, 6),
    "cells-resnet": Settings("solar_cells", "resnet", 224, 32, 10),
}
"""All that :func:`net` knows."""

STAGES = ("stage1", "stage2", "stage3")
"""Tensors behind the first three stages of a ResNet here; the fourth ends in the classifier. SolderNet has ``waist``."""


@dataclass(frozen=True, eq=False)
class Part:
    """One split."""

    pixels: NDArray[np.uint8]
    """``[n, height, width, 1]``."""
    targets: NDArray[np.int64]
    """``[n]`` class numbers; 0 is ``ok``."""
    groups: NDArray[np.int64]
    """``[n]``: the board position, whose pictures show each other's joints; every cell is its own group."""
    paths: tuple[Path, ...] = ()
    """Of the files; empty for pictures made up."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with its data."""

    name: str
    model: bytes
    """ONNX: input ``image`` ``[batch, 1, side, side]``, output ``logits`` ``[batch, classes]``."""
    labels: tuple[str, ...]
    preprocess: Preprocess
    splits: dict[str, Part]
    train_seconds: float
    """When it was trained; on two cores that did other things too."""

    def manifest(self) -> Manifest:
        """Of the whole model."""
        graph = Graph(load_model(self.model))
        inputs, outputs = tensor_infos(graph, graph.inputs), tensor_infos(graph, graph.outputs)
        whole = SegmentInfo(artifact=WHOLE, inputs=inputs, outputs=outputs)
        return Manifest(task="classification", labels=self.labels, preprocess=self.preprocess, whole=whole)


def available(name: str, data: Path = DATA) -> bool:
    """Whether the pictures are there."""
    return (data / NETS[name].dataset / "labels.csv").is_file()


def net(name: str, *, data: Path = DATA, progress: Progress | None = None) -> Trained:
    """The network, from the cache or trained now (minutes).

    Raises FileNotFoundError when the pictures are absent; ImportError when it must be trained and there is no torch.
    """
    settings = NETS[name]
    splits = _read(settings, data)
    train = splits["train"].pixels.astype(np.float32) / 255
    preprocess = _plain(settings.pixels).model_copy(
        update={"mean": (round(float(train.mean()), 4),), "std": (round(float(train.std()), 4),)}
    )
    model_file, seconds_file = CACHE / f"{name}-{settings.digest()}.onnx", CACHE / f"{name}-{settings.digest()}.json"
    if not (model_file.is_file() and seconds_file.is_file()):
        started = time.perf_counter()
        content = _train(settings, preprocess, splits["train"], progress)
        CACHE.mkdir(parents=True, exist_ok=True)
        _write(model_file, content)
        _write(seconds_file, json.dumps({"train_seconds": time.perf_counter() - started}).encode())
    seconds = float(json.loads(seconds_file.read_text())["train_seconds"])
    return Trained(name, model_file.read_bytes(), CELL_QUALITIES, preprocess, splits, seconds)


def _write(path: Path, content: bytes) -> None:
    """Never half: two benchmarks may train the same network at once."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def _plain(pixels: int) -> Preprocess:
    return Preprocess(width=pixels, height=pixels, mode="L", resize="stretch")


def _read(settings: Settings, data: Path) -> dict[str, Part]:
    rows = _joints(data) if settings.dataset == "solder_joints" else _cells(data)
    preprocess = _plain(settings.pixels)
    return {
        split: Part(
            pixels=np.stack([preprocess.pixels(path.read_bytes()) for path, _, _, part in rows if part == split]),
            targets=np.array([target for _, target, _, part in rows if part == split], dtype=np.int64),
            groups=np.array([group for _, _, group, part in rows if part == split], dtype=np.int64),
            paths=tuple(path for path, _, _, part in rows if part == split),
        )
        for split in SPLITS
    }


Row = tuple[Path, int, int, str]
"""Picture, class, group, split."""


def _joints(data: Path) -> list[Row]:
    joints = real_data.load(data / "solder_joints")
    units = {unit: number for number, unit in enumerate(sorted({joint.unit for joint in joints}))}
    return [(j.image, real_data.QUALITIES.index(j.quality), units[j.unit], j.split) for j in joints]


def _cells(data: Path) -> list[Row]:
    root = data / "solar_cells"
    with (root / "labels.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    return [
        (root / row["path"], CELL_QUALITIES.index(row["quality"]), number, row["split"])
        for number, row in enumerate(table)
    ]


def _train(settings: Settings, preprocess: Preprocess, train: Part, progress: Progress | None) -> bytes:
    from benchmarks.training import Lesson, teach  # torch

    shown = progress or Progress(disable=True)
    bar = shown.add_task(f"training {settings.network} on {settings.dataset}", total=1.0)
    lesson = Lesson(settings.width, settings.pixels, settings.epochs, settings.seed)

    def tell(share: float) -> None:
        shown.update(bar, completed=share)

    return teach(lesson, preprocess, train.pixels, train.targets, len(CELL_QUALITIES), tell)


def main() -> None:
    """Train what is missing; accuracies are of the written files."""
    from benchmarks.training import accuracy

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all when none is named")
    console = Console()
    names = parser.parse_args().names or list(NETS)
    with Progress(console=console) as progress:
        for name in names:
            if not available(name):
                console.print(f"{name}: skipped, no pictures in {DATA / NETS[name].dataset}")
                continue
            trained = net(name, progress=progress)
            figures = ", ".join(
                f"{split} {accuracy(trained.model, trained.preprocess, part.pixels, part.targets):.3f} (n {len(part)})"
                for split, part in trained.splits.items()
            )
            console.print(f"{name}: accuracy {figures}; trained in {trained.train_seconds:.0f} s")


if __name__ == "__main__":
    main()
