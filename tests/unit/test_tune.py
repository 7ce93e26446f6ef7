"""What is chosen from measured times, with a clock that only runs of a made-up session move."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edge.head import tune
from edge.head.tune import choose_batch, choose_threads, measure_batches, open_tuned
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.candidates import thread_counts
from splitmesh.runtime.ort import CPU
from splitmesh.tensor.spec import Array, TensorSpec

Answer = Callable[[Array], Array]


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class _Session:
    """Takes ``ms`` for a batch of a size; answers with its input."""

    def __init__(
        self,
        clock: _Clock,
        ms: Callable[[int], float],
        *,
        shape: tuple[int, ...] = (-1, 4),
        provider: str = CPU,
        answer: Answer = lambda array: array,
    ) -> None:
        self._clock, self._ms, self._answer = clock, ms, answer
        self.inputs = (TensorSpec("x", "float32", shape),)
        self.outputs = (TensorSpec("y", "float32", shape),)
        self.providers = (provider,)
        self.sizes: list[int] = []
        self.closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(feeds["x"]))
        self._clock.now += self._ms(len(feeds["x"])) / 1e3
        return {"y": self._answer(feeds["x"])}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("most", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_threads_are_tried_in_doublings_up_to_the_hosts_cores(most: int, counts: list[int]) -> None:
    assert thread_counts(most) == counts


@pytest.mark.parametrize(
    ("run_ms", "workers", "latency_ms", "chosen"),
    [
        ({1: 10, 2: 6, 4: 4}, 4, 100, 1),  # side by side gives most frames
        ({1: 10, 2: 5.1, 4: 2.6}, 4, 100, 4),  # nearly as many, and each sooner
        ({1: 10, 2: 6, 4: 4}, 1, 100, 4),  # one worker: nothing runs side by side
        ({1: 300, 2: 180, 4: 120}, 4, 200, 2),  # one thread is too slow for a frame
        ({1: 300, 2: 280, 4: 290}, 4, 200, 2),  # nothing is quick enough: the quickest
        ({1: 10}, 4, 100, 1),
    ],
)
def test_threads_give_most_frames_among_those_quick_enough(
    run_ms: dict[int, float], workers: int, latency_ms: float, chosen: int
) -> None:
    assert choose_threads(run_ms, cores=4, workers=workers, latency_ms=latency_ms) == chosen


@pytest.mark.parametrize(
    ("per_frame_ms", "chosen"),
    [
        ({1: 1.0, 2: 0.7, 4: 0.5, 8: 0.45}, 8),
        ({1: 1.0, 2: 0.7, 4: 0.5, 8: 0.9}, 4),
        ({1: 10.0, 2: 9.0, 4: 8.5, 8: 8.1}, 1),  # a tenth or two is not worth waiting for each other
        ({1: 0.16, 2: 0.08}, 1),  # nor are some microseconds
        ({1: 1.0}, 1),
    ],
)
def test_batches_are_used_where_they_save_clearly(per_frame_ms: dict[int, float], chosen: int) -> None:
    assert choose_batch(per_frame_ms) == chosen


def test_the_head_is_left_open_with_the_threads_chosen_and_nothing_else_is() -> None:
    clock, opened = _Clock(), dict[int, _Session]()

    def open_with(threads: int) -> _Session:
        opened[threads] = _Session(clock, lambda _: 8 / threads**0.5)
        return opened[threads]

    session, threads, run_ms = open_tuned(open_with, workers=4, latency_ms=7, cores=4, clock=clock)
    assert threads == 2
    assert session is opened[2]
    assert {count: one.closed for count, one in opened.items()} == {1: True, 2: False, 4: True}
    assert run_ms == pytest.approx({1: 8, 2: 8 / 2**0.5, 4: 4})


def test_measuring_stops_when_time_is_up_or_more_threads_bring_nothing() -> None:
    clock, opened = _Clock(), list[int]()

    def open_with(ms: Callable[[int], float]) -> Callable[[int], _Session]:
        def opens(threads: int) -> _Session:
            opened.append(threads)
            return _Session(clock, lambda _: ms(threads))

        return opens

    _, _, run_ms = open_tuned(open_with(lambda _: 500), workers=4, latency_ms=1e9, cores=8, clock=clock)
    assert list(run_ms) == opened == [1]
    assert clock.now == pytest.approx(1.0)
    opened.clear()
    open_tuned(open_with(lambda threads: 1 + threads), workers=4, latency_ms=1e9, cores=8, clock=clock)
    assert opened == [1, 2]


def test_a_head_too_slow_with_one_thread_gets_the_whole_host_also_when_the_time_to_measure_is_up() -> None:
    clock, opened = _Clock(), list[int]()

    def open_with(threads: int) -> _Session:
        opened.append(threads)
        return _Session(clock, lambda _: 2000 / threads)

    _, threads, run_ms = open_tuned(open_with, workers=8, latency_ms=500, cores=8, clock=clock)
    assert (opened, threads) == ([1, 8], 8)
    assert run_ms == pytest.approx({1: 2000, 8: 250})


def test_a_head_whose_run_is_stopped_with_one_thread_is_opened_with_more() -> None:
    clock = _Clock()

    def stopped(array: Array) -> Array:
        clock.now += 5
        raise MeshError(Reason.DEADLINE_EXPIRED, "the run was stopped after 5 s")

    def open_with(threads: int) -> _Session:
        if threads == 1:
            return _Session(clock, lambda _: 0, answer=stopped)
        return _Session(clock, lambda _: 900)

    _, threads, _ = open_tuned(open_with, workers=4, latency_ms=250, cores=4, clock=clock)
    assert threads == 4


def test_a_head_of_open_sizes_or_beside_the_processor_gets_one_thread_unmeasured() -> None:
    clock = _Clock()
    for made in (
        _Session(clock, lambda _: 1, shape=(-1, -1)),
        _Session(clock, lambda _: 1, provider="CUDAExecutionProvider"),
    ):
        session, threads, run_ms = open_tuned({1: made}.__getitem__, workers=4, latency_ms=1, cores=8)
        assert (session, threads, run_ms, made.sizes) == (made, 1, {}, [])


def test_a_head_that_fails_while_it_is_measured_is_closed() -> None:
    opened: list[_Session] = []

    def fails(array: Array) -> Array:
        raise MeshError(Reason.MODEL_CORRUPT, "no")

    def open_with(threads: int) -> _Session:
        opened.append(_Session(_Clock(), lambda _: 1, answer=fails))
        return opened[-1]

    with pytest.raises(MeshError):
        open_tuned(open_with, workers=4, latency_ms=1, cores=2)
    assert [session.closed for session in opened] == [True]


def test_batches_of_a_head_that_computes_them_quicker_are_chosen() -> None:
    clock = _Clock()
    session = _Session(clock, lambda size: 2 + 0.5 * size)
    batching = measure_batches(session, 2.5, clock=clock)
    assert batching.most == 8
    assert batching.per_frame_ms == pytest.approx({1: 2.5, 2: 1.5, 4: 1.0, 8: 0.75})


@pytest.mark.parametrize("shape", [(1, 4), (-1, 4)])
def test_a_fixed_batch_and_a_head_that_was_not_run_are_left_alone(shape: tuple[int, ...]) -> None:
    session = _Session(_Clock(), lambda _: 1, shape=shape)
    assert measure_batches(session, None if shape == (-1, 4) else 1.0).most == 1
    assert session.sizes == []


def mixes(array: Array) -> Array:
    return np.asarray(array / np.abs(array).max(), np.float32)


def drops(array: Array) -> Array:
    return array[:1]


def fails_on_many(array: Array) -> Array:
    if len(array) > 1:
        raise MeshError(Reason.MODEL_CORRUPT, "takes one")
    return array


@pytest.mark.parametrize("answer", [mixes, drops, fails_on_many])
def test_a_head_that_answers_otherwise_in_a_batch_computes_singles(answer: Answer) -> None:
    clock = _Clock()
    batching = measure_batches(_Session(clock, lambda _: 1, answer=answer), 1.0, clock=clock)
    assert batching.most == 1
    assert batching.per_frame_ms == {1: 1.0}


def test_a_slow_heads_batches_are_not_measured_beyond_the_budget() -> None:
    clock = _Clock()
    session = _Session(clock, lambda size: 300.0 * size)
    assert measure_batches(session, 300.0, clock=clock).most == 1
    assert clock.now <= tune.BATCHES_BUDGET_S
