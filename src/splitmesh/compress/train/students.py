"""Light classifiers of pictures for a weak edge host, in any input size.

Depthwise separable convolutions (Howard et al., MobileNets, 2017) with residual connections (He et al., 2016) and ReLU
only, which 8-bit kernels like. The end takes the mean and the largest value over the picture: a defect may be small.
Knows nothing of teachers, data or ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALLEST_SIDE = 8
"""Height and width are halved until about here."""

MOST_STAGES = 5

WIDEST = 8
"""Times the first stage's channels."""


class Separable(nn.Module):
    """Depthwise 3x3, then 1x1, each normalised; beside an identity where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.point = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.keeps = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        y = functional.relu(self.norm1(self.depth(x)))
        y = self.norm2(self.point(y))
        return functional.relu(y + x if self.keeps else y)


class Student(nn.Module):
    """Pictures to class scores.

    Args:
        channels: of the pictures.
        size: height and width of the pictures, which decide the number of stages.
        classes: of the answer.
        width: channels of the first stage; doubled at every further one.
        channels_last: pictures come as ``[n, height, width, channels]``.
        probabilities: the answer is a distribution instead of logits.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        width: int,
        *,
        channels_last: bool = False,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.channels_last, self.probabilities = channels_last, probabilities
        side = min(size) // 2
        self.stem = nn.Conv2d(channels, width, 3, 2 if side >= SMALLEST_SIDE else 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = [Separable(width, width, 1)]
        inputs = width
        for _ in range(MOST_STAGES):
            if side < 2 * SMALLEST_SIDE:
                break
            outputs = min(2 * inputs, WIDEST * width)
            blocks += [Separable(inputs, outputs, 2), Separable(outputs, outputs, 1)]
            inputs, side = outputs, side // 2
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(2 * inputs, classes)

    def logits(self, pictures: Tensor) -> Tensor:
        """``[n, classes]``, what is trained."""
        x = pictures.permute(0, 3, 1, 2) if self.channels_last else pictures
        x = self.blocks(functional.relu(self.norm(self.stem(x))))
        scores: Tensor = self.classifier(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))
        return scores

    def forward(self, pictures: Tensor) -> Tensor:
        """``[n, classes]``, what the exported model gives."""
        scores = self.logits(pictures)
        return torch.softmax(scores, dim=1) if self.probabilities else scores
