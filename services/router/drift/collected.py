"""The newest samples of one place since it was tightened, in units: what another threshold is looked for among.

Frames of one camera that follow each other show the same part, so they are no independent draws. Frames that a camera took in
the same ``UNIT_S`` seconds are taken for one unit, and units for independent: that is right where a part is seen for no longer,
and where it is seen for longer the promise is weaker than stated. Of a unit a fair sample of a few frames is kept, for a test
takes one of them.
"""

from __future__ import annotations

import random
import zlib
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from splitmesh.errors import field_error

UNIT_S = 2.0
"""Frames of a camera in a slot of so many seconds are one unit."""
KEPT = 2_000
"""Samples of a place that are kept where the goals do not need more."""
KEPT_OF_UNIT = 8
"""Of one unit, where the goals do not need more units than there is room for then."""
UNKNOWN = 1 << 30
"""Stands for the class of a sample that the tail has not answered; no class has this number."""

_ROW = np.dtype([("ease", "<f8"), ("unit", "<i8"), ("said", "<i4"), ("whole", "<i4"), ("exit", "<i4")])
_HEAD = np.dtype([("form", "<i8"), ("seen", "<i8")])
_FORM = 0x32746365_6C6C6F63
"""Begins what is saved, so that nothing else is read as that."""
_MOST = float(1 << 30)
Rows = NDArray[np.void]
_Row = tuple[float, int, int, int, int]


def unit_of(camera: str, at: float) -> int:
    """The unit of a frame of a camera, by seconds on any clock. Two cameras that share one by chance count for less, not more."""
    slot = int(min(max(at / UNIT_S, 0.0), _MOST))
    return slot << 32 | zlib.crc32(camera.encode())


class Collected:
    """Of one place.

    Args:
        most: samples that are kept; the oldest units give way.
        of_unit: of one unit.
    """

    def __init__(self, most: int = KEPT, of_unit: int = KEPT_OF_UNIT) -> None:
        self._most, self._of_unit = most, of_unit
        self._units: OrderedDict[int, tuple[list[int], list[_Row]]] = OrderedDict()
        self._kept = 0
        self._random = random.Random(0)
        self.seen = 0
        """Samples, also those that are no longer kept."""
        self.not_before = 0
        """A look can be due once so many were seen; by whoever looks."""

    def __len__(self) -> int:
        """Samples that are kept."""
        return self._kept

    @property
    def units(self) -> int:
        """That samples are kept of."""
        return len(self._units)

    @property
    def full(self) -> bool:
        """One more unit would make the oldest give way."""
        return self._kept > self._most - self._of_unit

    def add(self, ease: float, said: int, whole: int | None, exit_: int, unit: int) -> None:
        """One sample: the exit's ease (NaN: it may not answer) and class, the tail's class if it has answered, exit and unit."""
        whole = UNKNOWN if whole is None else min(whole, UNKNOWN - 1)
        self.seen += 1
        self._add((ease, unit, min(said, UNKNOWN - 1), whole, exit_))

    def keep(self, most: int, of_unit: int = KEPT_OF_UNIT) -> None:
        """From now on so many."""
        self._most, self._of_unit = most, of_unit
        self._give_way()

    def rows(self) -> Rows:
        """``[n]`` of ease, unit, said, whole, exit; the oldest unit first."""
        return np.array([row for _, rows in self._units.values() for row in rows], dtype=_ROW)

    def to_bytes(self) -> bytes:
        """To be saved."""
        return np.array([(_FORM, self.seen)], dtype=_HEAD).tobytes() + self.rows().tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, most: int = KEPT, of_unit: int = KEPT_OF_UNIT) -> Collected:
        """As it was saved; FIELD_INVALID for what never was."""
        size = len(data) - _HEAD.itemsize
        if size < 0 or size % _ROW.itemsize:
            raise field_error("collected", f"has {len(data)} bytes, which is no number of samples")
        form, seen = np.frombuffer(data, dtype=_HEAD, count=1).tolist()[0]
        rows = np.frombuffer(data, dtype=_ROW, offset=_HEAD.itemsize)
        if form != _FORM:
            raise field_error("collected", "does not begin as samples do")
        if not (np.isnan(rows["ease"]) | ((rows["ease"] >= 0) & (rows["ease"] <= 1))).all() or (rows["said"] < 0).any():
            raise field_error("collected", "has an ease outside 0..1 or a class below 0")
        found = cls(most, of_unit)
        for row in rows.tolist():
            found._add(row)
        found.seen = max(seen, len(rows))
        return found

    def _add(self, row: _Row) -> None:
        """A reservoir for each unit: every sample of it has the same chance to be kept (Vitter 1985)."""
        count, rows = self._units.setdefault(row[1], ([0], []))
        count[0] += 1
        if len(rows) < self._of_unit:
            rows.append(row)
            self._kept += 1
            self._give_way()
        elif (place := self._random.randrange(count[0])) < self._of_unit:
            rows[place] = row

    def _give_way(self) -> None:
        while self._kept > self._most:
            self._kept -= len(self._units.popitem(last=False)[1][1])
