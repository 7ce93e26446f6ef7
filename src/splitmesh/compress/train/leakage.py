"""Trains a decoder to rebuild pictures from what crosses a cut, and measures it on pictures that it never saw.

The attacker of this measure knows the model and has pictures like those on the line with what the head makes of them
(the inversion attack of Dosovitskiy and Brox, "Inverting visual representations with convolutional networks", 2016).
Every cut gets the same decoder family, samples, steps and batch. What it finds is a lower bound: a longer or cleverer
attack can only see more. The loss is L1 + squared error + half of 1 - SSIM on pixels 0..1; of ten states the one with
the best SSIM on validation samples is measured. Runs on the CPU; the same seed and number of threads give the same
figures. Knows arrays and pictures, not models or manifests.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from splitmesh.compress.train.decoder import Decoder
from splitmesh.compress.train.threads import torch_threads
from splitmesh.model.picture_metrics import K1, K2, psnr_db, ssim, window

BATCH = 8
LEARNING_RATE = 2e-3
SOLVED_RATE = 2e-4
"""Of a linear map that begins as the least squares solution: it reads hundreds of numbers that go together."""
SOLVE_WORK = 2e10
"""Multiply-accumulates for that solution; decides how many samples it sees."""
MAX_FIT, MAX_VALIDATION, MAX_HOLDOUT = 2000, 48, 256
"""Most samples of each kind; a seeded choice of them where there are more."""
CHOICES = 10
"""States of a training that are compared."""
MEMORY_BYTES = 512 << 20
"""What features of all samples may take; beyond they are made again for every step."""
READ = 16
"""Samples at a time where nothing is trained."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Rows = NDArray[np.int64]
Crossing = Callable[[Rows], Sequence[Floats]]
"""What crosses for some samples: each ``[n, channels, height, width]`` or ``[n, features]``."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What the decoder made of samples that it never saw."""

    ssim: float
    """Mean."""
    psnr_db: float
    """Mean."""
    baseline_ssim: float
    """Mean, of the fit samples' mean picture."""
    samples: int
    fit_samples: int
    shown: Rows
    """The samples behind `pictures`."""
    pictures: NDArray[np.uint8]
    """Reconstructions ``[n, height, width, channels]``."""


def rebuild(
    crossing: Crossing,
    pictures: NDArray[np.uint8],
    fit: Rows,
    validation: Rows,
    holdout: Rows,
    *,
    steps: int,
    seed: int = 0,
    threads: int = 1,
    shown: int = 6,
    progress: Callable[[int], None] = lambda step: None,
) -> Rebuilt:
    """Train for ``steps`` batches on ``fit`` and measure on ``holdout``.

    Args:
        crossing: what crosses for samples by number; the same for the same sample each time.
        pictures: all samples' pixels ``[samples, height, width, channels]``.
        fit: numbers of samples to learn from, at least one.
        validation: numbers of samples to choose a state by; empty: the last one is taken.
        holdout: numbers of samples to measure on, at least one.
        steps: of training.
        seed: of the first weights and the order of samples.
        threads: of torch.
        shown: reconstructions to hand back, of the first hold-out samples.
        progress: called with the number of steps done.
    """
    rng = np.random.default_rng(seed)
    fit, validation, holdout = (
        _some(rng, rows, most) for rows, most in ((fit, MAX_FIT), (validation, MAX_VALIDATION), (holdout, MAX_HOLDOUT))
    )
    with _torch(seed, threads):
        mean = pictures[fit].mean(axis=0, dtype=np.float64)
        codes = _Codes(crossing, fit)
        decoder = Decoder(codes.shapes, torch.from_numpy(_planes(mean[None])[0]))
        _train(decoder, codes, pictures, fit, validation, steps, rng, progress)
        return _measure(decoder, codes, pictures, mean, fit, holdout, shown)


class _Codes:
    """What crosses as normalised torch tensors; kept in memory where it fits."""

    def __init__(self, crossing: Crossing, fit: Rows) -> None:
        self._crossing = crossing
        seen = [crossing(rows) for rows in _chunks(fit[: 8 * READ])]
        first = [np.concatenate(arrays) for arrays in zip(*seen, strict=True)]
        self.shapes = [array.shape[1:] for array in first]
        self._scales = [_channel_scale(array) for array in first]
        size = 4 * sum(math.prod(shape) for shape in self.shapes)
        self._kept: dict[int, list[Floats]] | None = None
        if size * len(fit) <= MEMORY_BYTES:
            self._kept = {}
            for rows in _chunks(fit):
                arrays = [np.asarray(array, dtype=np.float32) for array in crossing(rows)]
                for place, row in enumerate(rows.tolist()):
                    self._kept[row] = [array[place] for array in arrays]

    def __call__(self, rows: Rows) -> list[Tensor]:
        if self._kept is not None and all(row in self._kept for row in rows.tolist()):
            held = [self._kept[row] for row in rows.tolist()]
            arrays: Sequence[Floats] = [np.stack(entry) for entry in zip(*held, strict=True)]
        else:
            arrays = self._crossing(rows)
        return [
            torch.from_numpy(((array - mean) / scale).astype(np.float32))
            for array, (mean, scale) in zip(arrays, self._scales, strict=True)
        ]


def _train(
    decoder: Decoder,
    codes: _Codes,
    pictures: NDArray[np.uint8],
    fit: Rows,
    validation: Rows,
    steps: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> None:
    """Leaves the best state in the decoder."""
    straight = list(decoder.straight.parameters())
    if decoder.solvable:
        _solve(decoder, codes, pictures, fit)
    learnt = [weight for weight in decoder.parameters() if all(weight is not other for other in straight)]
    optimiser = torch.optim.Adam(
        [
            {"params": learnt, "lr": LEARNING_RATE},
            {"params": straight, "lr": SOLVED_RATE if decoder.solvable else LEARNING_RATE},
        ]
    )
    warm = max(1, min(20, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(1.0, (step + 1) / warm) * (0.5 + 0.5 * math.cos(math.pi * min(step, steps) / steps)),
    )
    best, best_ssim = None, -math.inf
    looks = {max(1, round(steps * (choice + 1) / CHOICES)) for choice in range(CHOICES)}
    order = _endless(rng, fit)
    decoder.train()
    for step in range(1, steps + 1):
        rows = next(order)
        made, wanted = decoder(codes(rows)), torch.from_numpy(_planes(pictures[rows]))
        loss = (
            functional.l1_loss(made, wanted) + functional.mse_loss(made, wanted) + 0.5 * (1 - _mean_ssim(made, wanted))
        )
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if len(validation) and step in looks:
            found = float(ssim(_rebuilt(decoder, codes, validation), pictures[validation]).mean())
            if found > best_ssim:
                best, best_ssim = copy.deepcopy(decoder.state_dict()), found
        progress(step)
    if best is not None:
        decoder.load_state_dict(best)


def _solve(decoder: Decoder, codes: _Codes, pictures: NDArray[np.uint8], fit: Rows) -> None:
    cells = math.prod(pictures.shape[1:3]) // decoder.cell_pixels**2
    count = int(SOLVE_WORK / (max(1, cells) * decoder.unknowns**2))
    # at least four equations for every unknown where there are so many samples
    count = max(count, -(-4 * decoder.unknowns // max(1, cells)), READ)
    batches = _chunks(fit[:: max(1, len(fit) // count)][:count])
    decoder.solve((codes(rows), torch.from_numpy(_planes(pictures[rows]))) for rows in batches)


def _measure(
    decoder: Decoder,
    codes: _Codes,
    pictures: NDArray[np.uint8],
    mean: Doubles,
    fit: Rows,
    holdout: Rows,
    shown: int,
) -> Rebuilt:
    alike, ratios, baselines = list[Doubles](), list[Doubles](), list[Doubles]()
    kept = list[NDArray[np.uint8]]()
    for rows in _chunks(holdout):
        made = _rebuilt(decoder, codes, rows)
        alike.append(ssim(made, pictures[rows]))
        ratios.append(psnr_db(made, pictures[rows]))
        baselines.append(ssim(np.broadcast_to(mean, made.shape), pictures[rows].astype(np.float64)))
        kept.append(made[: max(0, shown - sum(len(part) for part in kept))])
    return Rebuilt(
        ssim=float(np.concatenate(alike).mean()),
        psnr_db=float(np.concatenate(ratios).mean()),
        baseline_ssim=float(np.concatenate(baselines).mean()),
        samples=len(holdout),
        fit_samples=len(fit),
        shown=holdout[:shown],
        pictures=np.concatenate(kept),
    )


def _rebuilt(decoder: Decoder, codes: _Codes, rows: Rows) -> NDArray[np.uint8]:
    """As pictures that a person would look at."""
    was = decoder.training
    decoder.eval()
    with torch.inference_mode():
        parts = [decoder(codes(chunk)).clamp(0, 1).mul(255).round().to(torch.uint8).numpy() for chunk in _chunks(rows)]
    decoder.train(was)
    found: NDArray[np.uint8] = np.concatenate(parts).transpose(0, 2, 3, 1)
    return found


def _mean_ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """As ``picture_metrics.ssim``, of pixels 0..1 ``[n, channels, height, width]``, differentiable."""
    # Windows as banded matrices: several times as fast as convolutions of one channel.
    down, across = (_band(side, made.dtype) for side in made.shape[2:])
    stacked = torch.stack([made, wanted, made * made, wanted * wanted, made * wanted])
    x, y, xx, yy, xy = down @ stacked @ across.T
    c1, c2 = K1**2, K2**2
    likeness: Tensor = (2 * x * y + c1) * (2 * (xy - x * y) + c2)
    likeness = likeness / ((x * x + y * y + c1) * (xx - x * x + yy - y * y + c2))
    return likeness.mean()


@cache
def _band(side: int, dtype: torch.dtype) -> Tensor:
    """``[side - window + 1, side]``: row ``i`` weighs what the window at place ``i`` covers."""
    weights = window(side)
    rows = [np.pad(weights, (place, side - len(weights) - place)) for place in range(side - len(weights) + 1)]
    return torch.from_numpy(np.stack(rows)).to(dtype)


def _planes(pixels: NDArray[np.uint8] | NDArray[np.float64]) -> Floats:
    """``[n, height, width, channels]`` 0..255 to ``[n, channels, height, width]`` 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)


def _channel_scale(array: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation per channel, ready to broadcast; 1 for a channel that never changes."""
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    mean, deviation = array.mean(axis=axes, dtype=np.float64), array.std(axis=axes, dtype=np.float64)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    shape = (1, -1, *(1,) * (array.ndim - 2))
    return mean.reshape(shape).astype(np.float32), deviation.reshape(shape).astype(np.float32)


def _some(rng: np.random.Generator, rows: Rows, most: int) -> Rows:
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _chunks(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), READ):
        yield rows[start : start + READ]


def _endless(rng: np.random.Generator, rows: Rows) -> Iterator[Rows]:
    """Batches of shuffled samples, round after round; always the same size."""
    pending = rows[:0]
    while True:
        while len(pending) < BATCH:
            pending = np.concatenate([pending, rng.permutation(rows)])
        yield pending[:BATCH]
        pending = pending[BATCH:]


@contextmanager
def _torch(seed: int, threads: int) -> Iterator[None]:
    """Torch's global state as this training wants it, and as it was afterwards."""
    with torch.random.fork_rng(devices=[]), torch_threads(threads):
        torch.manual_seed(seed)
        yield
