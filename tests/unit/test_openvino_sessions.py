"""What every backend of ``splitmesh.runtime`` does alike: one body of tests, run on each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import OrtSession, Session
from splitmesh.runtime.ov import OpenVinoSession
from splitmesh.tensor import TensorSpec
from tests.unit.onnx_nets import data, model, node, residual, value, weight

Open = Callable[..., Session]

BACKENDS: Mapping[str, Open] = {"onnxruntime": OrtSession, "openvino": OpenVinoSession}


@pytest.fixture(params=BACKENDS)
def opens(request: pytest.FixtureRequest) -> Open:
    return BACKENDS[request.param]


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, 3, 8, 8)).astype(np.float32)}


def slow(size: int = 512, steps: int = 400) -> bytes:
    nodes = [node("MatMul", f"t{i} w", f"t{i + 1}") for i in range(steps)]
    return data(model(nodes, [value("t0", ["N", size])], [value(f"t{steps}", ["N", size])], [weight("w", size, size)]))


def test_a_session_names_its_tensors_with_minus_one_for_the_batch(opens: Open) -> None:
    session = opens(data(residual()))
    assert session.inputs == (TensorSpec("x", "float32", (-1, 3, 8, 8)),)
    assert session.outputs == (TensorSpec("logits", "float32", (-1, 5)),)


def test_a_session_says_what_computes(opens: Open) -> None:
    assert opens(data(residual())).providers in (("CPUExecutionProvider",), ("openvino-cpu",))


def test_batches_of_any_size_are_answered_as_the_samples_are_alone(opens: Open) -> None:
    session = opens(data(residual()))
    for batch in (3, 1, 2, 1, 5):
        feeds = feed(batch)
        together = session.run(feeds)["logits"]
        assert together.shape == (batch, 5)
        alone = [session.run({"x": feeds["x"][row : row + 1]})["logits"][0] for row in range(batch)]
        np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5)


def test_backends_answer_alike() -> None:
    feeds = feed(4)
    answers = [opens(data(residual())).run(feeds)["logits"] for opens in BACKENDS.values()]
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_an_answer_stays_as_it_is_when_the_session_runs_again(opens: Open) -> None:
    session = opens(data(residual()))
    first = session.run(feed(1))["logits"]
    kept = first.copy()
    session.run({"x": np.zeros((1, 3, 8, 8), np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_a_feed_that_is_not_in_one_piece_of_memory_is_read_right(opens: Open) -> None:
    session = opens(data(residual()))
    whole = feed(1)["x"]
    scattered = np.ascontiguousarray(whole.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not scattered.flags.c_contiguous
    np.testing.assert_array_equal(session.run({"x": scattered})["logits"], session.run({"x": whole})["logits"])


def test_a_feed_that_may_only_be_read_is_taken(opens: Open) -> None:
    feeds = feed(1)
    feeds["x"].flags.writeable = False
    assert opens(data(residual())).run(feeds)["logits"].shape == (1, 5)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        ("float32", 1),
        ("uint8", 2),
        ("int8", 3),
        ("int32", 6),
        ("int64", 7),
        ("bool", 9),
        ("float16", 10),
        ("float64", 11),
    ],
)
def test_every_type_that_may_cross_a_wire_goes_in_and_comes_out(opens: Open, dtype: str, number: int) -> None:
    same = data(
        model([node("Concat", "x x", "y", axis=1)], [value("x", ["N", 2], number)], [value("y", ["N", 4], number)])
    )
    session = opens(same)
    given = np.array([[0, 1], [1, 1], [1, 0]], dtype)
    answer = session.run({"x": given})["y"]
    assert session.inputs[0].dtype == session.outputs[0].dtype == dtype
    assert answer.dtype == given.dtype
    np.testing.assert_array_equal(answer, np.concatenate([given, given], axis=1))


def test_several_inputs_and_outputs_keep_the_names_and_the_order_of_the_file(opens: Open) -> None:
    net = model(
        [node("Sub", "b a", "d"), node("Identity", "d", "again"), node("Add", "a b", "s")],
        [value("b", ["N", 2]), value("a", ["N", 2])],
        [value("s", ["N", 2]), value("d", ["N", 2]), value("again", ["N", 2])],
    )
    session = opens(data(net))
    assert [spec.name for spec in session.inputs] == ["b", "a"]
    assert [spec.name for spec in session.outputs] == ["s", "d", "again"]
    answers = session.run({"a": np.array([[1, 2]], np.float32), "b": np.array([[5, 9]], np.float32)})
    assert {name: array.tolist() for name, array in answers.items()} == {
        "s": [[6, 11]], "d": [[4, 7]], "again": [[4, 7]],
    }  # fmt: skip


def test_a_model_of_a_fixed_batch_says_so_and_runs(opens: Open) -> None:
    session = opens(data(residual(batch=1)))
    assert session.inputs[0].shape == (1, 3, 8, 8)
    assert session.run(feed(1))["logits"].shape == (1, 5)
    with pytest.raises(MeshError) as caught:
        session.run(feed(2))
    assert caught.value.reason is Reason.TENSOR_SHAPE_MISMATCH


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
def test_wrong_feeds_are_refused_before_the_model_runs(opens: Open, feeds: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(MeshError) as caught:
        opens(data(residual())).run(feeds)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "broken", [b"", b"no model", data(residual())[:200], b"\xff" * 64], ids=["empty", "text", "truncated", "ones"]
)
def test_bytes_that_are_no_model_are_refused(opens: Open, broken: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        opens(broken)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_model_with_an_unknown_operator_is_refused_by_its_name(opens: Open) -> None:
    with pytest.raises(MeshError) as caught:
        opens(data(model([node("Invented", "x", "y")], [value("x", [1])], [value("y", [1])])))
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert "Invented" in caught.value.message


def test_a_model_that_fails_on_a_feed_that_matches_says_so(opens: Open) -> None:
    reshape = model(
        [node("Shape", "x", "s"), node("Add", "s s", "t"), node("Reshape", "x t", "y")],
        [value("x", ["N", 3])],
        [value("y", [None, None])],
    )
    with pytest.raises(MeshError) as caught:
        opens(data(reshape)).run({"x": np.ones((2, 3), dtype=np.float32)})
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_tensor_of_strings_is_not_supported(opens: Open) -> None:
    strings = model([node("Identity", "x", "y")], [value("x", [1], 8)], [value("y", [1], 8)])
    with pytest.raises(MeshError) as caught:
        opens(data(strings))
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_a_closed_session_does_not_run_and_closes_twice(opens: Open) -> None:
    session = opens(data(residual()))
    session.run(feed(1))
    session.close()
    session.close()
    with pytest.raises(MeshError) as caught:
        session.run(feed(1))
    assert caught.value.reason is Reason.NOT_READY


def test_a_run_beyond_its_time_is_stopped_and_the_next_one_is_not(opens: Open) -> None:
    session = opens(slow(steps=100), max_run_s=1.0)
    with pytest.raises(MeshError) as caught:
        session.run({"t0": np.zeros((16384, 512), dtype=np.float32)})
    assert caught.value.reason is Reason.DEADLINE_EXPIRED
    assert session.run({"t0": np.zeros((1, 512), dtype=np.float32)})["t100"].shape == (1, 512)


def test_a_run_within_its_time_is_left_alone(opens: Open) -> None:
    session = opens(data(residual()), max_run_s=30)
    assert session.run(feed())["logits"].shape == (2, 5)
    assert session.run(feed())["logits"].shape == (2, 5)


def test_threads_that_run_a_session_at_once_each_get_their_own_answer(opens: Open) -> None:
    session = opens(data(residual()))
    feeds = [feed(1 + number % 3) for number in range(12)]
    right = [session.run(one)["logits"] for one in feeds]
    wrong: list[int] = []

    def runs(number: int) -> None:
        for _ in range(30):
            found = session.run(feeds[number])["logits"]
            if found.shape != right[number].shape or not np.allclose(found, right[number], rtol=1e-4, atol=1e-5):
                wrong.append(number)

    lanes = [threading.Thread(target=runs, args=(number,)) for number in range(len(feeds))]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert wrong == []


def test_a_session_that_was_stopped_in_one_thread_goes_on_in_the_others(opens: Open) -> None:
    session = opens(slow(steps=100), max_run_s=1.0)
    outcomes: list[object] = []

    def hasty() -> None:
        try:
            outcomes.append(session.run({"t0": np.zeros((16384, 512), np.float32)})["t100"].shape)
        except MeshError as error:
            outcomes.append(error.reason)

    lane = threading.Thread(target=hasty)
    lane.start()
    until = time.monotonic() + 30
    while lane.is_alive():
        assert time.monotonic() < until
        session.run({"t0": np.zeros((1, 512), np.float32)})
    assert outcomes == [Reason.DEADLINE_EXPIRED]
    assert session.run({"t0": np.zeros((1, 512), np.float32)})["t100"].shape == (1, 512)
