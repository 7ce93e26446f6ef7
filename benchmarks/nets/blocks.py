"""What several networks are built of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def channels(base: int, width: float, multiple: int = 8) -> int:
    """``base`` channels at a width multiplier, a multiple of ``multiple`` and at least that."""
    return max(multiple, math.ceil(base * width / multiple) * multiple)


def conv_bn(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1), batch normalisation and, where given, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act]))


class SqueezeExcite(nn.Module):
    """Channel attention: pooled, squeezed, and multiplied back (Hu et al. 2018)."""

    def __init__(self, width: int, squeezed: int, inner: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same."""
        scale = self.expand(self.inner(self.reduce(x.mean((2, 3), keepdim=True))))
        result: Tensor = x * self.gate(scale)
        return result


class Classifier(nn.Module):
    """Global average pooling and a linear layer: ``[N, C, H, W]`` to ``[N, classes]``."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        result: Tensor = self.linear(x.mean((2, 3)))
        return result


class Attention(nn.Module):
    """Multi-head self-attention over tokens ``[N, T, C]``, with an additive bias of ``[heads, T, T]`` where given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``mask`` is ``[windows, T, T]`` for tokens ``[N * windows, T, C]``, added where given."""
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = split[0], split[1], split[2]
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            windows = mask.shape[0]
            scores = scores.reshape(-1, windows, self.heads, tokens, tokens) + mask[None, :, None]
            scores = scores.reshape(-1, self.heads, tokens, tokens)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        result: Tensor = self.out(mixed)
        return result


def randomise(net: nn.Module, seed: int) -> nn.Module:
    """The net in inference mode with seeded weights and, so that activations vary, statistics unlike a fresh net's."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is None or module.running_var is None:
                raise AssertionError("inference needs running statistics")
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return net.eval()
