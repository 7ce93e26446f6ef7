"""Where TensorRT's engines are kept: never one of another model, device or library, and not more than so many."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import engines, providers
from splitmesh.runtime.engines import UNKNOWN, engine_folder, engine_key, forget_engines
from splitmesh.runtime.providers import PROBE, TENSORRT


def test_the_folder_changes_with_everything_that_an_engine_depends_on() -> None:
    base = {"device": "NVIDIA L4, 8.9, driver 12040", "tensorrt": "101300", "options": "False 16"}
    keys = {engine_key(b"model", **base), engine_key(b"other", **base)}
    for name, other in (
        ("device", "NVIDIA L4, 8.9, driver 12050"),
        ("tensorrt", "101400"),
        ("options", "True 16"),
    ):
        keys.add(engine_key(b"model", **{**base, name: other}))
    assert len(keys) == 5
    assert engine_key(b"model", **base) in keys
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


def test_another_runtime_version_makes_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = engine_key(b"m", device="d", tensorrt="t", options="")
    monkeypatch.setattr(engines.onnxruntime, "__version__", "9.9.9")
    assert engine_key(b"m", device="d", tensorrt="t", options="") != before


def test_the_folders_unused_for_longest_are_removed_and_the_one_asked_for_never(tmp_path: Path) -> None:
    made = [engine_folder(tmp_path, bytes([number]), options="", most=3) for number in range(3)]
    for age, folder in enumerate(reversed(made)):
        (folder / "some.engine").write_bytes(b"x")
        os.utime(folder, (1000 - age, 1000 - age))
    assert engine_folder(tmp_path, bytes([0]), options="", most=3) == made[0], "the oldest, used again"
    fresh = engine_folder(tmp_path, b"new", options="", most=3)
    assert {path.name for path in tmp_path.iterdir()} == {fresh.name, made[0].name, made[2].name}
    assert (made[0] / "some.engine").exists()


def test_a_folder_that_another_process_removes_meanwhile_is_no_error(tmp_path: Path) -> None:
    assert engines._last_used(tmp_path / "gone") == 0.0


def test_damaged_engines_are_made_anew_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after a power cut in the middle of writing one."""
    (tmp_path / "half.engine").write_bytes(b"half")
    tried = []

    def opened(model: bytes, **_: Any) -> str:
        tried.append(sorted(path.name for path in tmp_path.iterdir()))
        if len(tried) == 1:
            raise MeshError(Reason.MODEL_CORRUPT, "cannot deserialise the engine")
        return "session"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(providers, "OrtSession", opened)
        assert providers._open_or_mend(PROBE, TENSORRT, {}, tmp_path, 1, None) == "session"  # type: ignore[comparison-overlap]
    assert tried == [["half.engine"], []]
    assert "made anew" in caplog.text


@pytest.mark.parametrize("folder", [True, False])
def test_a_model_that_fails_without_engines_is_not_tried_again(
    tmp_path: Path, folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def opened(model: bytes, **_: Any) -> str:
        tried.append(model)
        raise MeshError(Reason.MODEL_CORRUPT, "no model")

    monkeypatch.setattr(providers, "OrtSession", opened)
    with pytest.raises(MeshError):
        providers._open_or_mend(PROBE, TENSORRT, {}, tmp_path if folder else None, 1, None)
    assert len(tried) == 1


def test_forgetting_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.engine").write_bytes(b"")
    forget_engines(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Driver:
    """The calls of libcuda, answering as one with a device does."""

    def __init__(self, fails_at: str = "") -> None:
        self._fails_at = fails_at

    def __getattr__(self, name: str) -> Any:
        return lambda *given: 100 if name == self._fails_at else self._answer(name, *given)

    def _answer(self, name: str, *given: Any) -> int:
        if name == "cuDeviceGetName":
            given[0].value = b"NVIDIA L4"
        if name == "cuDeviceGetAttribute":
            given[0]._obj.value = {75: 8, 76: 9}[given[1]]
        if name == "cuDriverGetVersion":
            given[0]._obj.value = 12040
        return 0


def test_the_device_is_named_with_its_compute_capability_and_driver() -> None:
    assert engines._device_of(lambda name: Driver()) == "NVIDIA L4, 8.9, driver 12040"  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"])
def test_a_driver_that_fails_names_no_device(call: str) -> None:
    assert engines._device_of(lambda name: Driver(call)) == UNKNOWN  # type: ignore[arg-type, return-value]


def test_without_a_driver_or_tensorrt_the_device_is_unknown() -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    assert engines._device_of(missing) == UNKNOWN
    assert engines._tensorrt_of(missing) == UNKNOWN


def test_the_first_tensorrt_library_found_says_its_version() -> None:
    def load(name: str) -> Any:
        if name.endswith(".10"):
            raise OSError(name)
        return SimpleNamespace(getInferLibVersion=lambda: np.int32(110200))

    assert engines._tensorrt_of(load) == "110200"
