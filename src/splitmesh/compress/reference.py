"""What the original model answers on some samples: what every way of answering is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from splitmesh.compress.tally import Classes
from splitmesh.compress.work import BATCH, Rows, Samples
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import Session
from splitmesh.tensor.spec import Array


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples."""

    rows: Rows
    feed: dict[str, Array]
    expected: Mapping[str, Array]
    """Outputs of the original; of one with classes only their scores."""
    labels: Classes | None
    """-1 where not known."""


class Reference:
    """Batches with the original's answers, as often as they are read.

    Scores of classes are kept; other outputs can be as large as pictures and are computed again each time.
    """

    def __init__(self, session: Session, samples: Samples, rows: Rows, class_output: str) -> None:
        """``rows`` that do not fill a batch that the model fixes are left out; CALIBRATION_INSUFFICIENT without one."""
        fixed = samples.calibration.fixed_batch
        self.rows = rows[: len(rows) - len(rows) % (fixed or 1)]
        if not len(self.rows):
            raise MeshError(
                Reason.CALIBRATION_INSUFFICIENT, f"{len(rows)} samples do not fill a batch of {fixed or 1} of the model"
            )
        self.class_output = class_output
        self._session = session
        self._samples = samples
        size = fixed or BATCH
        self._parts = [self.rows[start : start + size] for start in range(0, len(self.rows), size)]
        self._known: dict[int, dict[str, Array]] = {}

    def __iter__(self) -> Iterator[Batch]:
        for number, part in enumerate(self._parts):
            feed = self._samples.calibration.feeds(part)
            expected = self._known.get(number)
            if expected is None:
                expected = self._session.run(feed)
                if self.class_output:
                    expected = self._known[number] = {self.class_output: expected[self.class_output]}
            yield Batch(part, feed, expected, self._samples.labels(part))
