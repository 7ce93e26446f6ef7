"""Calibration samples packed and unpacked."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from splitmesh.errors import MeshError, Reason
from splitmesh.model import calibration as module
from splitmesh.model.calibration import pack_calibration, unpack_calibration
from splitmesh.model.manifest import Manifest, SegmentInfo, TensorInfo
from splitmesh.model.preprocess import Preprocess
from splitmesh.tensor.spec import Array

GREY = Preprocess(width=8, height=6, mode="L", mean=(0.5,), std=(0.25,))


def manifest(preprocess: Preprocess | None = GREY, *inputs: TensorInfo) -> Manifest:
    given = inputs or (TensorInfo(name="x", dtype="float32", shape=(-1, 1, 6, 8)),)
    scores = TensorInfo(name="y", dtype="float32", shape=(-1, 2))
    return Manifest(
        task="raw", preprocess=preprocess, whole=SegmentInfo(artifact="model.onnx", inputs=given, outputs=(scores,))
    )


def pixels(n: int = 10, channels: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (n, 6, 8, channels), dtype=np.uint8)


def test_pictures_become_the_inputs_that_preprocessing_makes_of_them() -> None:
    given = pixels()
    found = unpack_calibration(pack_calibration(given), manifest())
    assert found.samples == 10
    assert found.pictures is not None
    assert np.array_equal(found.pictures, given)
    rows = np.array([7, 2], dtype=np.int64)
    feed = found.feeds(rows)
    assert list(feed) == ["x"]
    assert np.array_equal(feed["x"], GREY.normalise(given[rows]))


def test_batches_cover_every_sample_once_and_in_order() -> None:
    given = pixels()
    found = unpack_calibration(pack_calibration(given), manifest())
    batches = list(found.batches(4))
    assert [len(batch["x"]) for batch in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate([batch["x"] for batch in batches]), GREY.normalise(given))
    assert sum(len(batch["x"]) for batch in found.batches(4, limit=5)) == 5


def test_a_model_with_a_fixed_batch_gets_only_full_batches_of_it() -> None:
    fixed = TensorInfo(name="x", dtype="float32", shape=(3, 1, 6, 8))
    found = unpack_calibration(pack_calibration(pixels()), manifest(GREY, fixed))
    assert [len(batch["x"]) for batch in found.batches(8)] == [3, 3, 3]


def test_a_model_that_takes_tensors_gets_them_by_name() -> None:
    infos = (
        TensorInfo(name="a", dtype="float32", shape=(-1, 4)),
        TensorInfo(name="b", dtype="int64", shape=(-1,)),
    )
    given: dict[str, Array] = {"b": np.arange(5), "a": np.ones((5, 4), dtype=np.float32)}
    found = unpack_calibration(pack_calibration(given), manifest(None, *infos))
    feed = found.feeds(slice(1, 3))
    assert list(feed) == ["a", "b"]
    assert feed["b"].tolist() == [1, 2]
    assert found.pictures is None


@pytest.mark.parametrize(
    ("samples", "what"),
    [
        (np.zeros((2, 6, 8), dtype=np.uint8), "expected uint8"),
        (np.zeros((2, 6, 8, 1), dtype=np.float32), "expected uint8"),
        (np.zeros((2, 6, 8, 4), dtype=np.uint8), "expected uint8"),
        (np.zeros((0, 6, 8, 1), dtype=np.uint8), "samples"),
        ({}, "samples"),
        ({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, "samples"),
        ({"a": np.zeros(2, dtype=np.complex64)}, "complex64"),
        ({"a": np.float32(1.0).reshape(())}, "samples"),
    ],
)
def test_samples_that_make_no_calibration_are_not_packed(samples: object, what: str) -> None:
    with pytest.raises(MeshError, match=what) as caught:
        pack_calibration(samples)  # type: ignore[arg-type]
    assert caught.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.PAYLOAD_CORRUPT),
        (b"\x80\x04\x95 a pickle", Reason.PAYLOAD_CORRUPT),
        (b"\xff" * 64, Reason.PAYLOAD_CORRUPT),
        (pack_calibration(pixels())[:-1], Reason.PAYLOAD_CORRUPT),
        (save({"images": pixels()}), Reason.PAYLOAD_CORRUPT),
        (save({"pixels": pixels(), "labels": np.zeros(10)}), Reason.PAYLOAD_CORRUPT),
        (save({}), Reason.PAYLOAD_CORRUPT),
        (save({"pixels": pixels().astype(np.float32)}), Reason.TENSOR_DTYPE_MISMATCH),
        (save({"pixels": pixels(10, 3)}), Reason.TENSOR_SHAPE_MISMATCH),
        (save({"pixels": pixels()[:, :, :, 0]}), Reason.TENSOR_SHAPE_MISMATCH),
        (save({"pixels": np.array(1, dtype=np.uint8)}), Reason.CALIBRATION_INSUFFICIENT),
        (save({"pixels": pixels()[:0]}), Reason.CALIBRATION_INSUFFICIENT),
    ],
)
def test_a_file_that_is_not_what_the_model_takes_is_refused(data: bytes, reason: Reason) -> None:
    with pytest.raises(MeshError) as caught:
        unpack_calibration(data, manifest())
    assert caught.value.reason is reason


def test_values_that_are_not_finite_are_refused() -> None:
    given = np.zeros((2, 4), dtype=np.float32)
    given[1, 2] = np.nan
    with pytest.raises(MeshError) as caught:
        unpack_calibration(save({"a": given}), manifest(None, TensorInfo(name="a", dtype="float32", shape=(-1, 4))))
    assert caught.value.reason is Reason.TENSOR_NOT_FINITE


def test_fewer_samples_than_the_fixed_batch_are_refused() -> None:
    fixed = TensorInfo(name="x", dtype="float32", shape=(16, 1, 6, 8))
    with pytest.raises(MeshError, match="fixed batch of 16") as caught:
        unpack_calibration(pack_calibration(pixels()), manifest(GREY, fixed))
    assert caught.value.reason is Reason.CALIBRATION_INSUFFICIENT


def test_a_file_above_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack_calibration(pixels())
    monkeypatch.setattr(module, "MAX_CALIBRATION_BYTES", 100)
    with pytest.raises(MeshError, match="at most 100"):
        unpack_calibration(data, manifest())
