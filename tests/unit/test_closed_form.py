"""The closed-form code: planted subspaces, order, agreement with plain numpy, batches, and what the answer reacts to."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from splitmesh.compress.closed_form import (
    Floats,
    Layout,
    Moments,
    Principal,
    choose_basis,
    choose_scale,
    coarse,
    decode,
    fit_decoder,
    layouts,
    rounded,
)
from splitmesh.compress.reaction import measure_reaction
from splitmesh.errors import MeshError, Reason
from splitmesh.runtime import open_session
from splitmesh.tensor.spec import Array

CHANNELS = 12


def _planted(rank: int, *, n: int = 40, shape: tuple[int, ...] = (4, 4), spread: float = 3.0) -> Floats:
    """``[n, CHANNELS, *shape]`` in a subspace of so many directions, about a mean that is not 0."""
    random = np.random.default_rng(1)
    directions = np.linalg.qr(random.normal(size=(CHANNELS, rank)))[0] * (spread / np.arange(1, rank + 1))
    codes = random.normal(size=(n, *shape, rank))
    return np.moveaxis(codes @ directions.T + random.normal(size=CHANNELS), -1, 1)


def _principal(features: Array, layout: Layout, *, most: int = 64, size: int = 7) -> Principal:
    moments = Moments(layout)
    for start in range(0, len(features), size):
        moments.add(features[start : start + size])
    return moments.principal(most)


def _error(features: Floats, layout: Layout, channels: int, *, step: int = 1) -> float:
    basis = choose_basis(_principal(features, layout), None, channels)
    scale = choose_scale(basis, [features])
    decoder = fit_decoder(basis, scale, [features], (step,))
    codes = coarse(rounded(basis.codes(features), scale), step) * scale
    return float(np.sqrt(np.mean((decode(decoder, layout, codes) - features) ** 2)))


@pytest.mark.parametrize("block", [1, 2])
def test_a_planted_subspace_is_found_exactly(block: int) -> None:
    features = _planted(3)
    layout = Layout(4, CHANNELS, block)
    principal = _principal(features, layout)
    assert len(principal.variance) == 3 * block**2
    basis = choose_basis(principal, None, 64)
    assert basis.channels == 3 * block**2
    residue = layout.blocks(features) - principal.mean
    residue -= residue @ principal.directions @ principal.directions.T
    assert np.abs(residue).max() < 1e-9
    assert _error(features, layout, 64) < 0.02


def test_the_components_are_those_of_numpy_on_all_features_at_once() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(30, 5, 4, 4)) * np.arange(1, 6)[:, None, None] + 100
    principal = _principal(features, Layout(4, 5, 1), size=4)
    rows = np.moveaxis(features, 1, -1).reshape(-1, 5)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    np.testing.assert_allclose(principal.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(principal.variance, values[::-1], rtol=1e-9)
    np.testing.assert_allclose(np.abs((principal.directions * vectors[:, ::-1]).sum(axis=0)), 1, rtol=1e-9)


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_the_size_of_the_batches_changes_nothing(rank: int) -> None:
    random = np.random.default_rng(0)
    shape = {2: (CHANNELS,), 3: (5, CHANNELS), 4: (CHANNELS, 4, 4)}[rank]
    features = random.normal(size=(50, *shape))
    first, second = (_principal(features, Layout(rank, CHANNELS, 1), size=size) for size in (1, 50))
    np.testing.assert_allclose(first.variance, second.variance, rtol=1e-9)
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-12)


def test_moments_hold_no_features() -> None:
    import tracemalloc

    layout = Layout(4, 8, 1)
    moments = Moments(layout)
    batch = np.random.default_rng(0).normal(size=(4, 8, 64, 64)).astype(np.float32)
    moments.add(batch)
    tracemalloc.start()
    for _ in range(40):
        moments.add(batch)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < batch.nbytes / 10


def test_more_channels_are_never_worse_and_the_first_are_the_best() -> None:
    features = _planted(8) + np.random.default_rng(2).normal(0, 0.05, (40, CHANNELS, 4, 4))
    layout = Layout(4, CHANNELS, 1)
    errors = [_error(features, layout, channels) for channels in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    basis = choose_basis(_principal(features, layout), None, 8)
    variance = basis.codes(features).reshape(-1, 8).var(axis=0)
    assert (np.diff(variance) < 0).all()
    np.testing.assert_array_equal(basis.first(3).encoder, basis.encoder[:, :3])


def test_a_decoder_fitted_behind_rounding_beats_the_projection_back() -> None:
    random = np.random.default_rng(0)
    waves = np.sin(np.arange(8)[:, None] * random.uniform(0.2, 0.6, (60, CHANNELS, 1, 1)) + np.arange(8) * 0.3)
    smooth = waves * random.normal(size=(60, CHANNELS, 1, 1)) * np.linspace(3, 1, CHANNELS)[:, None, None]
    layout = Layout(4, CHANNELS, 2)
    basis = choose_basis(_principal(smooth, layout), None, 6)
    scale = choose_scale(basis, [smooth])
    codes = coarse(rounded(basis.codes(smooth), scale), 8) * scale
    projected = layout.features(codes @ basis.encoder.T + basis.mean)
    fitted = decode(fit_decoder(basis, scale, [smooth], (8,)), layout, codes)
    assert np.mean((fitted - smooth) ** 2) < 0.8 * np.mean((projected - smooth) ** 2)


def test_blocks_come_back_as_they_were() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 8, 4))
    for block in (1, 2, 4):
        layout = Layout(4, 3, block)
        blocks = layout.blocks(features)
        assert blocks.shape == (2, 8 // block, 4 // block, 3 * block**2)
        np.testing.assert_array_equal(layout.features(blocks), features)


def test_blocks_are_as_large_as_the_samples_allow() -> None:
    def sides(shape: tuple[int, ...], samples: int) -> list[int]:
        return [layout.block for layout in layouts(shape, samples)]

    assert sides((-1, 16, 32, 32), 200) == [4, 2, 1]
    assert sides((-1, 16, 32, 32), 2) == [2, 1]
    assert sides((-1, 16, 30, 30), 200) == [2, 1]
    assert sides((-1, 16, 7, 7), 200) == [1]
    assert sides((-1, 512, 16, 16), 10_000) == [1]
    assert sides((-1, 16, -1, -1), 200) == [1]
    assert sides((-1, 17, 64), 200) == [1]


@pytest.mark.parametrize("shape", [(-1,), (-1, 2, 3, 4, 5), (-1, -1, 8, 8), (-1, 100_000)])
def test_shapes_without_a_code_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MeshError) as caught:
        layouts(shape, 100)
    assert caught.value.reason == Reason.CUT_INVALID


def test_features_that_never_vary_or_are_not_finite_are_too_little() -> None:
    for features in (np.ones((5, 3, 4, 4)), np.full((5, 3, 4, 4), np.nan)):
        with pytest.raises(MeshError) as caught:
            _principal(features, Layout(4, 3, 1))
        assert caught.value.reason == Reason.CALIBRATION_INSUFFICIENT


def _linear_tail(weights: Array) -> ModelProto:
    """Class scores from the mean over places: ``[n, C, 4, 4]`` to ``[n, classes]``."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["t"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", CHANNELS, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[1]]),
    ]
    graph = helper.make_graph(
        nodes, "tail", ends[:1], ends[1:], [numpy_helper.from_array(weights.astype(np.float32), "w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("class_output", ["y", ""])
def test_a_weak_direction_that_decides_the_answer_comes_first(class_output: str) -> None:
    features = np.random.default_rng(0).normal(size=(64, CHANNELS, 4, 4)) * np.linspace(3, 0.3, CHANNELS)[:, None, None]
    weights = np.zeros((CHANNELS, 2))
    weights[CHANNELS - 1] = [20.0, -20.0]  # only the channel with the least variance counts
    layout = Layout(4, CHANNELS, 1)
    principal = _principal(features, layout)
    with_tail = measure_reaction(
        principal,
        [features[row : row + 1].astype(np.float32) for row in range(16)],
        open_session(_linear_tail(weights).SerializeToString()),
        "t",
        class_output=class_output,
        runs=1024,
        batch=16,
        seed=0,
    )
    np.testing.assert_allclose(with_tail, with_tail.T)
    assert np.linalg.eigvalsh(with_tail).min() > -1e-6
    first = choose_basis(principal, with_tail, 1).encoder[:, 0]
    assert np.abs(first).argmax() == CHANNELS - 1
    assert np.abs(choose_basis(principal, None, 1).encoder[:, 0]).argmax() == 0


def test_the_reaction_is_the_product_of_the_derivatives() -> None:
    random = np.random.default_rng(4)
    features = random.normal(size=(32, CHANNELS, 4, 4)) * np.linspace(2, 1, CHANNELS)[:, None, None]
    weights = random.normal(size=(CHANNELS, 2))
    principal = _principal(features, Layout(4, CHANNELS, 1))
    found = measure_reaction(
        principal,
        [features[row : row + 1].astype(np.float32) for row in range(32)],
        open_session(_linear_tail(weights).SerializeToString()),
        "t",
        class_output="y",
        runs=8192,
        batch=32,
        seed=0,
    )
    gradient = principal.directions.T @ (weights[:, 0] - weights[:, 1])
    expected = np.outer(gradient, gradient)
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.95
