"""The step bottleneck on small nets: pictures, tokens, flat features, chosen cuts, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from splitmesh.compress import bottleneck
from splitmesh.compress.cutting import apply_quantise, apply_split
from splitmesh.compress.recipe import Bottleneck, QuantiseCut, Split
from splitmesh.compress.work import Context, Work
from splitmesh.errors import MeshError, Reason
from splitmesh.model.manifest import HEAD, TABLES, TAIL, WHOLE, CutLeakage, ExitInfo
from splitmesh.model.verify import run_chain
from splitmesh.runtime import open_session
from splitmesh.tensor.entropy import Tables
from tests.unit.compress_works import balanced, context_of, whole_work
from tests.unit.onnx_nets import model, node, quantised, residual, two_branches, value, weight


def _tokens() -> onnx.ModelProto:
    """Tokens through two products: ``[N, 6, 10]``, mean, 5 classes."""
    nodes = [
        node("MatMul", "x w0", "m"),
        node("Tanh", "m", "t"),
        node("MatMul", "t w1", "u"),
        node("ReduceMean", "u", "pooled", axes=[1], keepdims=0),
        node("MatMul", "pooled w2", "logits"),
    ]
    weights = [weight("w0", 10, 10), weight("w1", 10, 12), weight("w2", 12, 5)]
    return model(nodes, [value("x", ["N", 6, 10])], [value("logits", ["N", 5])], weights)


@pytest.fixture
def whole() -> Work:
    return whole_work(balanced(residual()))


@pytest.fixture
def context(whole: Work, tmp_path: Path) -> Context:
    return context_of(whole, tmp_path)


def test_a_bottleneck_is_much_smaller_than_the_rounded_cut_and_agrees(whole: Work, context: Context) -> None:
    made = bottleneck.apply(whole, Bottleneck(at=("a",)), context)
    plain = apply_quantise(apply_split(whole, Split(at=("a",)), context), QuantiseCut(), context)
    split, other = made.manifest.split, plain.manifest.split
    assert split is not None
    assert split.coding is not None
    assert split.bottleneck is not None
    assert other is not None
    assert other.coding is not None
    assert split.bottleneck.tensor == "a" == split.cut[0].name
    assert split.bottleneck.channels == split.wire[0].shape[1]
    assert split.wire[0].name == "a.code.q8" == split.quantisation[0].wire_tensor
    assert split.coding.rates[0].wire_bytes < 0.5 * other.coding.rates[0].wire_bytes
    assert split.coding.rates[0].agreement is not None
    assert split.coding.rates[0].agreement >= 0.85  # an untrained net on 48 samples: its margins are thin
    assert set(made.artifacts) == {WHOLE, HEAD, TAIL, TABLES}
    assert Tables.from_bytes(made.artifacts[TABLES]).rates[0][0] <= split.bottleneck.channels
    assert split.verification.tolerance is None


def test_the_segments_run_on_any_batch(whole: Work, context: Context) -> None:
    made = bottleneck.apply(whole, Bottleneck(at=("b",)), context)
    sessions = [open_session(content) for content in made.segments()]
    x = np.random.default_rng(0).normal(0, 1, (5, 3, 8, 8)).astype(np.float32)
    together = run_chain(sessions, {"x": x})["logits"].astype(float)
    alone = np.concatenate([run_chain(sessions, {"x": x[row : row + 1]})["logits"].astype(float) for row in range(5)])
    np.testing.assert_allclose(together, alone, atol=0.05)


@pytest.mark.parametrize("tensor", ["t", "pooled"])
def test_tokens_and_flat_features_take_one_too(tensor: str, tmp_path: Path) -> None:
    whole = whole_work(_tokens())
    made = bottleneck.apply(whole, Bottleneck(at=(tensor,), channels=4), context_of(whole, tmp_path))
    assert made.manifest.split is not None
    assert made.manifest.split.bottleneck is not None
    assert made.manifest.split.wire[0].shape == ((-1, 6, 4) if tensor == "t" else (-1, 4))
    assert made.manifest.split.bottleneck.channels == 4


def test_a_model_without_classes_takes_one_too(tmp_path: Path) -> None:
    whole = whole_work(residual(), classes=0)
    made = bottleneck.apply(whole, Bottleneck(at=("a",)), context_of(whole, tmp_path))
    assert made.manifest.split is not None
    assert made.manifest.split.coding is not None
    error = made.manifest.split.coding.rates[0].output_error
    assert error is not None
    assert 0 < error < 0.5


def test_without_a_cut_named_the_best_of_those_offered_is_taken_and_said(whole: Work, context: Context) -> None:
    made = bottleneck.apply(whole, Bottleneck(), context)
    assert made.manifest.split is not None
    name = made.manifest.split.cut[0].name
    assert len(made.manifest.split.cut[0].shape) == 4
    assert any(repr(name) in remark and "cuts tried" in remark for remark in context.remarks)


def test_the_versions_own_cut_is_kept(whole: Work, context: Context) -> None:
    made = bottleneck.apply(apply_split(whole, Split(at=("b",)), context), Bottleneck(), context)
    assert made.manifest.split is not None
    assert made.manifest.split.cut[0].name == "b"


def test_a_version_that_was_coded_is_cut_again_from_its_whole(whole: Work, context: Context) -> None:
    coded = apply_quantise(apply_split(whole, Split(at=("a",)), context), QuantiseCut(), context)
    told = Work(
        coded.manifest.model_copy(update={"leakage": tuple(_leakage(codec) for codec in ("float32", "bottleneck"))}),
        coded.artifacts,
    )
    made = bottleneck.apply(told, Bottleneck(at=("b",)), context)
    fresh = bottleneck.apply(whole, Bottleneck(at=("b",)), context)
    assert made.artifacts[HEAD] == fresh.artifacts[HEAD]
    assert made.artifacts[TAIL] == fresh.artifacts[TAIL]
    assert [entry.codec for entry in made.manifest.leakage] == ["float32"]


def _leakage(codec: str) -> CutLeakage:
    return CutLeakage.model_validate(
        {
            "cut": ("a",),
            "codec": codec,
            "ssim": 0.5,
            "psnr_db": 20,
            "baseline_ssim": 0.1,
            "samples": 1,
            "fit_samples": 1,
            "steps": 10,
        }
    )


def test_a_cut_of_several_tensors_is_refused_and_single_ones_are_named(tmp_path: Path) -> None:
    whole = whole_work(two_branches(), classes=3)
    context = context_of(whole, tmp_path)
    cut = apply_split(whole, Split(at=("l1", "r1")), context)
    with pytest.raises(MeshError) as caught:
        bottleneck.apply(cut, Bottleneck(), context)
    assert caught.value.reason == Reason.CUT_INVALID
    assert "'stem'" in caught.value.message


def test_what_cannot_have_one_is_refused_with_a_reason(whole: Work, context: Context, tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        bottleneck.apply(whole, Bottleneck(at=("c1",)), context)
    assert caught.value.reason == Reason.CUT_INVALID
    integers = whole_work(quantised(), classes=3)
    with pytest.raises(MeshError) as caught:
        bottleneck.apply(integers, Bottleneck(at=("q",)), context_of(integers, tmp_path))
    assert caught.value.reason == Reason.CUT_INVALID
    assert "floating-point" in caught.value.message


def test_a_version_with_an_exit_is_refused(whole: Work, context: Context) -> None:
    cut = apply_split(whole, Split(at=("a",)), context)
    entry = ExitInfo(output="e", temperature=1, fit_samples=1, holdout_samples=0, holdout_agreement=0)
    with pytest.raises(MeshError) as caught:
        bottleneck.apply(Work(cut.manifest.model_copy(update={"exit": entry}), cut.artifacts), Bottleneck(), context)
    assert caught.value.reason == Reason.MODEL_INCOMPLETE


def test_a_trained_one_without_torch_says_what_to_install(
    whole: Work, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(bottleneck, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(MeshError) as caught:
        bottleneck.apply(whole, Bottleneck(method="trained", at=("a",)), context)
    assert caught.value.reason == Reason.EXTRA_MISSING
    assert "splitmesh[train]" in caught.value.message


def test_the_same_samples_give_the_same_files(whole: Work, context: Context) -> None:
    first, second = (bottleneck.apply(whole, Bottleneck(at=("a",)), context) for _ in range(2))
    assert first.artifacts == second.artifacts
