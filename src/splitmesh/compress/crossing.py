"""What crosses a cut, as whoever reads the wire sees it: computed, rounded as it travels, laid out as maps and vectors.

For a plain cut the tensors as they are; for a rounded one, and behind a bottleneck's encoder, the 8-bit codes at the
best rate, turned back into numbers. Maps are ``[n, channels, height, width]`` whose places are places of the picture,
as far as shapes tell; everything else becomes a vector ``[n, features]``. Knows no training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitmesh.compress.work import Rows, Work
from splitmesh.model.calibration import Calibration
from splitmesh.model.cuts import Cut
from splitmesh.model.graph import Graph
from splitmesh.model.manifest import Coding, Hop, Quantisation
from splitmesh.model.split import split_model
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.entropy import RangeCodec, Tables
from splitmesh.tensor.spec import Array

Floats = NDArray[np.float32]

SAME_ASPECT = 0.15
"""How far the aspect ratios of a map and of the picture may lie apart, as a logarithm."""
FEWEST_PLACES = 4
"""A grid of fewer tells nothing of where; such tensors are vectors."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """One cut of a version and the pieces that lead to it."""

    cut: tuple[str, ...]
    """Tensors of the model."""
    codec: str
    """As in ``manifest.CutLeakage``."""
    pieces: tuple[bytes, ...]
    """Models to run one after the other."""
    wire: tuple[str, ...]
    """Outputs of the last one that cross."""
    quantisation: tuple[Quantisation, ...] = ()
    coding: Coding | None = None
    tables: bytes | None = field(default=None, repr=False)

    def parts(self) -> tuple[bytes, ...]:
        """Everything that decides what crosses, for a digest."""
        coding = self.coding.model_dump_json().encode() if self.coding is not None else b""
        rules = "".join(rule.model_dump_json() for rule in self.quantisation).encode()
        return (*self.pieces, self.codec.encode(), *(name.encode() for name in (*self.cut, *self.wire)), rules, coding)


def of_hops(work: Work) -> list[Crossing]:
    """Every cut of a split version, with what it really sends."""
    split = work.manifest.split
    assert split is not None, "asked of a version that is whole"
    segments = work.segments()
    return [
        Crossing(
            cut=tuple(tensor.name for tensor in hop.cut),
            codec=_codec(hop),
            pieces=tuple(segments[: number + 1]),
            wire=tuple(tensor.name for tensor in hop.wire),
            quantisation=hop.quantisation,
            coding=hop.coding,
            tables=work.artifacts[hop.coding.artifact] if hop.coding is not None else None,
        )
        for number, hop in enumerate(split.hops())
    ]


def of_cut(graph: Graph, cut: Cut) -> Crossing:
    """A cut that could be made of a model, with its tensors as they are."""
    head = split_model(graph, cut).head.SerializeToString()
    return Crossing(cut.tensors, "float32", (head,), cut.tensors)


def spread(cuts: Sequence[Cut], most: int) -> list[Cut]:
    """At most so many cuts, over the whole depth, from the input to the output.

    The first, which bounds what all others show, and the last, then again and again the one that lies farthest from those
    chosen, by its share of the model's work and of its operators. Cuts of more tensors than the others (the inside of a
    residual block) come when there are no simpler ones left.
    """
    end = max((cut.index for cut in cuts), default=1)
    rest, chosen = sorted(cuts, key=lambda cut: cut.index), list[Cut]()
    while rest and len(chosen) < most:
        least = min(len(cut.tensors) for cut in rest)
        simple = [cut for cut in rest if len(cut.tensors) == least]
        taken = simple[-1] if len(chosen) == 1 else max(simple, key=lambda cut: _distance(cut, chosen, end))
        rest.remove(taken)
        chosen.append(taken)
    return sorted(chosen, key=lambda cut: cut.index)


def _distance(cut: Cut, chosen: Sequence[Cut], end: int) -> float:
    """To the nearest; infinite to none, so that the first one comes first."""
    return min(
        (abs(cut.position - other.position) + abs(cut.index - other.index) / end for other in chosen), default=math.inf
    )


class Reader:
    """Gives what crosses for samples by number."""

    def __init__(self, crossing: Crossing, samples: Calibration, *, threads: int) -> None:
        self._crossing = crossing
        self._samples = samples
        self._threads = threads

    @cached_property
    def _sessions(self) -> list[Session]:
        return [open_session(piece, threads=self._threads) for piece in self._crossing.pieces]

    @cached_property
    def _coarse(self) -> Callable[[list[Array]], list[Array]]:
        """What a receiver of the best rate has."""
        coding, tables = self._crossing.coding, self._crossing.tables
        if coding is None or tables is None:
            return lambda arrays: arrays
        wire = {spec.name: spec for spec in self._sessions[-1].outputs}
        codec = RangeCodec(Tables.from_bytes(tables), [wire[name] for name in self._crossing.wire])
        return lambda arrays: list(codec.coarse(arrays, 0))

    def __call__(self, rows: Rows) -> list[Floats]:
        """Each ``[n, channels, height, width]`` or ``[n, features]``, finite."""
        size = self._samples.fixed_batch
        if size is None:
            return self._run(rows)
        # a fixed batch: the last sample fills what is missing and is dropped again
        filled = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % size)])
        parts = [self._run(filled[start : start + size]) for start in range(0, len(filled), size)]
        return [np.concatenate(arrays)[: len(rows)] for arrays in zip(*parts, strict=True)]

    def _run(self, rows: Rows) -> list[Floats]:
        values: dict[str, Array] = self._samples.feeds(rows)
        for session in self._sessions:
            values = session.run({spec.name: values[spec.name] for spec in session.inputs})
        arrays = self._coarse([values[name] for name in self._crossing.wire])
        rules = {rule.wire_tensor: rule for rule in self._crossing.quantisation}
        preprocess = self._samples.preprocess
        aspect = 1.0 if preprocess is None else preprocess.height / preprocess.width
        return [
            laid_out(_restored(array, rules.get(name)), aspect)
            for name, array in zip(self._crossing.wire, arrays, strict=True)
        ]

    def close(self) -> None:
        """Give the sessions back."""
        for session in self.__dict__.pop("_sessions", []):
            session.close()


def laid_out(array: Floats, aspect: float) -> Floats:
    """As a map where the shape allows one, else as a vector.

    Args:
        array: ``[n, ...]``: channels first or last, tokens ``[n, tokens, features]`` with or without one for the class,
            attention ``[n, heads, tokens, features]``, or anything.
        aspect: height over width of the picture.
    """
    count, shape = len(array), array.shape[1:]
    if len(shape) == 3:
        first, second, third = shape
        if _alike(second, third, aspect):
            return array
        if _alike(first, second, aspect):
            return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        if _grid(second, aspect) is not None:
            return laid_out(array.transpose(0, 2, 1, 3).reshape(count, second, first * third), aspect)
    if len(shape) == 2:
        for tokens in (array, array.transpose(0, 2, 1)):
            places = tokens.shape[1]
            for extra in (0, 1):
                if (grid := _grid(places - extra, aspect)) is not None:
                    return _tokens(tokens, extra, grid)
    return array.reshape(count, -1)


def _tokens(tokens: Floats, extra: int, grid: tuple[int, int]) -> Floats:
    """Tokens as a map; what stands before them (a class token) everywhere on it."""
    count, _, features = tokens.shape
    parts = [tokens[:, extra:].transpose(0, 2, 1).reshape(count, features, *grid)]
    parts += [np.broadcast_to(tokens[:, place, :, None, None], parts[0].shape) for place in range(extra)]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _alike(height: int, width: int, aspect: float) -> bool:
    return height * width >= FEWEST_PLACES and abs(math.log(height / width / aspect)) <= SAME_ASPECT


def _grid(places: int, aspect: float) -> tuple[int, int] | None:
    """Height and width of so many places in the picture's aspect ratio."""
    sides = [(side, places // side) for side in range(1, places + 1) if places % side == 0]
    return next((side for side in sides if _alike(*side, aspect)), None)


def _restored(array: Array, rule: Quantisation | None) -> Floats:
    if rule is None:
        return np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    scale, zero = np.array(rule.scale, dtype=np.float32), np.array(rule.zero_point, dtype=np.float32)
    if rule.axis is not None:
        shape = [1] * array.ndim
        shape[rule.axis] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    restored: Floats = (array.astype(np.float32) - zero) * scale
    return restored


def _codec(hop: Hop) -> str:
    return "bottleneck" if hop.bottleneck is not None else "int8" if hop.quantisation else "float32"
