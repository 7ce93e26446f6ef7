"""A session whose callers are computed together: frames of several cameras that wait at the same time make one batch.

The thread that finds a free place computes for itself and for all that wait by then, and hands its place on to the next in
line. So nobody waits for company, and a frame that comes alone costs what it cost. A batch that fails is computed frame by
frame, so that one poisonous frame fails alone, unless it was stopped for taking too long. Knows arrays, nothing of frames,
deadlines or exits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.batch_job import joined, rows_of, shapes_of
from splitmesh.runtime import Session
from splitmesh.tensor.spec import Array, TensorSpec

Feeds = Mapping[str, Array]


@dataclass(slots=True, eq=False)
class _Caller:
    feeds: Feeds
    woken: threading.Event = field(default_factory=threading.Event)
    answer: dict[str, Array] | BaseException | None = None
    """None when it was woken to compute itself."""
    begun: float = 0.0
    """When its run began."""


class Together:
    """Implements :class:`splitmesh.runtime.Session` on ``session``, which must take any leading dimension.

    Args:
        session: computes. Closed with this one.
        max_batch: most callers computed together.
        at_once: how many batches may be computed at the same time.
        on_run: told the samples of every run and its milliseconds, in the thread that computed.
    """

    def __init__(
        self, session: Session, *, max_batch: int, at_once: int, on_run: Callable[[int, float], None] | None = None
    ) -> None:
        self._session = session
        self._max_batch = max_batch
        self._on_run = on_run
        self._lock = threading.Lock()
        self._free = at_once
        self._line: list[_Caller] = []

    @property
    def max_batch(self) -> int:
        """Most callers computed together."""
        return self._max_batch

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The session's."""
        return self._session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The session's."""
        return self._session.outputs

    @property
    def providers(self) -> tuple[str, ...]:
        """The session's."""
        return self._session.providers

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs for one sample, each ``[1, ...]``; see :meth:`run_timed`."""
        return self.run_timed(feeds)[0]

    def run_timed(self, feeds: Feeds) -> tuple[dict[str, Array], float]:
        """The outputs for one sample, and the milliseconds it waited before it was computed.

        Raises what the session raises for this sample.
        """
        arrived = time.perf_counter()
        me = _Caller(feeds)
        with self._lock:
            if place := self._free > 0:
                self._free -= 1
            else:
                self._line.append(me)
        if not place:
            me.woken.wait()
        if me.answer is None:
            self._lead(me)
        if isinstance(me.answer, BaseException):
            raise me.answer
        if me.answer is None:
            raise AssertionError("whoever leads answers everybody, also itself")
        return me.answer, (me.begun - arrived) * 1e3

    def _lead(self, me: _Caller) -> None:
        """Compute for the caller and for those who wait; then the next in line leads."""
        company = [me]
        try:
            company += self._company(me)
            self._compute(company)
        finally:
            with self._lock:
                following = self._line.pop(0) if self._line else None
                self._free += following is None
            if following is not None:
                following.woken.set()
            for caller in company[1:]:
                caller.woken.set()

    def _company(self, me: _Caller) -> list[_Caller]:
        """Those of the line, the longest waiting first, whose inputs have the same shapes."""
        shapes = shapes_of(me.feeds)
        with self._lock:
            company = [caller for caller in self._line if shapes_of(caller.feeds) == shapes][: self._max_batch - 1]
            self._line = [caller for caller in self._line if caller not in company]
        return company

    def _compute(self, company: Sequence[_Caller]) -> None:
        try:
            answers = self._run(company)
        except BaseException as error:  # of any kind: who is woken without an answer would take itself for a leader
            late = isinstance(error, MeshError) and error.reason is Reason.DEADLINE_EXPIRED
            if len(company) == 1 or late:  # what was stopped for taking too long is not begun again
                for caller in company:
                    caller.answer = error
                return
            for caller in company:
                self._compute([caller])
            return
        for caller, answer in zip(company, answers, strict=True):
            caller.answer = answer

    def _run(self, company: Sequence[_Caller]) -> list[dict[str, Array]]:
        begun = time.perf_counter()
        for caller in company:
            caller.begun = begun
        count = len(company)
        outputs = self._session.run(joined([caller.feeds for caller in company]))
        if self._on_run is not None:
            self._on_run(count, (time.perf_counter() - begun) * 1e3)
        return [outputs] if count == 1 else rows_of(outputs, count)
