"""What measuring says of candidates: with made-up sessions that move a clock, and with the real back ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import OrtSession
from splitmesh.runtime import measure as measuring
from splitmesh.runtime.answers import other_class
from splitmesh.runtime.candidates import REFERENCE, Candidate, Measured, Wish, candidates, choose
from splitmesh.runtime.host_backends import find_backends
from splitmesh.runtime.measure import compare, measure, measure_pieces
from splitmesh.runtime.providers import Compute
from splitmesh.tensor.spec import Array, TensorSpec
from tests.unit.onnx_nets import data, model, node, residual, value, weight

Answer = Callable[[Array], Array]

ORT, OV = Candidate("onnxruntime-cpu", "fp32", 1), Candidate("openvino-cpu", "fp32", 1)
ONE_AT_A_TIME = Wish(cores=1, workers=1, latency_ms=1e9)
"""One lane, so that one thread alone moves the clock."""


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def same(array: Array) -> Array:
    return array


class _Session:
    providers = ("made-up",)

    def __init__(self, clock: _Clock, ms: float, answer: Answer = same, shape: tuple[int, ...] = (-1, 4)) -> None:
        self._clock, self._ms, self._answer = clock, ms, answer
        self.inputs = self.outputs = (TensorSpec("x", "float32", shape),)
        self.closed = False
        self.ran = 0

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._clock.now += self._ms / 1e3
        self.ran += 1
        return {"x": self._answer(feeds["x"])}

    def close(self) -> None:
        self.closed = True


class _Host:
    """Opens made-up sessions."""

    def __init__(self, ms: Mapping[Candidate, float], answers: Mapping[Candidate, Answer] | None = None) -> None:
        self.clock = _Clock()
        self.opened: list[tuple[Candidate, _Session]] = []
        self._ms, self._answers = ms, answers or {}

    def opens(self, candidate: Candidate, lanes: int) -> _Session:
        ms = self._ms.get(candidate, 1.0)
        self.opened.append((candidate, _Session(self.clock, ms, self._answers.get(candidate, same))))
        return self.opened[-1][1]

    def measure(self, found: list[Candidate], budget_s: float = 20.0) -> list[Measured]:
        return measure(self.opens, found, ONE_AT_A_TIME, budget_s=budget_s, clock=self.clock)


def test_the_figures_are_those_of_the_runs() -> None:
    host = _Host({ORT: 10.0, OV: 8.0})
    ort, openvino = host.measure([ORT, OV])
    assert (ort.p50_ms, ort.p99_ms, ort.frames_per_s) == pytest.approx((10, 10, 100))
    assert (openvino.p50_ms, openvino.frames_per_s) == pytest.approx((8, 125))
    assert openvino.runs >= measuring.ENOUGH_RUNS
    assert ort.runs < openvino.runs  # it fell behind and dropped out


def test_everything_that_was_opened_is_closed() -> None:
    host = _Host({ORT: 10.0, OV: 8.0})
    host.measure([ORT, OV])
    assert len(host.opened) == 5  # the reference, each alone, and both side by side
    assert all(session.closed for _, session in host.opened)


def test_a_hopeless_one_is_run_no_more_than_needed_to_tell() -> None:
    host = _Host({ORT: 10.0, OV: 100.0})
    _, openvino = host.measure([ORT, OV])
    assert openvino.runs == measuring.FIRST_RUNS
    assert openvino.refused == measuring.FELL_BEHIND


def test_one_that_was_run_a_few_times_only_is_not_preferred_for_never_having_been_slow() -> None:
    # Of many runs some are slow, whoever computes: that the others were not run for so long is no merit.
    clock = _Clock()

    class Hiccups(_Session):
        def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
            clock.now += 0.9 if self.ran % 20 == 19 else 0.0
            return super().run(feeds)

    def opens(candidate: Candidate, lanes: int) -> _Session:
        return Hiccups(clock, 10.0) if candidate == OV else _Session(clock, 100.0)

    found = measure(opens, [ORT, OV], ONE_AT_A_TIME, budget_s=20.0, clock=clock)
    assert found[1].p99_ms > 500 > found[0].p99_ms
    assert choose(found, latency_ms=500.0).candidate == OV


def test_measuring_ends_about_when_its_time_is_up() -> None:
    host = _Host({ORT: 200.0, OV: 190.0})
    found = host.measure([ORT, OV], budget_s=6.0)
    # A turn of each, of a few runs, may be under way.
    assert host.clock.now < 6.0 + 2 * (measuring.LEAST_RUNS + 1) * 0.2 + 1e-6
    assert all(one.runs for one in found)


def test_what_there_is_no_time_for_is_refused_and_says_so() -> None:
    others = [Candidate("openvino-cpu", "fp32", count) for count in (1, 2, 4)]
    host = _Host({ORT: 500.0})
    found = host.measure([ORT, *others], budget_s=2.0)
    assert found[0].refused == ""
    assert all("time" in one.refused for one in found[1:])


def shifted(array: Array) -> Array:
    return array + np.float32(0.5)


def another_class(array: Array) -> Array:
    moved = array.copy()
    rows = np.arange(len(array))
    best, second = np.argsort(array, axis=1)[:, -1], np.argsort(array, axis=1)[:, -2]
    gap = array[rows, best] - array[rows, second]
    moved[rows, second] += np.where(gap < 0.05 * np.abs(array).max(), gap * 1.01 + 1e-6, 0).astype(array.dtype)
    return moved


def infinite(array: Array) -> Array:
    return np.full_like(array, np.nan)


def fails(array: Array) -> Array:
    raise MeshError(Reason.MODEL_CORRUPT, "an operator is missing")


@pytest.mark.parametrize(("answer", "said"), [(shifted, "differs by"), (infinite, "differs by"), (fails, "is missing")])
def test_one_that_answers_otherwise_is_refused_with_all_of_its_threads(answer: Answer, said: str) -> None:
    more = Candidate("openvino-cpu", "fp32", 2)
    host = _Host({}, {OV: answer, more: answer})
    ort, openvino, again = host.measure([ORT, OV, more])
    assert ort.refused == ""
    assert said in openvino.refused
    assert said in again.refused
    assert more not in [candidate for candidate, _ in host.opened]


def test_one_that_was_stopped_for_being_slow_gets_its_chance_with_more_threads() -> None:
    def stopped(array: Array) -> Array:
        raise MeshError(Reason.DEADLINE_EXPIRED, "the run was stopped")

    more = Candidate("openvino-cpu", "fp32", 2)
    _, openvino, again = _Host({}, {OV: stopped}).measure([ORT, OV, more])
    assert "stopped" in openvino.refused
    assert again.refused == ""
    assert again.runs


def test_a_small_difference_that_changes_the_class_is_refused_and_a_tie_is_not() -> None:
    right = {"scores": np.array([[1.0, 0.97, 0.0]], np.float32)}
    assert other_class(right, {"scores": np.array([[0.97, 1.0, 0.0]], np.float32)}) == "scores"
    tie = {"scores": np.array([[1.0, 0.999, 0.0]], np.float32)}
    assert other_class(tie, {"scores": np.array([[0.999, 1.0, 0.0]], np.float32)}) == ""
    assert other_class({"map": np.zeros((1, 2, 2), np.float32)}, {"map": np.ones((1, 2, 2), np.float32)}) == ""


def test_a_batch_that_mixes_its_samples_is_found_out() -> None:
    clock = _Clock()
    session = _Session(clock, 1.0, lambda array: array if len(array) == 1 else array[::-1].copy())
    feeds = [{"x": np.full((1, 4), number, np.float32)} for number in range(1, 5)]
    assert compare(session, feeds, feeds, 0.02)[1] == ""
    assert "differs" in compare(session, feeds, feeds, 0.02, batch=2)[1]


def test_a_model_of_open_sizes_cannot_be_measured() -> None:
    clock = _Clock()
    with pytest.raises(MeshError) as caught:
        measure(lambda *_: _Session(clock, 1, shape=(-1, -1)), [ORT], ONE_AT_A_TIME, budget_s=1, clock=clock)
    assert caught.value.reason is Reason.MODEL_SHAPE_UNKNOWN


def test_both_back_ends_of_this_host_are_measured_for_real_and_answer_alike() -> None:
    wish = Wish(cores=2, workers=2, latency_ms=1e9, batch=8, provider="cpu")
    found, _ = candidates(wish, find_backends())
    results = measure_pieces([data(residual())], found, wish, Compute(), 3.0, 5.0)
    assert [one.candidate for one in results] == found
    exact = [one for one in results if one.candidate.precision == "fp32"]
    assert {one.candidate.backend for one in exact} == {"onnxruntime-cpu", "openvino-cpu"}
    for one in exact:
        assert one.refused == "" or "time" in one.refused or "behind" in one.refused
        assert one.error < 1e-4
    assert all(0 < one.p50_ms <= one.p99_ms and one.frames_per_s > 0 for one in results if one.runs)
    assert {one.candidate.backend for one in exact if one.runs} == {"onnxruntime-cpu", "openvino-cpu"}


def test_pieces_that_run_one_after_the_other_are_measured_as_one() -> None:
    first = model([node("MatMul", "x w", "h")], [value("x", ["N", 4])], [value("h", ["N", 4])], [weight("w", 4, 4)])
    second = model([node("MatMul", "h v", "y")], [value("h", ["N", 4])], [value("y", ["N", 3])], [weight("v", 4, 3)])
    wish = Wish(cores=1, workers=1, latency_ms=1e9, provider="cpu", precisions=("fp32",))
    results = measure_pieces([data(first), data(second)], [ORT, OV], wish, Compute(), 2.0, 5.0)
    assert {one.refused for one in results} <= {"", measuring.FELL_BEHIND}
    assert all(one.runs and one.error < 1e-4 for one in results)


def test_a_model_that_one_back_end_does_not_know_is_left_to_the_other() -> None:
    # onnxruntime's own operator.
    own = model(
        [node("CDist", "x w", "y", domain="com.microsoft", metric="euclidean")],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        [weight("w", 4, 4)],
        domains=["com.microsoft"],
    )
    OrtSession(data(own)).close()
    wish = Wish(cores=1, workers=1, latency_ms=1e9)
    ort, openvino = measure_pieces([data(own)], [ORT, OV], wish, Compute(), 2.0, 5.0)
    assert ort.refused == ""
    assert "CDist" in openvino.refused


def test_memory_in_use_is_known_where_linux_tells_it() -> None:
    assert measuring.resident_bytes() > 1 << 20 or not os.path.exists("/proc/self/statm")
    assert REFERENCE.threads == 1
