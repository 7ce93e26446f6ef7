"""Vision networks as ONNX files: what people cut, in the structures they use, exported by torch with a dynamic batch.

Weights are random and seeded, so they need no download; times and shapes are those of the real nets, answers are not.
``python -m benchmarks.architectures`` writes all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.nets.attention import Swin, Vit
from benchmarks.nets.blocks import randomise
from benchmarks.nets.convolution import (
    convnext_tiny,
    densenet121,
    efficientnet_b0,
    mobilenet_v2,
    mobilenet_v3,
    resnet18,
)
from benchmarks.nets.dense import Branching, Detector, Segmentation, Siamese, Unet, autoencoder

CACHE = Path(__file__).resolve().parents[1] / "build" / "architectures"
SOURCES = Path(__file__).resolve().parent / "nets"


@dataclass(frozen=True, slots=True)
class Builder:
    """One network."""

    make: Callable[[float, int], nn.Module]
    """From a width multiplier (1: the paper's) and the picture's side."""
    side: int = 224
    """The paper's, in pixels."""
    inputs: tuple[str, ...] = ("picture",)


ARCHITECTURES: dict[str, Builder] = {
    "resnet18": Builder(lambda width, _: resnet18(width)),
    "mobilenet_v2": Builder(lambda width, _: mobilenet_v2(width)),
    "mobilenet_v3": Builder(lambda width, _: mobilenet_v3(width)),
    "efficientnet_b0": Builder(lambda width, _: efficientnet_b0(width)),
    "densenet121": Builder(lambda width, _: densenet121(width)),
    "convnext_tiny": Builder(lambda width, _: convnext_tiny(width)),
    "vit_tiny": Builder(Vit),
    "swin_tiny": Builder(Swin),
    "unet": Builder(lambda width, _: Unet(width), 256),
    "yolo": Builder(lambda width, _: Detector(width), 320),
    "autoencoder": Builder(lambda width, _: autoencoder(width), 128),
    "deeplab": Builder(lambda width, _: Segmentation(width), 128),
    "siamese": Builder(lambda width, _: Siamese(width), 128, ("part", "reference")),
    "branching": Builder(lambda width, _: Branching(width), 64),
}
"""By name."""


def build(name: str, *, width: float = 1.0, side: int | None = None, seed: int = 0) -> bytes:
    """The ONNX file of one network; exported once and kept under ``build/architectures``.

    ``side`` is a multiple of 32 (Swin: of 64 or of 224); the network's own when None.
    """
    builder = ARCHITECTURES[name]
    pixels = side or builder.side
    digest = hashlib.sha256(f"{torch.__version__} {name} {width} {pixels} {seed}".encode())
    for path in (Path(__file__), *sorted(SOURCES.glob("*.py"))):
        digest.update(path.read_bytes())
    path = CACHE / f"{name}-{digest.hexdigest()[:16]}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        data = export(randomise(builder.make(width, pixels), seed), builder.inputs, pixels)
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_bytes(data)
        staged.replace(path)
    return path.read_bytes()


def export(net: nn.Module, inputs: tuple[str, ...], side: int) -> bytes:
    """A net on pictures ``[batch, 3, side, side]`` as one ONNX file with a dynamic batch."""
    pictures = tuple(torch.randn(2, 3, side, side) for _ in inputs)
    batch = torch.export.Dim("batch", min=1, max=1024)
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            pictures,
            dynamo=True,
            input_names=list(inputs),
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
        if program is None:
            raise AssertionError("the exporter returns a program when no file is named")
        file.write(program.model_proto.SerializeToString())
    return file.getvalue()


if __name__ == "__main__":
    for known in ARCHITECTURES:
        print(f"{known}: {len(build(known)) / 1e6:.1f} MB")
