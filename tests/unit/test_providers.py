"""Which provider computes: the choice, what is really usable, the comparison with the CPU. On a build without a GPU: the
provider this build lists and that computes nothing stands for one whose device is missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.kernel.profiling import ProfilingSettings
from splitmesh.runtime import Compute, OrtSession, open_session, providers
from splitmesh.runtime.answers import distance
from splitmesh.runtime.ort import CPU
from splitmesh.runtime.precision import has_half_weights
from splitmesh.runtime.providers import CUDA, PROBE, TENSORRT, choose, open_on, preferred, usable
from splitmesh.tensor.spec import Array, TensorSpec
from tests.unit.onnx_nets import data, residual

HOLLOW = "AzureExecutionProvider"
"""Listed by onnxruntime's own builds; takes no operator of any usual model."""

hollow_here = pytest.mark.skipif(
    HOLLOW not in onnxruntime.get_available_providers(), reason=f"this onnxruntime does not list {HOLLOW}"
)


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    usable.cache_clear()
    yield
    usable.cache_clear()


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that lists the hollow provider under CUDA's place."""
    monkeypatch.setattr(providers, "CUDA", HOLLOW)
    monkeypatch.setattr(providers, "BY_WISH", {**providers.BY_WISH, "cuda": HOLLOW})


@pytest.mark.parametrize(
    ("wish", "available", "expected"),
    [
        ("auto", [TENSORRT, CUDA, CPU], (TENSORRT, CUDA, CPU)),
        ("auto", [HOLLOW, CPU, CUDA], (CUDA, CPU)),
        ("auto", [HOLLOW, CPU], (CPU,)),
        ("cpu", [TENSORRT, CUDA, CPU], (CPU,)),
        ("cuda", [TENSORRT, CUDA, CPU], (CUDA,)),
        ("tensorrt", [TENSORRT, CUDA, CPU], (TENSORRT,)),
    ],
)
def test_the_best_that_the_build_has_comes_first(wish: Any, available: list[str], expected: tuple[str, ...]) -> None:
    assert choose(wish, available) == expected


@pytest.mark.parametrize(
    ("wish", "said"), [("cuda", "onnxruntime-gpu"), ("tensorrt", "onnxruntime-gpu"), ("tpu", "auto")]
)
def test_a_provider_asked_for_by_name_that_the_build_lacks_is_refused(wish: Any, said: str) -> None:
    with pytest.raises(MeshError) as caught:
        choose(wish, [HOLLOW, CPU])
    assert caught.value.reason is Reason.FIELD_INVALID
    assert said in caught.value.message


def test_on_a_build_without_a_gpu_everything_is_computed_by_the_processor() -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this build has CUDA")
    assert preferred("auto") == CPU
    session = open_session(data(residual()), compute=Compute())
    assert session.providers == (CPU,)


def test_the_probe_is_what_it_says() -> None:
    onnx.checker.check_model(onnx.load_from_string(PROBE))
    answer = OrtSession(PROBE).run({"x": np.array([[1.0, 1.0]], np.float32)})["y"]
    assert answer.tolist() == [[4.0, 6.0]]


def test_the_processor_passes_the_probe() -> None:
    assert usable(CPU)


@hollow_here
def test_a_provider_that_computes_nothing_is_not_in_use(caplog: pytest.LogCaptureFixture) -> None:
    assert OrtSession(data(residual()), providers=[HOLLOW, CPU]).providers == (CPU,)
    with caplog.at_level(logging.WARNING):
        assert not usable(HOLLOW)
        assert not usable(HOLLOW)
    assert len(caplog.records) == 1, "said once"
    assert "computes nothing" in caplog.text


@hollow_here
@pytest.mark.usefixtures("listed")
def test_where_the_gpu_is_missing_auto_goes_on_and_a_name_is_refused() -> None:
    assert preferred("auto") == CPU
    assert open_on(data(residual()), Compute("auto")).providers == (CPU,)
    with pytest.raises(MeshError) as caught:
        open_on(data(residual()), Compute("cuda"))
    assert caught.value.reason is Reason.EXTRA_MISSING


@hollow_here
@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_a_provider_that_works_but_takes_no_part_of_the_model_is_not_used(wish: Any) -> None:
    usable.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "usable", lambda name: True)
        if wish == "auto":
            assert open_on(data(residual()), Compute(wish)).providers == (CPU,)
            return
        with pytest.raises(MeshError) as caught:
            open_on(data(residual()), Compute(wish))
    assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED
    assert "takes no part" in caught.value.message


class Skewed(OrtSession):
    """A provider that computes everything, a little off: what another kernel may do."""

    off = 0.0

    def __init__(self, model: bytes, *, providers: Any = None, **options: Any) -> None:
        super().__init__(model, **options)
        self._skewed = providers is not None
        if providers is not None:
            self.providers = (providers[0][0],)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = super().run(feeds)
        if not self._skewed:
            return outputs
        return {name: array + np.float32(self.off) * np.abs(array).max() for name, array in outputs.items()}


@pytest.mark.parametrize(("off", "used"), [(0.001, True), (0.1, False), (float("nan"), False)])
@pytest.mark.usefixtures("listed")
def test_a_provider_is_used_only_when_it_answers_as_the_processor_does(
    off: float, used: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Skewed, "off", off)
    monkeypatch.setattr(providers, "OrtSession", Skewed)
    monkeypatch.setattr(providers, "usable", lambda name: True)
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: [HOLLOW, CPU])
    assert open_on(data(residual()), Compute("auto", max_batch=4)).providers[0] == (HOLLOW if used else CPU)
    if not used:
        assert "answers otherwise than the CPU" in caplog.text
        with pytest.raises(MeshError) as caught:
            open_on(data(residual()), Compute("cuda"))
        assert caught.value.reason is Reason.MODEL_OPERATOR_UNSUPPORTED


def test_answers_are_compared_by_magnitude_and_decisions_by_shape_alone() -> None:
    right = np.array([100.0, 1.0], np.float32)
    assert distance(right, right + np.float32(1)) == pytest.approx(0.01)
    assert distance(right, right[:1]) == float("inf")
    assert distance(right, np.array([100.0, np.inf], np.float32)) == float("inf")
    assert distance(np.array([200, 3], np.uint8), np.array([199, 3], np.uint8)) == pytest.approx(0.005)
    assert distance(np.array([3]), np.array([7])) == 0.0
    assert distance(np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32)) == 0.0


def test_options_limit_memory_and_give_tensorrt_one_engine_for_all_batches(tmp_path: Path) -> None:
    specs = [TensorSpec("x", "float32", (-1, 3, 8, 8))]
    cuda = providers._options(CUDA, Compute(gpu_bytes=1 << 30), None, specs)
    assert cuda["gpu_mem_limit"] == str(1 << 30)
    assert cuda["use_tf32"] == "0"
    tensorrt = providers._options(TENSORRT, Compute(max_batch=16), tmp_path, specs, half=True)
    assert tensorrt["trt_profile_min_shapes"] == "x:1x3x8x8"
    assert tensorrt["trt_profile_max_shapes"] == "x:16x3x8x8"
    assert tensorrt["trt_engine_cache_path"] == tensorrt["trt_timing_cache_path"] == str(tmp_path)
    assert tensorrt["trt_fp16_enable"] == "1"
    open_sizes = [TensorSpec("x", "float32", (-1, 3, -1, -1))]
    plain = providers._options(TENSORRT, Compute(), None, open_sizes)
    assert "trt_profile_min_shapes" not in plain
    assert plain["trt_fp16_enable"] == "0"
    assert "trt_engine_cache_enable" not in plain
    assert providers._options(CPU, Compute(), None) == {}


def test_half_precision_is_read_from_the_weights() -> None:
    graph = onnx.load_from_string(PROBE)
    assert not has_half_weights(PROBE)
    assert not has_half_weights(data(residual()))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 3), np.float16), "half"))
    assert has_half_weights(graph.SerializeToString())
    for broken in (b"", b"\xff" * 40, PROBE[:60], b"\x3a\x7f\x01"):
        assert not has_half_weights(broken)


def test_the_settings_of_a_node_say_where_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITMESH_PROVIDERS", "cpu")
    monkeypatch.setenv("SPLITMESH_GPU_BYTES", "1000")
    compute = ProfilingSettings().compute(tmp_path, 8)
    assert compute == Compute("cpu", tmp_path / "engines", max_batch=8, gpu_bytes=1000)
    monkeypatch.setenv("SPLITMESH_PROVIDERS", "tpu")
    with pytest.raises(ValueError, match="auto"):
        ProfilingSettings()


def test_a_provider_whose_libraries_are_missing_is_refused_with_what_the_runtime_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As onnxruntime-gpu does where TensorRT is not installed."""

    def opened(*_: Any, **__: Any) -> None:
        raise RuntimeError("/a/place.cc:729 void f(const Options&) Please install TensorRT libraries")

    monkeypatch.setattr("splitmesh.runtime.ort.ort.InferenceSession", opened)
    with pytest.raises(MeshError) as caught:
        OrtSession(PROBE)
    assert caught.value.reason is Reason.EXTRA_MISSING
    assert caught.value.message.endswith("cannot be opened: Please install TensorRT libraries")
    assert not usable(CPU)
    assert "Please install TensorRT" in caplog.text
