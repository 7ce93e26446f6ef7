"""Classifiers of convolutions: ResNet, MobileNet V2 and V3, EfficientNet, DenseNet, ConvNeXt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.nets.blocks import Classifier, SqueezeExcite, channels, conv_bn

CLASSES = 100


class BasicBlock(nn.Module):
    """Two convolutions and a skip connection (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride, act=nn.ReLU())
        self.second = conv_bn(outputs, outputs)
        plain = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if plain else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Halves the size at stride 2."""
        return torch.relu(self.second(self.first(x)) + self.skip(x))


def resnet18(width: float) -> nn.Module:
    """ResNet-18."""
    stages, inputs = [], channels(64, width)
    stem = [*conv_bn(3, inputs, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for base, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        outputs = channels(base, width)
        stages += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*stem, *stages, Classifier(inputs, CLASSES))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze-and-excite where given, project; skip where the shape is kept."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, act: nn.Module, se: nn.Module | None
    ) -> None:
        super().__init__()
        expand = [] if hidden == inputs else [conv_bn(inputs, hidden, 1, act=act)]
        middle = conv_bn(hidden, hidden, kernel, stride, groups=hidden, act=act)
        attend = [] if se is None else [se]
        self.body = nn.Sequential(*expand, middle, *attend, conv_bn(hidden, outputs, 1))
        self.keeps = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Halves the size at stride 2."""
        y: Tensor = self.body(x)
        return x + y if self.keeps else y


def mobilenet_v2(width: float) -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018)."""
    inputs = channels(32, width)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2, act=nn.ReLU6())]
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, base, repeats, first_stride in table:
        for index in range(repeats):
            outputs, stride = channels(base, width), first_stride if index == 0 else 1
            layers.append(InvertedResidual(inputs, inputs * expansion, outputs, 3, stride, nn.ReLU6(), None))
            inputs = outputs
    last = channels(1280, max(width, 0.25))
    return nn.Sequential(*layers, conv_bn(inputs, last, 1, act=nn.ReLU6()), Classifier(last, CLASSES))


def mobilenet_v3(width: float) -> nn.Module:
    """MobileNetV3-Small: hard swish, squeeze-and-excite with a hard sigmoid (Howard et al. 2019)."""
    inputs = channels(16, width)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2, act=nn.Hardswish())]
    table = (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    )
    for kernel, hidden_base, base, attends, hard, stride in table:
        hidden, outputs = channels(hidden_base, width), channels(base, width)
        se = SqueezeExcite(hidden, channels(hidden, 0.25), nn.ReLU(), nn.Hardsigmoid()) if attends else None
        act = nn.Hardswish() if hard else nn.ReLU()
        layers.append(InvertedResidual(inputs, hidden, outputs, kernel, stride, act, se))
        inputs = outputs
    last = channels(576, width)
    return nn.Sequential(*layers, conv_bn(inputs, last, 1, act=nn.Hardswish()), Classifier(last, CLASSES))


def efficientnet_b0(width: float) -> nn.Module:
    """EfficientNet-B0: SiLU and squeeze-and-excite everywhere (Tan and Le 2019)."""
    inputs = channels(32, width)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2, act=nn.SiLU())]
    table = (
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    )
    for expansion, kernel, base, repeats, first_stride in table:
        for index in range(repeats):
            outputs, hidden = channels(base, width), inputs * expansion
            se = SqueezeExcite(hidden, max(1, inputs // 4), nn.SiLU(), nn.Sigmoid())
            stride = first_stride if index == 0 else 1
            layers.append(InvertedResidual(inputs, hidden, outputs, kernel, stride, nn.SiLU(), se))
            inputs = outputs
    last = channels(1280, width)
    return nn.Sequential(*layers, conv_bn(inputs, last, 1, act=nn.SiLU()), Classifier(last, CLASSES))


class DenseLayer(nn.Module):
    """Normalise, bottleneck, convolve, and concatenate to the input (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``growth`` more channels."""
        return torch.cat([x, self.body(x)], 1)


def densenet121(width: float) -> nn.Module:
    """DenseNet-121."""
    growth = channels(32, width)
    inputs = 2 * growth
    layers: list[nn.Module] = [conv_bn(3, inputs, 7, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    for stage, repeats in enumerate((6, 12, 24, 16)):
        if stage:
            transition = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs // 2, 1, bias=False)]
            layers += [*transition, nn.AvgPool2d(2)]
            inputs //= 2
        for _ in range(repeats):
            layers.append(DenseLayer(inputs, growth))
            inputs += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), Classifier(inputs, CLASSES))


class ConvNextBlock(nn.Module):
    """Depthwise convolution, LayerNorm and a perceptron with channels last, layer scale (Liu et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grow, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.shrink(nn.functional.gelu(self.grow(y)))
        result: Tensor = x + y.permute(0, 3, 1, 2)
        return result


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of ``[N, C, H, W]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        normed: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def convnext_tiny(width: float) -> nn.Module:
    """ConvNeXt-Tiny."""
    inputs = channels(96, width)
    layers: list[nn.Module] = [nn.Conv2d(3, inputs, 4, 4), ChannelNorm(inputs)]
    for stage, (base, repeats) in enumerate(((96, 3), (192, 3), (384, 9), (768, 3))):
        outputs = channels(base, width)
        if stage:
            layers += [ChannelNorm(inputs), nn.Conv2d(inputs, outputs, 2, 2)]
        layers += [ConvNextBlock(outputs) for _ in range(repeats)]
        inputs = outputs
    return nn.Sequential(*layers, Classifier(inputs, CLASSES))
