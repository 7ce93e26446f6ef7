"""The onnxruntime backend: what it checks, what it reports, what it gives back."""

from __future__ import annotations

import ast
import inspect
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import splitmesh.runtime.ort as ort_module
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import OrtSession, Session, open_session
from splitmesh.runtime.ort import ORT_DTYPES
from splitmesh.tensor import DTYPES, TensorSpec
from tests.unit.onnx_nets import data, model, node, residual, value, weight


@pytest.fixture
def session() -> Session:
    return open_session(data(residual()))


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.ones((batch, 3, 8, 8), dtype=np.float32)}


def test_a_session_names_its_tensors_with_minus_one_for_the_batch(session: Session) -> None:
    assert session.inputs == (TensorSpec("x", "float32", (-1, 3, 8, 8)),)
    assert session.outputs == (TensorSpec("logits", "float32", (-1, 5)),)


def test_a_run_returns_every_output_by_name(session: Session) -> None:
    result = session.run(feed(3))
    assert result.keys() == {"logits"}
    assert result["logits"].shape == (3, 5)


@pytest.mark.parametrize(
    ("feeds", "reason"),
    [
        ({}, Reason.TENSOR_SHAPE_MISMATCH),
        ({**feed(), "other": np.zeros(1)}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"x": np.ones((2, 3, 8, 9), dtype=np.float32)}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"x": np.ones((3, 8, 8), dtype=np.float32)}, Reason.TENSOR_SHAPE_MISMATCH),
        ({"x": np.ones((2, 3, 8, 8), dtype=np.float64)}, Reason.TENSOR_DTYPE_MISMATCH),
    ],
    ids=["missing", "unknown name", "wrong width", "wrong rank", "wrong dtype"],
)
def test_wrong_feeds_are_refused_before_the_model_runs(
    session: Session, feeds: dict[str, np.ndarray], reason: Reason
) -> None:
    with pytest.raises(MeshError) as caught:
        session.run(feeds)
    assert caught.value.reason is reason


@pytest.mark.parametrize("broken", [b"", b"no model", data(residual())[:200], b"\xff" * 64])
def test_bytes_that_are_no_model_are_refused(broken: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        open_session(broken)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_model_with_an_unknown_operator_is_refused() -> None:
    with pytest.raises(MeshError) as caught:
        open_session(data(model([node("Invented", "x", "y")], [value("x", [1])], [value("y", [1])])))
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert "Invented" in caught.value.message


def test_a_model_that_fails_on_a_feed_that_matches_says_so() -> None:
    reshape = model(
        [node("Shape", "x", "s"), node("Add", "s s", "t"), node("Reshape", "x t", "y")],
        [value("x", ["N", 3])],
        [value("y", [None, None])],
    )
    with pytest.raises(MeshError) as caught:
        open_session(data(reshape)).run({"x": np.ones((2, 3), dtype=np.float32)})
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_provider_this_build_lacks_is_refused_by_name() -> None:
    with pytest.raises(MeshError) as caught:
        open_session(data(residual()), providers=["NoSuchProvider"])
    assert caught.value.reason is Reason.FIELD_INVALID
    assert "NoSuchProvider" in caught.value.message


def test_the_providers_in_use_can_be_read() -> None:
    assert OrtSession(data(residual())).providers == ("CPUExecutionProvider",)


def test_a_tensor_of_strings_is_not_supported() -> None:
    strings = model([node("Identity", "x", "y")], [value("x", [1], 8)], [value("y", [1], 8)])
    with pytest.raises(MeshError) as caught:
        open_session(data(strings))
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_a_closed_session_does_not_run_and_closes_twice(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(MeshError) as caught:
        session.run(feed())
    assert caught.value.reason is Reason.NOT_READY


def test_a_run_beyond_its_time_is_stopped() -> None:
    size = 512
    steps = 400
    nodes = [node("MatMul", f"t{i} w", f"t{i + 1}") for i in range(steps)]
    slow = model(nodes, [value("t0", ["N", size])], [value(f"t{steps}", ["N", size])], [weight("w", size, size)])
    session = OrtSession(data(slow), max_run_s=0.02)
    started = time.monotonic()
    with pytest.raises(MeshError) as caught:
        session.run({"t0": np.zeros((256, size), dtype=np.float32)})
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert time.monotonic() - started < 2


def test_a_run_within_its_time_is_left_alone() -> None:
    session = OrtSession(data(residual()), max_run_s=30)
    assert session.run(feed())["logits"].shape == (2, 5)
    assert session.run(feed())["logits"].shape == (2, 5)


def test_the_type_table_names_every_dtype_that_may_cross_a_wire() -> None:
    assert set(ORT_DTYPES.values()) == set(DTYPES)


def test_the_backend_does_not_need_the_onnx_package() -> None:
    tree = ast.parse(inspect.getsource(ort_module))
    imported = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [name for name in imported if name.split(".")[0] in ("onnx", "torch", "grpc")]


def test_open_session_passes_the_longest_run_on() -> None:
    session = open_session(data(residual()), max_run_s=7)
    assert isinstance(session, OrtSession)
    assert session._max_run_s == 7


def test_one_watchdog_stops_each_of_many_runs_at_its_own_time() -> None:
    watchdog = ort_module._Watchdog()
    patient, hasty, free = (ort_module.ort.RunOptions() for _ in range(3))
    before = threading.active_count()
    with watchdog.watch(patient, 60), watchdog.watch(hasty, 0.01), watchdog.watch(free, None):
        assert threading.active_count() == before + 1
        _wait_until(lambda: hasty.terminate)
        assert not patient.terminate
        assert not free.terminate
        with watchdog.watch(late := ort_module.ort.RunOptions(), 0.01):
            _wait_until(lambda: late.terminate)
    assert not patient.terminate


def test_a_run_that_ended_in_time_is_forgotten() -> None:
    watchdog = ort_module._Watchdog()
    ended, other = ort_module.ort.RunOptions(), ort_module.ort.RunOptions()
    with watchdog.watch(ended, 0.02):
        pass
    with watchdog.watch(other, 0.05):
        _wait_until(lambda: other.terminate)
    assert not ended.terminate
    assert not watchdog._running


def _wait_until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)
