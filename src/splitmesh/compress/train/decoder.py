"""A small convolutional decoder: from what crosses a cut back to the picture.

One family for every cut, so that figures of different cuts can be compared. It works at a quarter of the picture's
resolution (finer tensors are rearranged into channels, which loses nothing; coarser ones are brought up by doublings),
and the last step rearranges channels into pixels (Shi et al., "Real-time single image and video super-resolution using
an efficient sub-pixel convolutional neural network", 2016). Beside the layers a linear map leads from the code straight
to the pixels. For maps it begins as the least squares solution, which is most of an attack on a shallow cut; without it
the decoder begins with the mean picture. Knows nothing of models, or of how it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FINE = 4
"""Pixels of the picture along one side of a cell where the last layers work."""
VECTOR_CELL = 16
"""The same for what vectors are spread over."""
MAX_WEIGHTS = 8_000_000
"""Of the layer that spreads a vector; beyond it goes through a narrower one."""
OVERVIEW = 8
"""Places along a side of the grid on which every place reaches every other."""
GAIN = 0.01
"""Of the last layers' first weights: starts near the mean picture."""
RIDGE = 1e-4
"""Of the features' own mean square, for the linear map's closed form."""


def _ratio(size: int, cell: int) -> int:
    return max(1, -(-size // cell))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x + self.second(functional.gelu(self.first(x))))


class _Overview(nn.Module):
    """Adds to every place what all places together tell, coarsely: brightness that only far borders give away."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self._coarse = (min(OVERVIEW, grid[0]), min(OVERVIEW, grid[1]))
        places = math.prod(self._coarse)
        self.squeeze = nn.Conv2d(width, 16, 1)
        self.mix = nn.Linear(16 * places, width * places)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.squeeze(functional.adaptive_avg_pool2d(x, self._coarse)).flatten(1)
        told = self.mix(functional.gelu(seen)).reshape(len(x), -1, *self._coarse)
        return x + functional.interpolate(told, x.shape[2:], mode="bilinear", align_corners=False)


class _Spread(nn.Module):
    """A vector as a coarse map."""

    def __init__(self, size: int, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self._shape = (channels, *grid)
        cells = math.prod(self._shape)
        hidden = max(16, min(1024, MAX_WEIGHTS // (size + cells)))
        self.layers = (
            nn.Linear(size, cells)
            if size * cells <= MAX_WEIGHTS
            else nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, cells))
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found.reshape(-1, *self._shape)


class _Fit(nn.Module):
    """A map on another grid: rearranged into channels where it is finer, interpolated where it is coarser."""

    def __init__(self, shape: Sequence[int], grid: tuple[int, int]) -> None:
        super().__init__()
        channels, *size = shape
        self._times = max(1, *(-(-side // cells) for side, cells in zip(size, grid, strict=True)))
        self._size = (grid[0] * self._times, grid[1] * self._times)
        self.channels = channels * self._times**2

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self._size:
            x = functional.interpolate(x, self._size, mode="bilinear", align_corners=False)
        return functional.pixel_unshuffle(x, self._times)


class Decoder(nn.Module):
    """From tensors ``[n, channels, height, width]`` or ``[n, features]`` to pictures ``[n, channels, height, width]``.

    Args:
        shapes: of the tensors, without the batch.
        mean: the mean picture ``[channels, height, width]``; fixes the pictures' size.
    """

    mean: Tensor

    def __init__(self, shapes: Sequence[Sequence[int]], mean: Tensor) -> None:
        super().__init__()
        channels, height, width = mean.shape
        self.register_buffer("mean", mean)
        fine = (_ratio(height, FINE), _ratio(width, FINE))
        grid = _working_grid(shapes, fine, (_ratio(height, VECTOR_CELL), _ratio(width, VECTOR_CELL)))
        self.entries = nn.ModuleList()
        entering = 0
        for shape in shapes:
            if len(shape) == 1:
                coarse = (min(grid[0], _ratio(height, VECTOR_CELL)), min(grid[1], _ratio(width, VECTOR_CELL)))
                spread, fit = _Spread(shape[0], 32, coarse), _Fit((32, *coarse), grid)
                self.entries.append(nn.Sequential(spread, fit))
            else:
                fit = _Fit(shape, grid)
                self.entries.append(fit)
            entering += fit.channels
        doublings = max(0, math.ceil(math.log2(max(fine[0] / grid[0], fine[1] / grid[1]))))
        self.cell_pixels = FINE * 2**doublings
        """Pixels of the picture along one side of a place of the code."""
        wide = _width(grid)
        layers: list[nn.Module] = [
            nn.Conv2d(entering, wide, 3, padding=1),
            nn.GELU(),
            _Overview(wide, grid),
            _Residual(wide),
        ]
        for done in range(1, doublings + 1):
            narrower = _width((grid[0] << done, grid[1] << done))
            layers += [nn.Conv2d(wide, 4 * narrower, 3, padding=1), nn.PixelShuffle(2), nn.GELU(), _Residual(narrower)]
            wide = narrower
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(wide, channels * FINE**2, 3, padding=1)
        kernel = 3 if doublings == 0 else 1
        self.straight = nn.Conv2d(entering, channels * self.cell_pixels**2, kernel, padding=kernel // 2)
        with torch.no_grad():
            for last in (self.out, self.straight):
                last.weight.mul_(GAIN)
                if last.bias is not None:
                    last.bias.zero_()

    @property
    def solvable(self) -> bool:
        """Whether the linear map has a closed form: what spreads vectors is still to be learnt."""
        return not any(isinstance(entry, nn.Sequential) for entry in self.entries)

    @property
    def unknowns(self) -> int:
        """Of the linear map, for each pixel of a cell."""
        return 1 + self.straight.weight[0].numel()

    @torch.no_grad()
    def solve(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Sets the linear map to the ridge regression of pictures ``[n, channels, height, width]`` on their tensors."""
        size, kernel = self.unknowns, self.straight.kernel_size[0]
        gram = torch.zeros(size, size, dtype=torch.float64)
        moment = torch.zeros(size, self.straight.out_channels, dtype=torch.float64)
        for tensors, pictures in batches:
            code = self._code(tensors)
            cells = (code.shape[2] * self.cell_pixels, code.shape[3] * self.cell_pixels)
            wanted = pictures - self.mean
            if wanted.shape[2:] != cells:
                wanted = functional.interpolate(wanted, cells, mode="bilinear", align_corners=False)
            targets = functional.pixel_unshuffle(wanted, self.cell_pixels).flatten(2).transpose(1, 2).flatten(0, 1)
            rows = functional.unfold(code, kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)
            rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
            gram += (rows.T @ rows).double()
            moment += (rows.T @ targets).double()
        gram += RIDGE * gram.trace() / size * torch.eye(size, dtype=torch.float64)
        found = torch.linalg.solve(gram, moment).T.float()
        self.straight.weight.copy_(found[:, :-1].reshape(self.straight.weight.shape))
        if self.straight.bias is not None:
            self.straight.bias.copy_(found[:, -1])

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """On the scale of the mean picture, not limited to its range."""
        code = self._code(tensors)
        picture = functional.pixel_shuffle(self.out(self.layers(code)), FINE)
        picture = picture + functional.pixel_shuffle(self.straight(code), self.cell_pixels)
        if picture.shape[2:] != self.mean.shape[1:]:
            picture = functional.interpolate(picture, self.mean.shape[1:], mode="bilinear", align_corners=False)
        found: Tensor = picture + self.mean
        return found

    def _code(self, tensors: Sequence[Tensor]) -> Tensor:
        """All that crosses, on one grid."""
        return torch.cat([entry(x) for entry, x in zip(self.entries, tensors, strict=True)], dim=1)


def _working_grid(shapes: Sequence[Sequence[int]], fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int]:
    """Of the finest tensor, no finer than the last layers' and no coarser than what a doubling can bring there."""
    maps = [shape for shape in shapes if len(shape) == 3]
    if not maps:
        return coarse
    return min(fine[0], max(shape[1] for shape in maps)), min(fine[1], max(shape[2] for shape in maps))


def _width(grid: tuple[int, int]) -> int:
    """Channels: about the same work at every resolution."""
    cells = grid[0] * grid[1]
    return 48 if cells > 400 else 64 if cells > 100 else 96
