"""Small PyTorch programs as .pt2 files."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

SIDE = 16


class SmallNet(nn.Module):
    """One grey picture of 16 x 16 to three logits; ``stem`` to ``head`` in sequence, so it can be cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 4, 3, stride=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mid = torch.relu(self.body(torch.relu(self.norm(self.stem(x)))))
        return torch.as_tensor(self.head(mid.mean((2, 3))))


class MixesSamples(nn.Module):
    """Subtracts the mean over the batch too: with another batch it gives other answers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()


def small_net() -> SmallNet:
    """The same weights every time."""
    torch.manual_seed(3)
    net = SmallNet().eval()
    net.norm.running_mean = torch.randn(6)
    return net


def save_program(net: nn.Module, path: Path, shape: tuple[int, ...], *, varying: bool) -> Path:
    """Export with a batch that varies or stays as in ``shape``; torch's deprecation warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},) if varying else None
        torch.export.save(torch.export.export(net, (torch.zeros(shape),), dynamic_shapes=shapes), path)
    return path
