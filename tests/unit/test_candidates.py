"""In which ways a segment could be computed, and which of those that were measured is best."""

from __future__ import annotations

import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime.candidates import NEARLY, Candidate, Measured, Wish, candidates, choose
from splitmesh.runtime.host_backends import BackendFacts

ORT = BackendFacts("onnxruntime-cpu", "1", ("fp32", "int8"), {"bf16": "converts"})
OPENVINO = BackendFacts("openvino-cpu", "1", ("fp32", "bf16"), {"fp16": "not counted"})
CUDA = BackendFacts("onnxruntime-cuda", "1", ("fp32", "fp16"))
BROKEN = BackendFacts("openvino-cpu", "1", unusable="a library is missing")
TENSORRT = BackendFacts("tensorrt", "10", ("fp32", "fp16"))


def wish(**changes: object) -> Wish:
    return Wish(**{"cores": 4, "workers": 4, "latency_ms": 100.0, **changes})  # type: ignore[arg-type]


def told(found: list[Candidate]) -> list[tuple[str, str, int]]:
    return [(one.backend, one.precision, one.threads) for one in found]


def test_every_way_is_tried_with_one_thread_with_all_cores_and_then_between() -> None:
    found, refused = candidates(wish(), [ORT, OPENVINO])
    ways = [("onnxruntime-cpu", "fp32"), ("openvino-cpu", "fp32"), ("openvino-cpu", "bf16")]
    assert told(found) == [(*way, threads) for threads in (1, 4, 2) for way in ways]
    assert [(one.candidate.backend, one.candidate.precision, one.refused) for one in refused] == [
        ("openvino-cpu", "fp16", "not counted")
    ]


def test_a_number_of_threads_that_is_set_is_the_only_one() -> None:
    assert told(candidates(wish(threads=3), [ORT])[0]) == [("onnxruntime-cpu", "fp32", 3)]


def test_a_device_of_its_own_is_tried_once_and_first() -> None:
    found, _ = candidates(wish(cores=2), [ORT, CUDA])
    assert told(found) == [
        ("onnxruntime-cuda", "fp32", 1),
        ("onnxruntime-cpu", "fp32", 1),
        ("onnxruntime-cpu", "fp32", 2),
    ]


def test_a_back_end_that_cannot_be_used_is_refused_with_its_reason() -> None:
    found, refused = candidates(wish(), [ORT, BROKEN])
    assert {one.backend for one in found} == {"onnxruntime-cpu"}
    assert [(one.candidate.backend, one.refused) for one in refused] == [("openvino-cpu", "a library is missing")]


def test_what_segments_cannot_be_opened_with_is_no_candidate() -> None:
    assert {one.backend for one in candidates(wish(), [ORT, TENSORRT])[0]} == {"onnxruntime-cpu"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"backends": ("onnxruntime",)}, {"onnxruntime-cpu", "onnxruntime-cuda"}),
        ({"backends": ("openvino-cpu",)}, {"openvino-cpu"}),
        ({"backends": ("openvino", "onnxruntime-cpu")}, {"openvino-cpu", "onnxruntime-cpu"}),
        ({"provider": "cpu"}, {"onnxruntime-cpu", "openvino-cpu"}),
        ({"provider": "cuda"}, {"onnxruntime-cuda"}),
        ({"provider": "cuda", "backends": ("openvino", "onnxruntime")}, {"openvino-cpu", "onnxruntime-cuda"}),
    ],
)
def test_only_what_the_operator_allows_is_tried(changes: dict[str, object], expected: set[str]) -> None:
    assert {one.backend for one in candidates(wish(**changes), [ORT, CUDA, OPENVINO])[0]} == expected


def test_precisions_that_the_operator_does_not_want_are_not_tried() -> None:
    found, refused = candidates(wish(precisions=("fp32",)), [ORT, OPENVINO])
    assert {one.precision for one in found} == {"fp32"}
    assert refused == []


@pytest.mark.parametrize(
    ("backends", "facts", "reason", "said"),
    [
        (("tpu",), [ORT], Reason.FIELD_INVALID, "tpu"),
        (("openvino",), [ORT], Reason.EXTRA_MISSING, "splitmesh[openvino]"),
        (("openvino",), [ORT, BROKEN], Reason.EXTRA_MISSING, "a library is missing"),
        (("auto",), [], Reason.EXTRA_MISSING, "none is here"),
    ],
)
def test_a_wish_that_nothing_here_fulfils_is_refused(
    backends: tuple[str, ...], facts: list[BackendFacts], reason: Reason, said: str
) -> None:
    with pytest.raises(MeshError) as caught:
        candidates(wish(backends=backends), facts)
    assert caught.value.reason is reason
    assert said in caught.value.message


def test_as_many_frames_are_side_by_side_as_workers_and_cores_allow() -> None:
    one, two = Candidate("openvino-cpu", "fp32", 1), Candidate("openvino-cpu", "fp32", 2)
    assert wish().lanes(one) == 4
    assert wish().lanes(two) == 2
    assert wish(workers=3).lanes(one) == 3
    assert wish(cores=1).lanes(two) == 1
    assert wish().lanes(Candidate("onnxruntime-cuda", "fp32", 1)) == 1


def measured(
    name: str, rate: float, p50_ms: float, *, worst_ms: float = 0.0, precision: str = "fp32", refused: str = ""
) -> Measured:
    return Measured(Candidate(name, precision, 1), p50_ms, worst_ms or p50_ms, rate, refused=refused)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([measured("a", 100, 20), measured("b", 150, 30)], "b"),  # most frames
        ([measured("a", 100, 20), measured("b", 150, 30, worst_ms=101)], "a"),  # its worst is too slow
        ([measured("a", 100, 20), measured("b", 100 / NEARLY - 1e-6, 30)], "a"),  # nearly as many, and quicker
        ([measured("a", 100, 20), measured("b", 100, 10, precision="bf16")], "a"),  # digits for nothing are not given away
        ([measured("a", 100, 20), measured("b", 190, 10, precision="bf16")], "b"),
        ([measured("a", 1, 300), measured("b", 9, 400), measured("c", 2, 200)], "c"),  # none is quick enough
        ([measured("a", 100, 20), measured("b", 900, 1, refused="answers otherwise")], "a"),
    ],
)  # fmt: skip
def test_most_frames_among_those_quick_enough_are_best(found: list[Measured], chosen: str) -> None:
    assert choose(found, latency_ms=100.0).candidate.backend == chosen
