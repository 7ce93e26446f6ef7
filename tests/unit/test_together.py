"""Callers computed together: the same answers as one by one, nobody waits for company, and one that fails fails alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.head.together import Together
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import Session, open_session
from splitmesh.tensor.spec import Array

WAIT_S = 10.0
MODEL = Path("examples/solder_joints/model/model.onnx")


class _Gated:
    """A session whose first run waits until it is let go; remembers the samples of each run."""

    def __init__(self, session: Session, fails: Callable[[Array], bool] = lambda _: False) -> None:
        self._session = session
        self._fails = fails
        self.begun, self.go = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        image = feeds["image"]
        self.sizes.append(len(image))
        if len(self.sizes) == 1:
            self.begun.set()
            assert self.go.wait(WAIT_S)
        if self._fails(image):
            raise MeshError(Reason.MODEL_CORRUPT, "the model fails on this input")
        return self._session.run(feeds)


@pytest.fixture(scope="module")
def session() -> Session:
    return open_session(MODEL.read_bytes())


def pictures(count: int, side: int = 128) -> list[Array]:
    rng = np.random.default_rng(3)
    return [np.asarray(rng.standard_normal((1, 1, side, side)), np.float32) for _ in range(count)]


def run_all(together: Together, gated: _Gated, samples: list[Array]) -> list[Future[dict[str, Array]]]:
    """The first holds the session; the others come while it runs."""
    pool = ThreadPoolExecutor(len(samples))
    first = pool.submit(together.run, {"image": samples[0]})
    assert gated.begun.wait(WAIT_S)
    others = []
    for sample in samples[1:]:
        others.append(pool.submit(together.run, {"image": sample}))
        while len(together._line) < len(others):
            threading.Event().wait(0.001)
    gated.go.set()
    pool.shutdown(wait=True)
    return [first, *others]


def test_those_that_come_during_a_run_are_computed_together_with_the_answers_of_singles(session: Session) -> None:
    gated, samples, runs = _Gated(session), pictures(6), list[tuple[int, float]]()
    together = Together(gated, max_batch=4, at_once=1, on_run=lambda size, ms: runs.append((size, ms)))
    answers = run_all(together, gated, samples)
    assert gated.sizes == [1, 4, 1]
    assert [size for size, _ in runs] == gated.sizes
    assert all(ms > 0 for _, ms in runs)
    for sample, answer in zip(samples, answers, strict=True):
        alone = session.run({"image": sample})
        assert answer.result().keys() == alone.keys()
        for name, array in alone.items():
            assert answer.result()[name].shape == array.shape
            np.testing.assert_allclose(answer.result()[name].astype(float), array.astype(float), rtol=1e-4, atol=1e-5)


def test_one_that_fails_fails_alone(session: Session) -> None:
    samples = pictures(4)
    samples[2][...] = 99
    gated = _Gated(session, fails=lambda image: bool((image == 99).any()))
    answers = run_all(Together(gated, max_batch=8, at_once=1), gated, samples)
    assert gated.sizes == [1, 3, 1, 1, 1]
    assert [answer.exception() is None for answer in answers] == [True, True, False, True]
    with pytest.raises(MeshError, match="fails on this input"):
        answers[2].result()


def test_a_batch_that_was_stopped_for_taking_too_long_is_not_begun_again(session: Session) -> None:
    class Slow(_Gated):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            outputs = super().run(feeds)
            if len(feeds["image"]) > 1:
                raise MeshError(Reason.DEADLINE_EXPIRED, "the run was stopped")
            return outputs

    gated = Slow(session)
    answers = run_all(Together(gated, max_batch=8, at_once=1), gated, pictures(4))
    assert gated.sizes == [1, 3]
    reasons = [error.reason if isinstance(error := one.exception(), MeshError) else None for one in answers]
    assert reasons == [None, *[Reason.DEADLINE_EXPIRED] * 3]


def test_inputs_of_other_shapes_are_no_company(session: Session) -> None:
    samples = [*pictures(2), *pictures(2, side=64), *pictures(1)]
    gated = _Gated(session)
    answers = run_all(Together(gated, max_batch=8, at_once=1), gated, samples)
    assert gated.sizes == [1, 2, 2, 1, 1]  # the smaller two fail together, and each by itself
    reasons = [error.reason if isinstance(error := one.exception(), MeshError) else None for one in answers]
    assert reasons.count(Reason.TENSOR_SHAPE_MISMATCH) == sum(sample.shape[-1] == 64 for sample in samples)


def test_one_that_comes_alone_is_computed_at_once(session: Session) -> None:
    together = Together(session, max_batch=8, at_once=1)
    sample = pictures(1)[0]
    for _ in range(3):
        outputs, waited_ms = together.run_timed({"image": sample})
        assert waited_ms < 1000
        for name, array in session.run({"image": sample}).items():
            np.testing.assert_array_equal(outputs[name], array)


def test_as_many_runs_as_allowed_are_made_at_once(session: Session) -> None:
    entered = threading.Barrier(2, timeout=WAIT_S)

    class Meets:
        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            entered.wait()
            return session.run(feeds)

    together = Together(Meets(), max_batch=8, at_once=2)
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(together.run, [{"image": sample} for sample in pictures(2)]))) == 2


def test_outputs_without_a_row_for_each_are_computed_one_by_one(session: Session) -> None:
    class Lists(_Gated):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            return {"found": next(iter(super().run(feeds).values())).sum(axis=0, keepdims=True)}

    gated = Lists(session)
    samples = pictures(3)
    answers = run_all(Together(gated, max_batch=8, at_once=1), gated, samples)
    assert gated.sizes == [1, 2, 1, 1]
    for sample, answer in zip(samples, answers, strict=True):
        expected = next(iter(session.run({"image": sample}).values())).sum(axis=0, keepdims=True)
        np.testing.assert_array_equal(answer.result()["found"], expected)


class _Chance:
    """Takes a moment for each run, and fails by chance in every way there is; counts how many run at once."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._lock = rng, threading.Lock()
        self.now = self.most = 0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            chance = self._rng.random()
        try:
            time.sleep(0.0005)
            if chance < 0.2:
                raise (MemoryError, SystemExit, KeyboardInterrupt)[int(chance * 15)]
            image = feeds["image"]
            return {"row": image[:1] if chance < 0.25 else image}
        finally:
            with self._lock:
                self.now -= 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_run_raises_every_caller_ends_and_no_place_is_lost_or_won(seed: int) -> None:
    rng = random.Random(seed)
    session, at_once = _Chance(rng), 1 + seed % 2
    together = Together(session, max_batch=4, at_once=at_once)  # type: ignore[arg-type]

    def call(number: int) -> bool:
        image = np.full((1, 1 + number % 2), number)
        try:
            return bool((together.run({"image": image})["row"] == image).all())
        except (MemoryError, SystemExit, KeyboardInterrupt):
            return True

    with ThreadPoolExecutor(10) as pool:
        assert all(future.result(WAIT_S) for future in [pool.submit(call, number) for number in range(120)])
    assert session.most <= at_once
    # As many places as before: so many callers more run at once, and no more.
    assert together._free == at_once
