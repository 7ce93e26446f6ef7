"""Timing of pieces and the live windows of production runs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from onnx import TensorProto, helper

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.inputs import MAX_FEED_BYTES
from splitmesh.runtime.timing import LIVE_WINDOW, MIN_RUNS, LiveTimings, host_text, time_piece


def _model(batch: str | int = "n", width: str | int = 4, dtype: int = TensorProto.FLOAT) -> bytes:
    values = [helper.make_tensor_value_info(name, dtype, [batch, width]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def _ticking(step_s: float = 0.001) -> Callable[[], float]:
    counter = itertools.count()
    return lambda: next(counter) * step_s


def test_a_piece_is_timed_as_often_as_asked() -> None:
    timing = time_piece(_model(), repeats=7, clock=_ticking())
    assert (timing.runs, timing.threads, timing.backend) == (7, 1, "CPUExecutionProvider")
    assert timing.median_ms == pytest.approx(1.0)
    assert timing.p90_ms == pytest.approx(1.0)


def test_times_are_the_median_and_the_ninth_decile() -> None:
    steps = iter([0.0, *(x for run in range(1, 12) for x in (10.0 * run, 10.0 * run + run * 1e-3))])
    timing = time_piece(_model(), repeats=11, warmup=0, budget_s=1e6, clock=lambda: next(steps))
    assert timing.median_ms == pytest.approx(6.0)
    assert timing.p90_ms == pytest.approx(10.0)
    assert timing.p99_ms >= timing.p90_ms


def test_a_spent_budget_stops_warm_up_and_runs_early() -> None:
    assert time_piece(_model(), repeats=500, warmup=500, budget_s=0.0, clock=_ticking()).runs == MIN_RUNS


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL])
def test_inputs_of_every_type_are_made_up(dtype: int) -> None:
    assert time_piece(_model(dtype=dtype), batch=3, repeats=1).runs == 1


@pytest.mark.parametrize(
    ("model", "options", "field"),
    [
        (_model(), {"batch": 0}, "batch"),
        (_model(), {"threads": 0}, "threads"),
        (_model(), {"repeats": 0}, "repeats"),
        (_model(2), {"batch": 2}, "batch"),
        (_model(), {"batch": MAX_FEED_BYTES // 16 + 1}, "batch"),
        (_model(), {"providers": ["NoSuchProvider"]}, "providers"),
    ],
)
def test_what_cannot_be_timed_names_the_field(model: bytes, options: dict[str, int], field: str) -> None:
    with pytest.raises(MeshError) as caught:
        time_piece(model, **options)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.fields[0][0] == field


def test_an_input_of_unknown_size_and_bytes_that_are_no_model_are_refused() -> None:
    for model, reason in ((_model(width="w"), Reason.MODEL_SHAPE_UNKNOWN), (b"no model", Reason.MODEL_CORRUPT)):
        with pytest.raises(MeshError) as caught:
            time_piece(model)
        assert caught.value.reason is reason


def test_a_fixed_batch_is_run_as_it_is() -> None:
    assert time_piece(_model(5), repeats=2).runs == 2


def test_the_host_is_named_with_its_runtime() -> None:
    assert "onnxruntime" in host_text()
    assert "cores" in host_text()


def test_live_timings_are_kept_by_batch_size_and_forget_old_runs() -> None:
    live = LiveTimings()
    assert live.summary() == []
    for _ in range(LIVE_WINDOW):
        live.record(4, 100.0)
    for ms in range(1, LIVE_WINDOW + 1):
        live.record(4, float(ms))
    live.record(1, 7.0)
    one, four = live.summary()
    assert (one.batch, one.runs, one.median_ms, one.p90_ms, one.p99_ms) == (1, 1, 7.0, 7.0, 7.0)
    assert (four.batch, four.runs) == (4, 2 * LIVE_WINDOW)
    assert four.median_ms == pytest.approx((LIVE_WINDOW + 1) / 2)


def test_live_timings_may_be_recorded_by_many_threads() -> None:
    live = LiveTimings()

    def record() -> None:
        for turn in range(500):
            live.record(turn % 7, 1.0)
            live.summary()

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.runs for one in live.summary()) == 2000
