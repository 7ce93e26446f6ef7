"""A linear code of a tensor from calibration features, without training: principal blocks, weighted by what they do.

A tensor ``[n, C, H, W]`` is seen as blocks of ``b`` x ``b`` places, each a vector of ``b * b * C`` numbers; tokens and
flat features are blocks of one place. The code of a block are its first components in a basis that is ordered by
variance times the square of the answer's reaction (``reaction.py``): principal components under a metric of the output
instead of the plain distance. One rounding step for all of them is right then (reverse water-filling; Cover & Thomas,
Elements of Information Theory, 10.3), and the first k of them are the best k, so that rates are nested. The way back is
fitted by least squares on rounded codes with their neighbours (3 x 3), hence makes up for what rounding and blocks
lose.

Knows numbers only, batch by batch in float64: never all features at once. Graphs are ``closed_form_graph.py``'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float64]

MAX_BLOCK_NUMBERS = 1024
"""Numbers of a block of several places: bounds the covariance."""

MAX_CHANNELS = 4096
"""Channels that a bottleneck is found for: a covariance of 128 MiB."""

BLOCKS = (4, 2, 1)
"""Sides tried, the first that fits."""

ROWS_PER_NUMBER = 4
"""Blocks seen for each number of a block, at least: fewer describe the samples, not the model."""

SUBSPACE = 64
"""Principal components kept for the reaction's metric."""

FLOOR = 0.1
"""Share of the mean reaction that every direction is taken to have at least: it was measured on a few samples."""

RIDGE = 1e-4
"""Of the decoder's regression, as a share of each code's own square."""

ZERO_POINT = 128
LEVELS = 127
"""Between the zero point and either end."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a tensor is cut into blocks."""

    rank: int
    channels: int
    block: int
    """Side in places; 1 for tokens and flat features."""

    @property
    def numbers(self) -> int:
        """Of a block."""
        return self.channels * self.block**2

    def blocks(self, features: Array) -> Floats:
        """``[n, rows, columns, numbers]``; the numbers of a block are ordered place by place, channels last."""
        array = features.astype(np.float64)
        if self.rank == 2:
            return array[:, None, None, :]
        if self.rank == 3:
            return array[:, :, None, :]
        n, channels, height, width = array.shape
        b = self.block
        array = array.reshape(n, channels, height // b, b, width // b, b)
        return array.transpose(0, 2, 4, 3, 5, 1).reshape(n, height // b, width // b, self.numbers)

    def features(self, blocks: Floats) -> Floats:
        """The other way."""
        if self.rank < 4:
            return blocks[:, 0, 0, :] if self.rank == 2 else blocks[:, :, 0, :]
        n, rows, columns, _ = blocks.shape
        b = self.block
        array = blocks.reshape(n, rows, columns, b, b, self.channels).transpose(0, 5, 1, 3, 2, 4)
        return array.reshape(n, self.channels, rows * b, columns * b)


def layouts(shape: tuple[int, ...], samples: int) -> list[Layout]:
    """Those that the samples can tell something about, the largest blocks first; at least one.

    ``shape`` as a cut's specification has it, -1 for what varies. MeshError CUT_INVALID when the rank is not 2 to 4,
    the channels vary or are too many.
    """
    rank = len(shape)
    channels = shape[2 if rank == 3 else 1] if rank in (2, 3, 4) else -1
    if not 0 < channels <= MAX_CHANNELS:
        raise MeshError(
            Reason.CUT_INVALID,
            f"a bottleneck takes [n, channels, height, width], [n, tokens, channels] or [n, features] with at most "
            f"{MAX_CHANNELS} channels, not {list(shape)}",
        )
    found = []
    for block in BLOCKS if rank == 4 else ():
        height, width = shape[2:]
        numbers, places = channels * block**2, height * width // block**2
        divides = height % block == 0 and width % block == 0 and min(height, width) >= 2 * block
        if block > 1 and divides and numbers <= MAX_BLOCK_NUMBERS and samples * places >= ROWS_PER_NUMBER * numbers:
            found.append(Layout(rank, channels, block))
    return [*found, Layout(rank, channels, 1)]


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """Mean and principal directions of blocks."""

    layout: Layout
    mean: Floats
    """``[numbers]``."""
    directions: Floats
    """``[numbers, r]``, orthonormal, the largest variance first."""
    variance: Floats
    """``[r]``, none of them 0."""
    never_negative: bool
    """No value was below 0, as after a ReLU."""


class Moments:
    """Mean and covariance of blocks, one batch at a time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._count = 0
        self._shift: Floats | None = None
        self._sum = np.zeros(layout.numbers)
        self._products = np.zeros((layout.numbers, layout.numbers))
        self._lowest = np.inf

    def add(self, features: Array) -> None:
        """``[n, ...]``; samples that are not finite are passed over."""
        features = features[np.isfinite(features).reshape(len(features), -1).all(axis=1)]
        if not features.size:
            return
        rows = self._layout.blocks(features).reshape(-1, self._layout.numbers)
        if self._shift is None:  # near the mean: sums of squares must not cancel
            self._shift = rows.mean(axis=0)
        self._lowest = min(self._lowest, float(rows.min()))
        rows -= self._shift
        self._count += len(rows)
        self._sum += rows.sum(axis=0)
        self._products += rows.T @ rows

    def principal(self, most: int) -> Principal:
        """At most so many directions, those that vary; MeshError CALIBRATION_INSUFFICIENT when nothing does."""
        if self._shift is None or self._count < 2:
            raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "no calibration sample gives finite features at the cut")
        mean = self._sum / self._count
        values, vectors = np.linalg.eigh(self._products / self._count - np.outer(mean, mean))
        values, vectors = values[::-1], vectors[:, ::-1]
        kept = min(most, self._count - 1, int((values > 1e-9 * max(float(values.sum()), 1e-30)).sum()))
        if kept < 1:
            raise MeshError(Reason.CALIBRATION_INSUFFICIENT, "the features at the cut are the same for every sample")
        return Principal(
            self._layout, self._shift + mean, vectors[:, :kept], values[:kept].copy(), bool(self._lowest >= 0)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The code before rounding: ``(block - mean) @ encoder``."""

    layout: Layout
    mean: Floats
    encoder: Floats
    """``[numbers, channels]``."""
    never_negative: bool

    @property
    def channels(self) -> int:
        """Of the code."""
        return int(self.encoder.shape[1])

    def first(self, channels: int) -> Basis:
        """With the first channels only."""
        return Basis(self.layout, self.mean, self.encoder[:, :channels], self.never_negative)

    def codes(self, features: Array) -> Floats:
        """``[n, rows, columns, channels]``."""
        return (self.layout.blocks(features) - self.mean) @ self.encoder


def choose_basis(principal: Principal, reaction: Floats | None, channels: int) -> Basis:
    """The ``channels`` best directions, the best first.

    Args:
        principal: of the features.
        reaction: ``[r, r]``, how strongly the answer reacts to the principal components, products of its derivatives
            (:func:`splitmesh.compress.reaction.measure_reaction`); None: to all alike, which is plain PCA.
        channels: at most; fewer where the features have no more.
    """
    rank = len(principal.variance)
    channels = min(channels, rank)
    if reaction is None or not np.trace(reaction) > 0:
        metric = np.eye(rank)
    else:
        metric = reaction * rank / np.trace(reaction) + FLOOR * np.eye(rank)
    values, vectors = np.linalg.eigh(metric)
    root = (vectors * np.sqrt(np.maximum(values, 1e-12))) @ vectors.T
    _, order = np.linalg.eigh(root @ np.diag(principal.variance) @ root)
    chosen = root @ order[:, ::-1][:, :channels]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(channels)])  # the same on every machine
    return Basis(principal.layout, principal.mean, principal.directions @ (chosen * signs), principal.never_negative)


def choose_scale(basis: Basis, features: Iterable[Array]) -> float:
    """The smallest step at which every code seen has a level of its own on either side of the zero point."""
    largest = 0.0
    for batch in features:
        codes = basis.codes(batch)
        largest = max(largest, float(np.abs(codes[np.isfinite(codes)]).max(initial=0.0)))
    return max(largest, 1e-20) / LEVELS


@dataclass(frozen=True, slots=True, eq=False)
class Decoder:
    """From a code and its neighbours to a block: ``neighbours(code) @ weights + bias``."""

    weights: Floats
    """``[places * channels, numbers]``; 9 places (3 x 3, row by row), or 1 for tokens and flat features."""
    bias: Floats
    """``[numbers]``."""
    never_negative: bool


def fit_decoder(basis: Basis, scale: float, features: Iterable[Array], steps: tuple[int, ...] = (1, 4, 16)) -> Decoder:
    """Least squares from rounded codes to blocks, with a small ridge.

    Args:
        basis: of the code.
        scale: of its rounding.
        features: batches; read once.
        steps: of the rates that it must serve; each batch is rounded to one of them, in turn.
    """
    spatial = basis.layout.rank == 4
    width = basis.channels * (9 if spatial else 1) + 1
    squares, products = np.zeros((width, width)), np.zeros((width, basis.layout.numbers))
    for number, batch in enumerate(features):
        batch = batch[np.isfinite(batch).reshape(len(batch), -1).all(axis=1)]
        codes = coarse(rounded(basis.codes(batch), scale), steps[number % len(steps)]) * scale
        known = (neighbours(codes) if spatial else codes).reshape(-1, width - 1)
        known = np.concatenate([known, np.ones((len(known), 1))], axis=1)
        squares += known.T @ known
        products += known.T @ (basis.layout.blocks(batch).reshape(-1, basis.layout.numbers) - basis.mean)
    own = np.diag(squares).copy()
    own[-1] = 0.0  # of each code's own size: a common one would take the weak channels for nothing
    damped = squares + np.diag(RIDGE * own + 1e-12 * max(float(own.max()), 1e-12))
    solved = np.linalg.solve(damped, products).astype(np.float64)
    return Decoder(solved[:-1], solved[-1] + basis.mean, basis.never_negative)


def rounded(codes: Floats, scale: float) -> Floats:
    """Whole numbers around 0, as they cross less the zero point."""
    return np.clip(np.rint(codes / scale), -ZERO_POINT, 255 - ZERO_POINT)


def coarse(levels: Floats, step: int) -> Floats:
    """To multiples of the step, halves away from zero, as a rate does."""
    multiples: Floats = np.sign(levels) * np.floor(np.abs(levels) / step + 0.5) * step
    result: Floats = np.clip(multiples, -ZERO_POINT, 255 - ZERO_POINT)
    return result


def neighbours(codes: Floats) -> Floats:
    """``[n, rows, columns, 9 * channels]``: each code with those around it, row by row; 0 beyond the edge."""
    rows, columns = codes.shape[1:3]
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.concatenate([padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)], axis=-1)


def decode(decoder: Decoder, layout: Layout, codes: Floats) -> Floats:
    """Features from restored codes ``[n, rows, columns, channels]``: the reference of the graph."""
    known = neighbours(codes) if layout.rank == 4 else codes
    features = layout.features(known @ decoder.weights + decoder.bias)
    return np.maximum(features, 0.0) if decoder.never_negative else features
