"""What a classifier's own output holds, logits or probabilities, so that an exit's answer can be given in the same form.

Nothing in a version says it, and the head has no whole model to look at. So it is seen on the first answer of the whole model
(``model/classes.py`` tells the two apart for every answer, by the same rule) and kept on disk; until then no exit answers for the
whole model's outputs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.head.active import ActiveModel
from splitmesh.client.registry import VersionInfo
from splitmesh.model.classes import ScoreForm
from splitmesh.model.segments import TensorInfo
from splitmesh.tensor import DTYPES
from splitmesh.tensor.spec import Array

log = logging.getLogger(__name__)

LEAST = 1e-30
"""Below it a probability's logarithm is that of this: 16-bit floats hold it too."""


def as_output(row: NDArray[np.float64], form: ScoreForm, info: TensorInfo) -> Array:
    """Class probabilities as the whole model would give them, one sample ``[1, ...]`` of the output ``info`` describes.

    Logits are told up to a constant by probabilities alone: their softmax is the same.
    """
    scores = np.log(np.maximum(row, LEAST)) if form is ScoreForm.LOGITS else row
    # The axis of the classes is the last; others, the batch too, have one element.
    return scores.astype(DTYPES[info.dtype]).reshape([1] * (len(info.shape) - 1) + [-1])


class ScoreForms:
    """Remembers forms by version, over restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[str, int], ScoreForm] = {}

    async def share(self, ways: Sequence[ActiveModel]) -> None:
        """Tell every way of a version what one of them saw, or what was kept, and keep what is new."""
        seen = next((active.scores for active in ways if active.scores is not None), None)
        info = ways[0].info
        key = (info.model, info.version)
        if seen is None:
            seen = self._kept.get(key) or await asyncio.to_thread(self._read, info)
        if seen is None:
            return
        for active in ways:
            active.scores = seen
        if self._kept.get(key) is not seen:
            self._kept[key] = seen
            await asyncio.to_thread(self._write, info, seen)

    def _path(self, info: VersionInfo) -> Path:
        return self._folder / f"{info.model}-{info.version}"

    def _read(self, info: VersionInfo) -> ScoreForm | None:
        try:
            return ScoreForm(self._path(info).read_text())
        except (OSError, ValueError):
            return None

    def _write(self, info: VersionInfo, form: ScoreForm) -> None:
        path = self._path(info)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(form)
            temporary.replace(path)
        except OSError as error:
            log.warning("a restart will have to see again what %s holds: %s", path.name, error.strerror)
