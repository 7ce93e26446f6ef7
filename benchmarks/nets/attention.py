"""Transformers: ViT and Swin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.nets.blocks import Attention, channels
from benchmarks.nets.convolution import CLASSES


class Perceptron(nn.Sequential):
    """Grow, GELU, shrink."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class VitBlock(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and with a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.perceptron = Attention(width, heads), Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, T, C]`` to the same."""
        x = x + self.attention(self.first(x))
        result: Tensor = x + self.perceptron(self.second(x))
        return result


class Vit(nn.Module):
    """ViT-Tiny/16: patches, a class token, positions (Dosovitskiy et al. 2021; sizes of DeiT-Ti)."""

    def __init__(self, width: float, side: int) -> None:
        super().__init__()
        dim, patch = channels(192, width, 24), 16
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, dim) * 0.5)
        self.blocks = nn.Sequential(*(VitBlock(dim, 3) for _ in range(12)))
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, side, side]`` to logits."""
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.positions
        result: Tensor = self.linear(self.norm(self.blocks(y))[:, 0])
        return result


class SwinBlock(nn.Module):
    """Attention inside windows, shifted by half a window in every other block (Liu et al. 2021)."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.shift = side, window, shift
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.perceptron = Attention(width, heads), Perceptron(width)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        self.index: Tensor
        self.mask: Tensor
        self.register_buffer("index", _relative(window))
        self.register_buffer("mask", _mask(side, window, shift))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, side, side, C]`` to the same."""
        width, tokens = x.shape[-1], self.window**2
        y = self.first(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        count = self.side // self.window
        y = y.reshape(-1, count, self.window, count, self.window, width).permute(0, 1, 3, 2, 4, 5)
        bias = self.table[self.index.reshape(-1)].reshape(tokens, tokens, -1).permute(2, 0, 1)
        y = self.attention(y.reshape(-1, tokens, width), bias, self.mask if self.shift else None)
        y = y.reshape(-1, count, count, self.window, self.window, width).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, self.side, self.side, width)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y
        result: Tensor = x + self.perceptron(self.second(x))
        return result


def _relative(window: int) -> Tensor:
    """For each pair of tokens of a window the row of the bias table."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None, :] + window - 1
    return offset[0] * (2 * window - 1) + offset[1]


def _mask(side: int, window: int, shift: int) -> Tensor:
    """``[windows, T, T]``: minus 100 between tokens that only the shift brought together."""
    region = torch.zeros(side, side)
    if shift:
        bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for number, (rows, columns) in enumerate((a, b) for a in bands for b in bands):
            region[rows, columns] = number
    count = side // window
    ids = region.reshape(count, window, count, window).permute(0, 2, 1, 3).reshape(-1, window**2)
    return (ids[:, None, :] != ids[:, :, None]).float() * -100.0


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, S, S, C]`` to ``[N, S / 2, S / 2, 2 C]``."""
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        result: Tensor = self.reduce(self.norm(torch.cat(corners, -1)))
        return result


class Swin(nn.Module):
    """Swin with the depths of Swin-Tiny and windows that fit the picture: side a multiple of 32 times the window."""

    def __init__(self, width: float, side: int) -> None:
        super().__init__()
        dim, heads = channels(96, width, 24), 3
        window = 7 if side % 224 == 0 else 2
        self.patches, self.norm = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)
        layers: list[nn.Module] = []
        side //= 4
        for stage, depth in enumerate((2, 2, 6, 2)):
            if stage:
                layers.append(PatchMerging(dim))
                dim, heads, side = 2 * dim, 2 * heads, side // 2
            for index in range(depth):
                shift = window // 2 if index % 2 and side > window else 0
                layers.append(SwinBlock(dim, heads, side, window, shift))
        self.blocks = nn.Sequential(*layers)
        self.last, self.linear = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, side, side]`` to logits."""
        y = self.blocks(self.norm(self.patches(x).permute(0, 2, 3, 1)))
        result: Tensor = self.linear(self.last(y).mean((1, 2)))
        return result
