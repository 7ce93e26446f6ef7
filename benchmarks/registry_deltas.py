"""How large patches between versions are: a net trained further in part and whole, in float32 and in int8.

The nets are real ones: a ResNet-18 on rendered solder joints, trained for a few hundred steps, then further on other pictures
with only its last layer, only its last stage and classifier, or everything free; normalisation layers of what is frozen keep
their statistics. int8 is onnxruntime's static quantisation with ranges from the same pictures.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rich.progress import Progress
from torch.nn import Parameter, functional

from benchmarks.training import ResNet, exported
from examples.solder_joints.render import LABELS
from examples.solder_joints.samples import rendered
from splitmesh.blobs.delta import apply_delta, make_delta
from splitmesh.model.preprocess import Preprocess

PIXELS = 64
BATCH = 32
LEARNING_RATE = 1e-3
FURTHER_RATE = 1e-4


class _Pictures(CalibrationDataReader):
    def __init__(self, pictures: NDArray[np.float32]) -> None:
        self._rest = iter(pictures[:, None])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """One picture, or None at the end."""
        picture = next(self._rest, None)
        return None if picture is None else {"image": picture}


def delta_rows(progress: Progress, *, small: bool) -> list[dict[str, object]]:
    """Rows of the benchmark's table; ``small``: a narrower net and fewer steps."""
    width, steps = (16, 20) if small else (64, 200)
    task = progress.add_task("training and patching", total=4)
    preprocess = Preprocess(width=PIXELS, height=PIXELS, mode="L", resize="centre_crop", mean=(0.5,), std=(0.25,))
    first, other = (rendered(BATCH * 8, seed, preprocess, lambda: None) for seed in (11, 12))
    images = [torch.from_numpy(preprocess.normalise(samples.pixels)) for samples in (first, other)]
    targets = [torch.from_numpy(samples.targets) for samples in (first, other)]
    torch.manual_seed(0)
    base = ResNet(len(LABELS), width)
    _train(base, images[0], targets[0], list(base.parameters()), steps, LEARNING_RATE)
    progress.advance(task)
    further: dict[str, Callable[[ResNet], list[Parameter]]] = {
        "last layer": lambda net: list(net.classifier.parameters()),
        "last stage": lambda net: [*net.stages[-1].parameters(), *net.classifier.parameters()],
        "all of it": lambda net: list(net.parameters()),
    }
    nets = {"base": exported(base, PIXELS)}
    for name, free in further.items():
        net = copy.deepcopy(base)
        _train(net, images[1], targets[1], free(net), steps // 4, FURTHER_RATE, whole=name == "all of it")
        nets[name] = exported(net, PIXELS)
    progress.advance(task)
    quantised = {name: _int8(model, images[0].numpy()) for name, model in nets.items()}
    progress.advance(task)
    rows = []
    for kind, models in (("float32", nets), ("int8", quantised)):
        rows += [_row(f"{kind}, {name} trained further", models["base"], models[name]) for name in further]
    rows.append(_row("float32 to its own int8", nets["base"], quantised["base"]))
    progress.advance(task)
    return rows


def _row(what: str, base: bytes, target: bytes) -> dict[str, object]:
    began = time.perf_counter()
    delta = make_delta(base, target)
    made_s = time.perf_counter() - began
    if apply_delta(base, delta, len(target)) != target:
        raise RuntimeError(f"{what}: the patch does not give the target")
    return {
        "what": f"patch: {what}",
        "MB": round(len(target) / 1e6, 1),
        "n": 1,
        "plain_copy_MB_s": "",
        "registry_MB_s": f"{len(target) / 1e6 / made_s:.0f} made",
        "ratio": f"{len(delta) / len(target):.3f} of the size",
    }


def _train(
    net: ResNet,
    images: torch.Tensor,
    targets: torch.Tensor,
    free: list[Parameter],
    steps: int,
    rate: float,
    *,
    whole: bool = True,
) -> None:
    optimizer = torch.optim.AdamW(free, lr=rate)
    generator = torch.Generator().manual_seed(0)
    net.train(whole)  # what is frozen keeps its normalisation
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        functional.cross_entropy(net(images[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _int8(model: bytes, pictures: NDArray[np.float32]) -> bytes:
    with TemporaryDirectory() as folder:
        before, after = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        before.write_bytes(model)
        quantize_static(
            before,
            after,
            _Pictures(pictures[:64]),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        return after.read_bytes()
