"""Trains SolderNet on rendered or real pictures and writes a folder that the rest of splitmesh can use.

    python -m examples.solder_joints.train --out examples/solder_joints/model
    python -m examples.solder_joints.train --out /tmp/model --data /path/to/solder_joints

The folder holds ``model.onnx``, ``preprocess.json``, ``labels.json`` and ``metrics.json``. The figures come from the
written ONNX file in onnxruntime, not from the network in memory. The test split is looked at once, at the end: nothing
is chosen by it. Knows nothing of cuts, exits or compression.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional

from examples.solder_joints import real_data, render
from examples.solder_joints.network import INPUT_SIZE, SolderNet, export, work
from examples.solder_joints.samples import Samples, real, rendered, scaled
from splitmesh.model.preprocess import Preprocess

SPLITS = ("train", "val", "test")
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.02

RENDERED_EPOCHS = 8
"""About four minutes of training on two idle cores."""
REAL_EPOCHS = 20


@dataclass(frozen=True)
class Task:
    """Everything that training needs to know about its data."""

    dataset: str
    """``rendered`` or ``real``."""
    labels: tuple[str, ...]
    """Class names in class order; the first is the good class."""
    preprocess: Preprocess
    splits: dict[str, Samples]
    """One entry per name in SPLITS."""
    epochs: int
    seed: int


@dataclass(frozen=True)
class Recall:
    """One class in one split."""

    n: int
    recall: float | None
    """Share of the class answered with the class; None when the split has none."""


@dataclass(frozen=True)
class Score:
    """What a model achieves on one split; a share of nothing is None."""

    n: int
    accuracy: float | None
    ng_n: int
    """Number of bad joints."""
    ng_recall: float | None
    """Share of bad joints that are not called good (calling one defect another still stops the joint)."""
    false_alarms: float | None
    """Share of good joints that are called bad."""
    per_class: dict[str, Recall]


def rendered_task(counts: dict[str, int], epochs: int, seed: int, progress: Progress) -> Task:
    """Rendered pictures; each split has a seed of its own, so that no picture is in two of them."""
    plain = Preprocess(width=INPUT_SIZE, height=INPUT_SIZE, mode="L", resize="centre_crop")
    bar = progress.add_task("rendering", total=sum(counts.values()))
    splits = {
        name: rendered(counts[name], 3 * seed + position, plain, lambda: progress.advance(bar))
        for position, name in enumerate(SPLITS)
    }
    return Task("rendered", render.LABELS, scaled(plain, splits["train"]), splits, epochs, seed)


def real_task(root: Path, epochs: int, seed: int, progress: Progress) -> Task:
    """Real pictures, split by the table's ``split`` column.

    Raises FileNotFoundError and ValueError as :func:`real_data.load`.
    """
    joints = real_data.load(root)
    # The whole picture, because bar-shaped pads fill much of it; on the validation split it is one picture of 401
    # better than the centre square, which is no difference.
    plain = Preprocess(width=INPUT_SIZE, height=INPUT_SIZE, mode="L", resize="stretch")
    bar = progress.add_task("reading", total=len(joints))
    splits = {
        name: real([j for j in joints if j.split == name], plain, lambda: progress.advance(bar)) for name in SPLITS
    }
    return Task("real", real_data.QUALITIES, scaled(plain, splits["train"]), splits, epochs, seed)


def fit(task: Task, progress: Progress, batch_size: int = 64) -> SolderNet:
    """Train from scratch; the same task and number of threads give the same network."""
    torch.manual_seed(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    network = SolderNet(len(task.labels))
    train = task.splits["train"]
    targets = torch.from_numpy(train.targets)
    counts = torch.bincount(targets, minlength=len(task.labels)).clamp(min=1).float()
    # The root of the inverse frequency: the full inverse makes a model that cries wolf on rare classes.
    weights = (counts.mean() / counts).sqrt()
    batches = -(-len(train) // batch_size)
    steps = task.epochs * batches
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step / steps))
    bar = progress.add_task("training", total=steps)
    network.train()
    for epoch in range(task.epochs):
        order = torch.randperm(len(train), generator=generator)
        for chosen in order.tensor_split(batches):
            images = augment(torch.from_numpy(task.preprocess.normalise(train.pixels[chosen.numpy()])), generator)
            loss = functional.cross_entropy(network(images), targets[chosen], weight=weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            progress.advance(bar)
        progress.update(bar, description=f"training, epoch {epoch + 1}, loss {loss.item():.3f}")
    return network


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, shifts and zoom up to 5 %, brightness up to 15 %: what varies without changing the label."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    flips = torch.randint(0, 2, (n, 2), generator=generator) * 2 - 1
    zoom = uniform(0.95, 1.05)
    transform = torch.zeros(n, 2, 3)
    transform[:, 0, 0], transform[:, 1, 1] = flips[:, 0] * zoom, flips[:, 1] * zoom
    transform[:, 0, 2], transform[:, 1, 2] = uniform(-0.1, 0.1), uniform(-0.1, 0.1)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    floor = images.amin()
    return floor + (moved - floor) * uniform(0.85, 1.15).view(n, 1, 1, 1)


def answers(model: Path, preprocess: Preprocess, pixels: NDArray[np.uint8], batch_size: int = 64) -> NDArray[np.int64]:
    """Class numbers ``[n]`` that the ONNX file gives for uint8 pixels ``[n, height, width, channels]``."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    given = [
        session.run(["logits"], {"image": preprocess.normalise(pixels[start : start + batch_size])})[0].argmax(axis=1)
        for start in range(0, len(pixels), batch_size)
    ]
    return np.concatenate(given).astype(np.int64)


def score(given: NDArray[np.int64], targets: NDArray[np.int64], labels: Sequence[str]) -> Score:
    """Compare class numbers ``[n]`` with the truth ``[n]``; class 0 is the good one."""
    bad = targets != 0
    of_class = {label: targets == index for index, label in enumerate(labels)}
    return Score(
        n=len(targets),
        accuracy=_share(given == targets),
        ng_n=int(bad.sum()),
        ng_recall=_share(given[bad] != 0),
        false_alarms=_share(given[~bad] != 0),
        per_class={name: Recall(int(mask.sum()), _share((given == targets)[mask])) for name, mask in of_class.items()},
    )


def write(task: Task, network: SolderNet, out: Path, started: float) -> dict[str, Score]:
    """Write the four files into ``out`` (made when absent); one score per split. ``started`` is a perf_counter."""
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model.onnx"
    export(network, model)
    scores = {
        name: score(answers(model, task.preprocess, samples.pixels), samples.targets, task.labels)
        for name, samples in task.splits.items()
    }
    metrics = {
        "dataset": task.dataset,
        "seed": task.seed,
        "epochs": task.epochs,
        "seconds": round(time.perf_counter() - started, 1),
        "model_bytes": model.stat().st_size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "multiply_adds": work(network),
        "splits": {name: asdict(result) for name, result in scores.items()},
    }
    (out / "preprocess.json").write_text(task.preprocess.model_dump_json() + "\n", encoding="utf-8")
    (out / "labels.json").write_text(json.dumps(task.labels) + "\n", encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return scores


def run(make: Callable[[Progress], Task], out: Path, console: Console) -> dict[str, Score]:
    """Make the task, train, write; one score per split."""
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = make(progress)
        network = fit(task, progress)
    scores = write(task, network, out, started)
    for name in ("val", "test"):
        result = scores[name]
        console.print(
            f"{name}: n {result.n}, accuracy {result.accuracy}, ng recall {result.ng_recall} (ng n {result.ng_n}), "
            f"false alarms {result.false_alarms}"
        )
    console.print(f"{time.perf_counter() - started:.0f} s, written to {out}")
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Train the solder-joint classifier.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, made when absent")
    parser.add_argument("--data", type=Path, help="folder of real pictures; without it pictures are rendered")
    parser.add_argument("--epochs", type=int, help=f"default {RENDERED_EPOCHS} rendered, {REAL_EPOCHS} real")
    parser.add_argument("--seed", type=int, default=0, help="pictures, start weights and order follow from it")
    parser.add_argument("--train-n", type=int, default=6000, help="rendered pictures to train on")
    parser.add_argument("--val-n", type=int, default=1000, help="rendered pictures to validate on")
    parser.add_argument("--test-n", type=int, default=2000, help="rendered pictures to test on")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    chosen = parser.parse_args(argv)
    torch.set_num_threads(chosen.threads)

    def make(progress: Progress) -> Task:
        if chosen.data is not None:
            return real_task(chosen.data, chosen.epochs or REAL_EPOCHS, chosen.seed, progress)
        counts = {"train": chosen.train_n, "val": chosen.val_n, "test": chosen.test_n}
        return rendered_task(counts, chosen.epochs or RENDERED_EPOCHS, chosen.seed, progress)

    run(make, chosen.out, Console())


def _one_cycle(done: float) -> float:
    """Share of the peak learning rate: a short linear rise, then a cosine to almost nothing."""
    rise = 0.15
    return (
        max(0.02, done / rise)
        if done < rise
        else max(1e-3, 0.5 + 0.5 * float(np.cos(np.pi * (done - rise) / (1 - rise))))
    )


def _share(mask: NDArray[np.bool_]) -> float | None:
    return round(float(mask.mean()), 4) if mask.size else None


if __name__ == "__main__":
    main()
