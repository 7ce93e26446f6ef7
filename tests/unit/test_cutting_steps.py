"""The steps split and int8-cut on versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitmesh.compress.cutting import apply_quantise, apply_split
from splitmesh.compress.recipe import QuantiseCut, Split
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.artifacts import split_bytes
from splitmesh.model.manifest import HEAD, TABLES, TAIL, WHOLE, CutLeakage
from tests.unit.compress_works import balanced, context_of, whole_work
from tests.unit.onnx_nets import quantised, residual

LEAKAGE = CutLeakage(
    cut=("a",), codec="float32", ssim=0.5, psnr_db=20, baseline_ssim=0.1, samples=1, fit_samples=1, steps=10
)


@pytest.fixture
def whole() -> Work:
    return whole_work(balanced(residual()))


@pytest.fixture
def context(whole: Work, tmp_path: Path) -> Context:
    return context_of(whole, tmp_path)


def test_a_split_is_exact_and_keeps_what_the_version_says(whole: Work, context: Context) -> None:
    told = Work(whole.manifest.model_copy(update={"leakage": (LEAKAGE,)}), whole.artifacts)
    made = apply_split(told, Split(at=("a",)), context)
    split = made.manifest.split
    assert split is not None
    assert split.verification.max_abs_error <= 1e-4
    assert made.manifest.labels == whole.manifest.labels
    assert made.manifest.leakage == (LEAKAGE,)
    assert set(made.artifacts) == {WHOLE, HEAD, TAIL}
    assert made.whole() == whole.whole()


def test_a_version_is_not_split_twice(whole: Work, context: Context) -> None:
    made = apply_split(whole, Split(at=("a",)), context)
    with pytest.raises(MeshError) as caught:
        apply_split(made, Split(at=("b",)), context)
    assert caught.value.reason == Reason.CUT_INVALID


def test_a_rounded_cut_is_coded_and_close(whole: Work, context: Context) -> None:
    made = apply_quantise(apply_split(whole, Split(at=("a",)), context), QuantiseCut(), context)
    split = made.manifest.split
    assert split is not None
    assert split.coding is not None
    assert TABLES in made.artifacts
    assert [info.dtype for info in split.wire] == ["uint8"]
    assert split.verification.tolerance is None
    assert 0 < split.verification.max_abs_error < 0.1


def test_a_chain_is_rounded_and_left_to_zstd(whole: Work, context: Context) -> None:
    manifest, artifacts = split_bytes(whole.whole(), ["a"], labels=whole.manifest.labels, further=[["b"]])
    made = apply_quantise(Work(manifest, artifacts), QuantiseCut(), context)
    assert made.manifest.split is not None
    assert [len(hop.quantisation) for hop in made.manifest.split.hops()] == [1, 1]
    assert made.manifest.split.coding is None
    assert any("zstd" in remark for remark in context.remarks)


def test_what_cannot_be_rounded_is_refused(whole: Work, context: Context, tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        apply_quantise(whole, QuantiseCut(), context)
    assert caught.value.reason == Reason.MODEL_INCOMPLETE
    done = apply_quantise(apply_split(whole, Split(at=("a",)), context), QuantiseCut(), context)
    with pytest.raises(MeshError) as caught:
        apply_quantise(done, QuantiseCut(), context)
    assert caught.value.reason == Reason.MODEL_INCOMPLETE
    integers = whole_work(quantised(), classes=3)
    held = context_of(integers, tmp_path)
    with pytest.raises(MeshError) as caught:
        apply_quantise(apply_split(integers, Split(at=("q",)), held), QuantiseCut(), held)
    assert caught.value.reason == Reason.CUT_INVALID
