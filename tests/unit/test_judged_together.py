"""Frames that are computed in one run are judged by their own rows: what the exit said, and what it read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edge.head.staged import HeadRun, run_head
from edge.head.together import Together
from splitmesh.model.manifest import HEAD, MANIFEST, Manifest
from splitmesh.routing.gate import Gate, Override, Why
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array
from tests.support.answering import EXIT_FEATURES, features_version
from tests.support.fitted import strange_beyond
from tests.support.models import EASY, HARD, SIDE

WAIT_S = 10.0
LEVELS = [EASY, HARD, 1.0, 0.38, 0.1]


class _Held:
    """The first run waits until it is let go."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.begun, self.go = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(feeds["image"]))
        if len(self.sizes) == 1:
            self.begun.set()
            assert self.go.wait(WAIT_S)
        return self._session.run(feeds)


def grey(level: float) -> dict[str, Array]:
    return {"image": np.full((1, 1, SIDE, SIDE), level, np.float32)}


def test_each_frame_has_its_own_verdict() -> None:
    artifacts = features_version()
    manifest, session = Manifest.from_json(artifacts[MANIFEST]), open_session(artifacts[HEAD])
    gate = Gate(0.9, overrides=[Override("1", "", 2.0)], unusual=strange_beyond(0.9))

    def judged(on: Session, number: int) -> HeadRun:
        return run_head(on, manifest, gate, grey(LEVELS[number]), camera=str(number), escalate=False)

    alone = [judged(session, number) for number in range(len(LEVELS))]
    held = _Held(session)
    together = Together(held, max_batch=8, at_once=1)
    with ThreadPoolExecutor(len(LEVELS)) as pool:
        asked = [pool.submit(judged, together, 0)]
        assert held.begun.wait(WAIT_S)
        for number in range(1, len(LEVELS)):
            asked.append(pool.submit(judged, together, number))
            while len(together._line) < number:
                threading.Event().wait(0.001)
        held.go.set()
        runs = [one.result(WAIT_S) for one in asked]
    assert held.sizes == [1, len(LEVELS) - 1]
    whys = [run.verdict.why for run in runs if run.verdict is not None]
    assert whys == [Why.SURE, Why.DRIFTED, Why.UNUSUAL, Why.UNSURE, Why.SURE]
    for one, other, level in zip(alone, runs, LEVELS, strict=True):
        assert one.verdict is not None
        assert other.verdict is not None
        assert (one.verdict.answer, one.verdict.unusual) == (other.verdict.answer, other.verdict.unusual)
        np.testing.assert_allclose(one.verdict.ease, other.verdict.ease, atol=1e-5)
        np.testing.assert_allclose(other.outputs[EXIT_FEATURES], [[level, level / 2]], atol=1e-5)
