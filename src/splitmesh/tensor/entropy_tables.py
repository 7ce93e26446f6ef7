"""The integer tables of a cut's entropy codec: what they hold, their file, and the library's models made from them.

At a rate (channels k, step s) the first k channels of each tensor are coded as the symbols of that step
(``entropy_steps.py``); the others send nothing and are at their zero point.

Everything that decides a bit is an integer or a float64 that holds one exactly, so every machine makes the same models.
Knows nothing of frames (``entropy.py``) and nothing of how frequencies are estimated (``entropy_fit.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from splitmesh.errors import MeshError, Reason
from splitmesh.tensor.entropy_fit import TOTAL, frequencies, histograms
from splitmesh.tensor.entropy_steps import alphabet, symbols_of
from splitmesh.tensor.entropy_stream import decoded, encoded
from splitmesh.tensor.spec import MAX_RANK

FORMAT = 1
MAX_TABLES_BYTES = 64 * 1024 * 1024
MAX_RATES = 255
MAX_STEP = 128
MAX_CHANNELS = 65535
MAX_WIDTH = 511
"""Columns of a tensor's tables: 8-bit values by their distance from zero points that may differ."""
PROBE_SYMBOLS = 2
"""Symbols per table that the file keeps coded, to see that this machine's library codes as the maker's did."""

Rates = Sequence[tuple[int, int]]
Bytes8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Table:
    """Of one tensor at one rate."""

    groups: NDArray[np.uint16]
    """Which row of ``frequencies`` each sent channel uses ``[channels sent]``."""
    frequencies: NDArray[np.uint32]
    """``[groups, symbols]``; each row sums to ``TOTAL``, 0 only behind the symbols its channels can have."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One tensor at one rate, ready to code: channels with one model stand together."""

    order: NDArray[np.intp]
    """Channels in the order in which they are coded ``[channels sent]``."""
    runs: tuple[tuple[int, int, Any], ...]
    """From and to which place in ``order``, and their model."""
    symbols: Bytes8
    """Value to symbol ``[1 or channels sent in order, 256]``."""
    values: Bytes8
    """Symbol to value ``[1 or channels sent in order, 256]``."""


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequencies for every rate, tensor and channel of one cut.

    Attributes:
        rates: (channels, step) each; a payload names its rate by its number here.
        axes: of each tensor, the axis its channels run along.
        channels: of each tensor, how many there are.
        zero_points: of each tensor, one for all channels or one each.
        tables: by rate, then by tensor.
    """

    rates: tuple[tuple[int, int], ...]
    axes: tuple[int, ...]
    channels: tuple[int, ...]
    zero_points: tuple[Bytes8, ...]
    tables: tuple[tuple[Table, ...], ...]

    @classmethod
    def build(
        cls,
        codes: Sequence[Bytes8],
        zero_points: Sequence[Bytes8],
        rates: Rates,
        *,
        axes: Sequence[int] | None = None,
    ) -> Tables:
        """Tables for these rates from samples.

        Args:
            codes: of each wire tensor the 8-bit values of all samples, samples first.
            zero_points: of each, ``[1]`` or ``[channels]``.
            rates: (channels, step) each, best first.
            axes: of each, the axis of its channels, the samples' being 0; 1 where it is not said.
        """
        _check_rates(rates)
        axes = tuple(axes) if axes is not None else (1,) * len(codes)
        points = tuple(np.asarray(points, np.uint8).reshape(-1) for points in zero_points)
        channels = tuple(array.shape[axis] for array, axis in zip(codes, axes, strict=True))
        counts = [histograms(np.asarray(array), axis) for array, axis in zip(codes, axes, strict=True)]
        tables = tuple(
            tuple(Table(*frequencies(seen[:, :kept], at[:kept], step)) for seen, at in zip(counts, points, strict=True))
            for kept, step in rates
        )
        made = cls(tuple((int(kept), int(step)) for kept, step in rates), axes, channels, points, tables)
        made._check()
        return made

    def sent(self, rate: int, tensor: int) -> int:
        """How many of a tensor's channels cross at a rate."""
        return min(self.rates[rate][0], self.channels[tensor])

    def plans(self, rate: int) -> tuple[Plan, ...]:
        """Of every tensor; made once."""
        made: dict[int, tuple[Plan, ...]] = self.__dict__.setdefault("_plans", {})
        if rate not in made:
            made[rate] = tuple(self._plan(rate, tensor) for tensor in range(len(self.axes)))
        return made[rate]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything that decides what a payload stands for."""
        found = hashlib.sha256(repr((self.rates, self.axes, self.channels)).encode())
        for points in self.zero_points:
            found.update(points.tobytes())
        for row in self.tables:
            for table in row:
                found.update(table.groups.astype("<u2").tobytes() + table.frequencies.astype("<u4").tobytes())
        return found.digest()

    def to_bytes(self) -> bytes:
        """A safetensors file, the same bytes for the same tables."""
        symbols, stream = self._probe()
        arrays: dict[str, NDArray[Any]] = {
            "format": np.array([FORMAT], np.int32),
            "rates": np.array(self.rates, np.int32),
            "axes": np.array(self.axes, np.int32),
            "channels": np.array(self.channels, np.int32),
            "digest": np.frombuffer(self.digest, np.uint8),
            "probe.symbols": symbols,
            "probe.stream": np.frombuffer(stream, np.uint8),
        }
        for tensor, points in enumerate(self.zero_points):
            arrays[f"zero_points.{tensor}"] = points
            for rate, row in enumerate(self.tables):
                arrays[f"groups.{rate}.{tensor}"] = row[tensor].groups
                arrays[f"frequencies.{rate}.{tensor}"] = row[tensor].frequencies
        return bytes(save(arrays))

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """Read a file; MeshError MODEL_CORRUPT when it is damaged, or when the library here would code differently."""
        if len(data) > MAX_TABLES_BYTES:
            raise _corrupt(f"they have {len(data)} bytes, more than {MAX_TABLES_BYTES}")
        try:
            arrays = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise _corrupt("this is no safetensors file") from error
        tables = cls._read(arrays)
        if tables.digest != arrays["digest"].tobytes():
            raise _corrupt("they are not those whose digest they carry")
        symbols, stream = arrays["probe.symbols"], arrays["probe.stream"]
        runs = [(model, PROBE_SYMBOLS) for model in tables._models()]
        found = decoded(stream.tobytes(), runs) if symbols.size == PROBE_SYMBOLS * len(runs) else None
        if found is None or not np.array_equal(found, symbols) or tables._probe()[1] != stream.tobytes():
            raise MeshError(
                Reason.MODEL_CORRUPT,
                "the tables are refused: the library constriction of this node does not code their probe as the one "
                "that made them; install constriction 0.5",
            )
        return tables

    @classmethod
    def _read(cls, arrays: Mapping[str, NDArray[Any]]) -> Tables:
        def array(name: str, dtype: type[np.generic], rank: int) -> NDArray[Any]:
            found = arrays.get(name)
            if found is None or found.dtype != dtype or found.ndim != rank:
                raise _corrupt(f"{name} is missing or of another kind")
            return found

        if array("format", np.int32, 1).tolist() != [FORMAT]:
            raise _corrupt("their format is another one; update splitmesh")
        rates, axes = array("rates", np.int32, 2), array("axes", np.int32, 1)
        if rates.shape[1] != 2:
            raise _corrupt("a rate is a pair")
        for name in ("digest", "probe.symbols", "probe.stream"):
            array(name, np.uint8, 1)
        tensors = range(len(axes))
        tables = cls(
            tuple((kept, step) for kept, step in rates.tolist()),
            tuple(axes.tolist()),
            tuple(array("channels", np.int32, 1).tolist()),
            tuple(array(f"zero_points.{tensor}", np.uint8, 1) for tensor in tensors),
            tuple(
                tuple(
                    Table(
                        array(f"groups.{rate}.{tensor}", np.uint16, 1),
                        array(f"frequencies.{rate}.{tensor}", np.uint32, 2),
                    )
                    for tensor in tensors
                )
                for rate in range(len(rates))
            ),
        )
        tables._check()
        return tables

    def _check(self) -> None:
        _check_rates(self.rates)
        if not len(self.axes) == len(self.channels) == len(self.zero_points) >= 1:
            raise _corrupt("they are for several numbers of tensors")
        for axis, channels, points in zip(self.axes, self.channels, self.zero_points, strict=True):
            if not 1 <= axis < MAX_RANK or not 1 <= channels <= MAX_CHANNELS or len(points) not in (1, channels):
                raise _corrupt(f"axis {axis}, {channels} channels and {len(points)} zero points do not fit together")
        for rate, row in enumerate(self.tables):
            for tensor, table in enumerate(row):
                self._check_table(rate, tensor, table)

    def _check_table(self, rate: int, tensor: int, table: Table) -> None:
        sent = self.sent(rate, tensor)
        if table.frequencies.shape[1] > MAX_WIDTH:
            # Before each channel gets a row of its own below.
            raise _corrupt(f"a table of rate {rate} of tensor {tensor} has {table.frequencies.shape[1]} columns")
        if len(table.groups) != sent or not len(table.frequencies) or table.groups.max() >= len(table.frequencies):
            raise _corrupt(f"rate {rate} of tensor {tensor} does not say which table each of {sent} channels uses")
        points = np.broadcast_to(self.zero_points[tensor], (self.channels[tensor],))[:sent]
        sizes = np.array([len(alphabet(int(point), self.rates[rate][1])) for point in points])
        rows = table.frequencies[table.groups]
        possible = np.arange(rows.shape[1]) < sizes[:, None]
        if sizes.max() > rows.shape[1] or not np.array_equal(rows > 0, possible):
            raise _corrupt(f"rate {rate} of tensor {tensor} has other symbols than its step and zero point")
        if (table.frequencies.astype(np.int64).sum(1) != TOTAL).any():
            raise _corrupt(f"a table of rate {rate} of tensor {tensor} does not sum to {TOTAL}")

    def _plan(self, rate: int, tensor: int) -> Plan:
        table, step = self.tables[rate][tensor], self.rates[rate][1]
        order = np.argsort(table.groups, kind="stable")
        ends = np.flatnonzero(np.diff(table.groups[order], append=-1)) + 1
        starts = np.concatenate([[0], ends[:-1]])
        runs = tuple(
            (int(start), int(end), _model(table.frequencies[table.groups[order[start]]]))
            for start, end in zip(starts, ends, strict=True)
        )
        points = self.zero_points[tensor]
        points = points if len(points) == 1 else points[order]
        values = np.zeros((len(points), 256), np.uint8)
        for row, point in enumerate(points):
            found = alphabet(int(point), step)
            values[row, : len(found)] = found
        symbols = np.stack([symbols_of(int(point), step) for point in points])
        return Plan(order, runs, symbols, values)

    def _models(self) -> list[Any]:
        return [run[2] for rate in range(len(self.rates)) for plan in self.plans(rate) for run in plan.runs]

    def _probe(self) -> tuple[Bytes8, bytes]:
        """Symbols of every model, no two machines' choice: from a hash; and what they are coded as."""
        sizes = [
            np.count_nonzero(table.frequencies[group])
            for row in self.tables
            for table in row
            for group in np.unique(table.groups)
        ]
        chance = hashlib.shake_256(b"splitmesh tables").digest(PROBE_SYMBOLS * len(sizes))
        drawn = np.frombuffer(chance, np.uint8).reshape(-1, PROBE_SYMBOLS)
        symbols = (drawn % np.array(sizes)[:, None]).astype(np.uint8)
        return symbols.reshape(-1), encoded(zip(self._models(), symbols.astype(np.int32), strict=True))


def _check_rates(rates: Rates) -> None:
    if not 1 <= len(rates) <= MAX_RATES:
        raise _corrupt(f"they are for {len(rates)} rates; 1..{MAX_RATES}")
    if any(kept < 1 or not 1 <= step <= MAX_STEP or step & (step - 1) for kept, step in rates):
        raise _corrupt(f"a rate has no channels, or a step that is no power of two up to {MAX_STEP}")


def _model(row: NDArray[np.uint32]) -> Any:
    shares = row[: np.count_nonzero(row)].astype(np.float64) / TOTAL
    return constriction.stream.model.Categorical(shares, perfect=False, lazy=False)


def _corrupt(detail: str) -> MeshError:
    return MeshError(Reason.MODEL_CORRUPT, f"the tables are refused: {detail}")
