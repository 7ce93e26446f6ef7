"""The networks that benchmarks train, and how: torch, a fixed number of epochs, seeded. Knows pixels, not files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from examples.solder_joints.train import augment
from splitmesh.model.preprocess import Preprocess
from splitmesh.runtime import open_session

BATCH = 32
PEAK_LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.02
OPSET = 17
_MAX_IR_VERSION = 10
_MEASURE_BATCH = 64


@dataclass(frozen=True)
class Lesson:
    """How a ResNet is trained."""

    width: int
    pixels: int
    epochs: int
    seed: int


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        inner = functional.relu(self.norm1(self.first(x)))
        return functional.relu(self.norm2(self.second(inner)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet-18 (He et al., 2015) for grey pictures; ``width`` channels in the first stage (64 in the paper)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                Block(width << max(stage - 1, 0), width << stage, 1 if stage == 0 else 2),
                Block(width << stage, width << stage, 1),
            )
            for stage in range(4)
        )
        self.classifier = nn.Linear(width << 3, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[n, classes]``."""
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def teach(
    lesson: Lesson,
    preprocess: Preprocess,
    pixels: NDArray[np.uint8],
    targets: NDArray[np.int64],
    classes: int,
    progress: Callable[[float], None],
) -> bytes:
    """The trained network as ONNX; the same lesson and number of threads give the same."""
    torch.manual_seed(lesson.seed)
    generator = torch.Generator().manual_seed(lesson.seed)
    network = ResNet(classes, lesson.width)
    labels = torch.from_numpy(targets)
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).float()
    weights = (counts.mean() / counts).sqrt()
    batches = -(-len(labels) // BATCH)
    steps = lesson.epochs * batches
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.2)
    network.train()
    for step, chosen in enumerate(_chosen(lesson.epochs, batches, len(labels), generator), start=1):
        images = augment(torch.from_numpy(preprocess.normalise(pixels[chosen.numpy()])), generator)
        loss = functional.cross_entropy(network(images), labels[chosen], weight=weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(step / steps)
    return exported(network, lesson.pixels)


def _chosen(epochs: int, batches: int, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(samples, generator=generator).tensor_split(batches)


def exported(network: ResNet, pixels: int) -> bytes:
    """The network as ONNX."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        # As in examples/solder_joints/network.py: deprecated, but one plain file.
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 1, pixels, pixels),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
        model = onnx.load(path)
    for stage in range(3):
        _rename(model.graph, _last_output(model.graph, f"/stages.{stage}/"), f"stage{stage + 1}")
    model.ir_version = min(model.ir_version, _MAX_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _last_output(graph: onnx.GraphProto, scope: str) -> str:
    return [node.output[0] for node in graph.node if node.name.startswith(scope)][-1]


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def accuracy(model: bytes, preprocess: Preprocess, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> float:
    """Share of right answers of the ONNX file."""
    session = open_session(model)
    given = [
        session.run({"image": preprocess.normalise(pixels[start : start + _MEASURE_BATCH])})["logits"].argmax(axis=1)
        for start in range(0, len(pixels), _MEASURE_BATCH)
    ]
    session.close()
    return float((np.concatenate(given) == targets).mean())
