"""SolderNet: a small residual classifier that is made to be cut in two, and its export to one ONNX file.

    image 1x128x128 -> stem, two light stages -> waist 8x16x16 -> three wide stages -> logits
                       head: about a tenth of the work          tail: the rest

The waist is the narrowest tensor of the graph (2,048 values, an eighth of the picture's pixels), so a planner finds it
without being told. Knows nothing of pictures, labels or training.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

INPUT_SIZE = 128
"""Width and height of the input in pixels."""

WAIST = "waist"
"""Name of the narrow tensor in the exported graph."""

OPSET = 17
_MAX_IR_VERSION = 10


class ConvNorm(nn.Sequential):
    """Convolution and batch normalisation, which the export folds into one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is projected when the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, stride=stride)
        self.second = ConvNorm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else ConvNorm(inputs, outputs, kernel=1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, inputs, h, w]`` to ``[batch, outputs, h / stride, w / stride]``."""
        out: Tensor = self.relu(self.second(self.relu(self.first(x))) + self.shortcut(x))
        return out


class SolderNet(nn.Module):
    """Classifier for ``[batch, in_channels, 128, 128]``; ``width`` is the channel count of the tail's first stage."""

    def __init__(self, num_classes: int, width: int = 64, in_channels: int = 1) -> None:
        super().__init__()
        if width % 8:
            raise ValueError(f"width must be a multiple of 8, got {width}")
        thin = width // 8
        self.head = nn.Sequential(
            ConvNorm(in_channels, thin, stride=2),
            nn.ReLU(),
            Residual(thin, 2 * thin, stride=2),
            Residual(2 * thin, 3 * thin, stride=2),
        )
        # Linear on purpose: a ReLU here would throw away half of the few values that cross the link.
        self.waist = ConvNorm(3 * thin, thin, kernel=1)
        self.tail = nn.Sequential(
            ConvNorm(thin, width),
            nn.ReLU(),
            Residual(width, width),
            Residual(width, width),
            Residual(width, width * 3 // 2, stride=2),
            Residual(width * 3 // 2, width * 3 // 2),
            Residual(width * 3 // 2, width * 2, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width * 2, num_classes),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``[batch, num_classes]``; no softmax."""
        logits: Tensor = self.tail(self.waist(self.head(image)))
        return logits


def folded(network: SolderNet) -> SolderNet:
    """A copy in eval mode whose batch normalisations are part of the convolutions: same answers, fewer nodes."""
    copied = copy.deepcopy(network).cpu().eval()
    for module in copied.modules():
        if isinstance(module, ConvNorm):
            convolution, norm = module[0], module[1]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            module[0] = fuse_conv_bn_eval(convolution, norm)
            module[1] = nn.Identity()
    return copied


def work(network: SolderNet) -> dict[str, int]:
    """Multiply-adds for one picture in the ``head`` (waist included) and the ``tail``."""
    counts = {"head": 0, "tail": 0}

    def count(part: str, module: nn.Module, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        counts[part] += weight.numel() * positions

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            part = "tail" if name.startswith("tail") else "head"
            hooks.append(module.register_forward_hook(lambda m, _, out, part=part: count(part, m, out)))
    channels = next(network.parameters()).shape[1]
    training = network.training
    with torch.no_grad():
        network.eval()(torch.zeros(1, channels, INPUT_SIZE, INPUT_SIZE))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return counts


def export(network: SolderNet, path: Path) -> None:
    """Write one self-contained ONNX file: input ``image`` ``[batch, c, 128, 128]``, output ``logits`` ``[batch, n]``.

    The waist's tensor is called ``waist``.
    """
    plain = folded(network)
    channels = next(plain.parameters()).shape[1]
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated in torch, but writes one plain file and needs no extra package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            plain,
            (torch.zeros(2, channels, INPUT_SIZE, INPUT_SIZE),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    model = onnx.load(path)
    _name_waist(model.graph)
    model.ir_version = min(model.ir_version, _MAX_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _name_waist(graph: onnx.GraphProto) -> None:
    """Rename the output of the waist's convolution, the node that the exporter scoped under ``/waist/``."""
    (old,) = (node.output[0] for node in graph.node if node.op_type == "Conv" and node.name.startswith("/waist/"))
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == old:
                    names[position] = WAIST
