"""What exits said about samples that they were not fitted to, and what the whole model said: the artefact
``calibration_outcomes.safetensors``.

Written once by whoever fits the exits, read by whoever chooses a score and a threshold for them. Holds rows of numbers per
sample, never the sample and never its features. The validation samples are for choosing what the threshold is compared with, the
hold-out is for the threshold alone, or its promise means nothing. Knows rows and classes, not what is promised about them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitmesh.errors import MeshError, field_error
from splitmesh.routing import number_file
from splitmesh.routing.number_file import Kind, Layout, corrupt
from splitmesh.routing.rule import Judge, Rule

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]

VERSION = 2
MAX_BYTES = 256 * 1024 * 1024
"""A larger file is refused unread; a sample of one exit and 10 classes takes 120 bytes."""
_WHAT = "the calibration outcomes"
_BASE: Layout = {
    "probabilities": Kind(("n", "exits", "classes"), np.float32),
    "strange": Kind(("n",), np.uint8),
    "whole": Kind(("n",), np.int64),
    "labels": Kind(("n",), np.int64),
    "groups": Kind(("n",), np.int64),
    "part": Kind(("n",), np.uint8),
    "finding": Kind((1,), np.uint8),
    "seed": Kind((1,), np.int64),
    "names": Kind(("names",), np.uint8),
}
_LOGITS: Layout = {"logits": Kind(("n", "exits", "classes"), np.float32)}
_WORTH: Layout = {"worth": Kind(("n",), np.float32)}
_LAYOUTS: tuple[Layout, ...] = (_BASE, {**_BASE, **_LOGITS}, {**_BASE, **_WORTH}, {**_BASE, **_LOGITS, **_WORTH})


class Part(IntEnum):
    """What a sample is for."""

    VALIDATION = 1
    HOLDOUT = 2


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationOutcomes:
    """Rows of every validation and hold-out sample, in no particular order. FIELD_INVALID for arrays that do not fit together."""

    probabilities: NDArray[np.float32]
    """``[n, exits, classes]``, exits from the input on; a row that is no distribution is never answered."""
    whole: Classes
    """``[n]``: class that the whole model names; for a detector 0: it found nothing, 1: something."""
    part: NDArray[np.uint8]
    """``[n]`` of :class:`Part`."""
    logits: NDArray[np.float32] | None = None
    """The same shape as the probabilities; None where the exits do not give them."""
    worth: NDArray[np.float32] | None = None
    """``[n]``: what asking the tail is expected to gain, by the exit at the cut (``deferral.py``); of validation samples by a
    score that was not fitted to them. None: no such score came with the version."""
    strange: NDArray[np.bool_] | None = None
    """``[n]``: unlike the calibration's (``unusual.py``); None: no such measure came with the version."""
    labels: Classes | None = None
    """``[n]``: the truth where it is known, else -1."""
    groups: Classes | None = None
    """``[n]``: the unit that a sample shows; None: all are independent."""
    names: tuple[str, ...] = ()
    """Of the classes, or empty."""
    finding: bool = False
    """The exits are a detector's."""
    seed: int = 0
    """Of the division into fit, validation and hold-out."""

    def __post_init__(self) -> None:
        rows = _finite(self.probabilities)
        if rows.ndim != 3 or rows.shape[1] == 0:
            raise field_error("probabilities", f"has shape {list(rows.shape)}, expected [n, exits, classes]")
        n = len(rows)
        object.__setattr__(self, "probabilities", rows)
        for name, dtype in (("whole", np.int64), ("part", np.uint8), ("labels", np.int64), ("groups", np.int64)):
            self._take(name, dtype, (n,))
        self._take("worth", np.float32, (n,))
        self._take("strange", np.bool_, (n,))
        self._take("logits", np.float32, rows.shape)
        if self.logits is not None:
            object.__setattr__(self, "logits", _finite(self.logits))
        if not np.isin(self.part, [int(part) for part in Part]).all():
            raise field_error("part", f"holds numbers other than {', '.join(str(int(part)) for part in Part)}")
        if n and not 0 <= int(self.whole.min()) <= int(self.whole.max()) < max(rows.shape[2], 1):
            raise field_error("whole", f"names classes outside 0..{rows.shape[2] - 1}")
        if self.names and len(self.names) != rows.shape[2] and not self.finding:
            raise field_error("names", f"are {len(self.names)}, the rows have {rows.shape[2]} classes")

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.probabilities)

    @property
    def exits(self) -> int:
        """How many."""
        return int(self.probabilities.shape[1])

    def of(self, part: Part) -> CalibrationOutcomes:
        """Those samples alone."""
        rows = self.part == int(part)

        def chosen(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else array[rows]

        return replace(
            self,
            probabilities=self.probabilities[rows],
            whole=self.whole[rows],
            part=self.part[rows],
            logits=chosen(self.logits),
            worth=chosen(self.worth),
            strange=chosen(self.strange),
            labels=chosen(self.labels),
            groups=chosen(self.groups),
        )

    def eases(self, rule: Rule | None = None, *, escalate_unusual: bool = False) -> tuple[Floats, Classes]:
        """What a head would make of the samples: eases ``[n, exits]``, NaN where an exit may not answer, and its classes.

        As in a head, only the exit at the cut knows worths and what is strange: a score that reads worths is NaN at exits
        before it, and with ``escalate_unusual`` so is the last one for strange samples. FIELD_INVALID as :class:`Judge`.
        """
        judge = Judge(rule, finding=self.finding)
        columns = []
        for number in range(self.exits):
            last = number == self.exits - 1
            logits = None if self.logits is None else self.logits[:, number]
            found, answers = judge.eases(
                self.probabilities[:, number], logits=logits, worth=self.worth if last else None
            )
            if last and escalate_unusual and self.strange is not None:
                found = np.where(self.strange, np.nan, found)
            columns.append((found, answers))
        return np.stack([ease for ease, _ in columns], axis=1), np.stack([answer for _, answer in columns], axis=1)

    def columns(self) -> tuple[Floats, NDArray[np.bool_]]:
        """Of the hold-out, by the largest probability: eases and agreements ``[hold-out, exits]``, as
        ``threshold.choose_threshold`` takes them."""
        held = self.of(Part.HOLDOUT)
        found, answers = held.eases()
        return found, answers == held.whole[:, None]

    def to_bytes(self) -> bytes:
        """The artefact; the same bytes for the same content."""
        n = self.n
        given = {
            "probabilities": self.probabilities,
            "strange": np.zeros(n, np.uint8) if self.strange is None else self.strange.astype(np.uint8) + 1,
            "whole": self.whole,
            "labels": np.full(n, -1) if self.labels is None else self.labels,
            "groups": np.arange(n) if self.groups is None else self.groups,
            "part": self.part,
            "finding": [int(self.finding)],
            "seed": [self.seed],
            "names": np.frombuffer(json.dumps(self.names).encode(), dtype=np.uint8),
        }
        layout = dict(_BASE)
        if self.logits is not None:
            layout |= _LOGITS
            given["logits"] = self.logits
        if self.worth is not None:
            layout |= _WORTH
            given["worth"] = self.worth
        return number_file.written(VERSION, layout, given)

    @classmethod
    def from_bytes(cls, data: bytes) -> CalibrationOutcomes:
        """Read the artefact; MeshError MODEL_CORRUPT names the first problem."""
        arrays = number_file.read(data, _WHAT, version=VERSION, most_bytes=MAX_BYTES, layouts=_LAYOUTS)
        strange, labels = arrays["strange"], arrays["labels"]
        try:
            names = json.loads(arrays["names"].tobytes())
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError("they are no list of texts")
            return cls(
                probabilities=arrays["probabilities"],
                whole=arrays["whole"],
                part=arrays["part"],
                logits=arrays.get("logits"),
                worth=arrays.get("worth"),
                strange=None if not strange.all() or not len(strange) else strange == 2,
                labels=labels if (labels >= 0).any() else None,
                groups=arrays["groups"],
                names=tuple(names),
                finding=bool(arrays["finding"][0]),
                seed=int(arrays["seed"][0]),
            )
        except (ValueError, RecursionError) as error:
            raise corrupt(_WHAT, f"the names of the classes: {error}") from error
        except MeshError as error:
            raise corrupt(_WHAT, error.message) from error

    def _take(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
        given: ArrayLike | None = getattr(self, name)
        if given is None:
            return
        array = np.asarray(given, dtype=dtype)
        if array.shape != shape:
            raise field_error(name, f"has shape {list(array.shape)}, expected {list(shape)}")
        object.__setattr__(self, name, array)


def _finite(rows: ArrayLike) -> NDArray[np.float32]:
    """A row with anything that is no number becomes one of zeros: no distribution either, and it can be written."""
    given = np.asarray(rows, dtype=np.float32)
    if np.isfinite(given).all():
        return given
    whole = np.isfinite(given).all(axis=-1, keepdims=True) if given.ndim else np.isfinite(given)
    return np.where(whole, given, np.float32(0.0)).astype(np.float32)
