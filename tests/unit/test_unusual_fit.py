"""Learning what is usual: the covariance against its textbook form, the false alarms against their share, what is found."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.division import divided
from splitmesh.routing.projection_fit import standardisation
from splitmesh.routing.unusual import MAX_DIRECTIONS, Unusual
from splitmesh.routing.unusual_fit import LEAST_SHRINKAGE, fit_unusual, shrinkage

Floats = np.ndarray


def correlated(n: int, width: int, seed: int, rank: int = 3, noise: float = 0.3) -> Floats:
    """Features that a few hidden causes move, each on a scale and with a mean of its own."""
    shape = np.random.default_rng(99)
    causes, scales = shape.normal(size=(rank, width)), shape.uniform(0.1, 50.0, width)
    random = np.random.default_rng(seed)
    moved = random.normal(size=(n, rank)) @ causes + noise * random.normal(size=(n, width))
    return moved * scales + 3 * scales


def textbook_shrinkage(rows: Floats) -> float:
    """Ledoit and Wolf (2004), lemmas 3.2 to 3.5, one sample at a time."""
    n, width = rows.shape
    covariance = rows.T @ rows / n
    target = np.trace(covariance) / width * np.eye(width)
    d2 = ((covariance - target) ** 2).sum() / width
    b2 = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in rows) / n**2 / width
    return float(min(b2, d2) / d2)


def textbook_distance(fit: Floats, rows: Floats, keep: int | None = None) -> Floats:
    """By the inverse of the shrunk covariance; ``keep``: the variances behind the largest so many are their mean."""
    mean, scale, _ = standardisation(fit)
    fit, rows = (fit - mean) / scale, (rows - mean) / scale
    width = fit.shape[1]
    covariance = fit.T @ fit / len(fit)
    towards = textbook_shrinkage(fit)
    shrunk = (1 - towards) * covariance + towards * np.trace(covariance) / width * np.eye(width)
    if keep is not None:
        variances, vectors = np.linalg.eigh(shrunk)
        variances[:-keep] = variances[:-keep].mean()
        shrunk = vectors * variances @ vectors.T
    return np.sqrt((rows @ np.linalg.inv(shrunk) * rows).sum(axis=1))


@pytest.mark.parametrize(
    ("n", "width", "keep"), [(400, 5, None), (60, 50, None), (60, 200, None), (600, 160, MAX_DIRECTIONS)]
)
def test_the_distance_is_that_of_the_textbook_with_more_and_with_fewer_samples_than_features(
    n: int, width: int, keep: int | None
) -> None:
    rows, fresh = correlated(n, width, seed=1), correlated(20, width, seed=2)
    fitted = fit_unusual(rows, seed=4)
    fit = rows[divided(n, [0.5, 0.5], seed=4) == 0]
    np.testing.assert_allclose(fitted.distance(fresh), textbook_distance(fit, fresh, keep), rtol=1e-4)
    assert fitted.fit_samples == len(fit)


@pytest.mark.parametrize(("n", "width"), [(100, 4), (30, 60)])
def test_the_shrinkage_is_that_of_ledoit_and_wolf(n: int, width: int) -> None:
    rows = correlated(n, width, seed=5)
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    assert shrinkage(rows) == pytest.approx(textbook_shrinkage(rows), rel=1e-9)


def test_noise_is_shrunk_away_and_structure_that_many_samples_show_is_kept() -> None:
    assert shrinkage(np.random.default_rng(6).normal(size=(50, 100))) > 0.9
    structured = correlated(5000, 10, seed=7)
    assert shrinkage((structured - structured.mean(axis=0)) / structured.std(axis=0)) < 0.01
    assert shrinkage(np.array([[1.0], [-1.0]])) == 1.0
    assert shrinkage(np.array([[1.0, 2.0], [-1.0, -2.0]])) == LEAST_SHRINKAGE


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_usual_samples_are_beyond_the_limit_at_most_as_often_as_stated_whatever_their_shape(share: float) -> None:
    alarms = []
    for draw in range(40):
        random = np.random.default_rng(draw)
        rows = np.exp(random.normal(size=(800, 6))) + random.exponential(size=(800, 1))
        fitted = fit_unusual(rows[:400], share=share, seed=draw)
        assert fitted.held_samples == 200
        alarms.append(fitted.strange(rows[400:]).mean())
    assert share / 2 < np.mean(alarms) < share + 3 * math.sqrt(share / 200 / 40)


def test_the_limit_is_the_quantile_of_the_held_out_distances_and_needs_enough_of_them() -> None:
    rows = correlated(400, 3, seed=8)
    for n, share, rank in ((198, 0.01, 99), (400, 0.01, 199), (398, 0.05, 190)):
        fitted = fit_unusual(rows[:n], share=share)
        held = rows[:n][divided(n, [0.5, 0.5], seed=0) == 1]
        assert fitted.limit == np.sort(fitted.distance(held))[rank - 1]
        assert fitted.why == ""
    few = fit_unusual(rows[:196], share=0.01)
    assert few.limit == math.inf
    assert "98 held-out samples are too few" in few.why
    assert not few.strange(rows * 1e6).any()


@pytest.mark.parametrize("width", [10, 300])
def test_a_shift_is_found_although_each_feature_alone_looks_usual(width: int) -> None:
    fitted = fit_unusual(correlated(600, width, seed=9), share=0.02)
    fresh = correlated(500, width, seed=10)
    assert fitted.strange(fresh).mean() < 0.04
    shuffled = np.random.default_rng(11).permuted(fresh, axis=0)
    assert fitted.strange(shuffled).mean() > 0.95


def test_off_the_line_is_strange_where_all_samples_lie_on_one() -> None:
    along = np.random.default_rng(12).normal(size=(400, 1))
    fitted = fit_unusual(along * [1.0, 2.0, -3.0], share=0.02)
    assert fitted.strange(np.array([[1.0, 2.0, -3.0], [1.0, 4.0, -3.0]])).tolist() == [False, True]


def test_a_channel_that_never_was_active_is_strange_when_it_wakes_up_but_not_when_it_rounds() -> None:
    random = np.random.default_rng(13)
    rows = np.hstack([random.normal(size=(400, 4)), np.zeros((400, 1))])
    fitted = fit_unusual(rows, share=0.02)
    typical = np.zeros((2, 5))
    typical[:, 4] = [1e-6, 10.0]
    assert fitted.strange(typical).tolist() == [False, True]


def test_sixteen_hundred_features_of_few_samples_make_a_small_file_and_a_quick_distance() -> None:
    fitted = fit_unusual(correlated(300, 1600, seed=14, rank=20).astype(np.float32), share=0.02)
    assert fitted.projection.count == MAX_DIRECTIONS
    written = fitted.to_bytes()
    assert len(written) < 1024 * 1024
    fresh = correlated(200, 1600, seed=15, rank=20).astype(np.float32)
    np.testing.assert_array_equal(Unusual.from_bytes(written).distance(fresh), fitted.distance(fresh))
    assert fitted.strange(fresh).mean() < 0.08
    taken = []
    for row in range(50):
        start = time.perf_counter()
        fitted.distance(fresh[row : row + 1])
        taken.append(time.perf_counter() - start)
    assert min(taken) < 1e-3


def test_the_same_seed_gives_the_same_bytes_and_another_divides_otherwise() -> None:
    rows = correlated(100, 8, seed=16)
    assert fit_unusual(rows, seed=1).to_bytes() == fit_unusual(rows, seed=1).to_bytes()
    assert fit_unusual(rows, seed=1).to_bytes() != fit_unusual(rows, seed=2).to_bytes()


def test_units_stay_whole_so_that_the_limit_is_one_for_units_never_seen() -> None:
    random = np.random.default_rng(17)
    unit = np.repeat(np.arange(80), 10)
    rows = random.normal(size=(80, 40))[unit] + random.normal(size=(800, 40)) * 0.02
    fresh = random.normal(size=(300, 40))
    assert fit_unusual(rows, share=0.05).strange(fresh).mean() > 0.3
    assert fit_unusual(rows, share=0.05, groups=unit).strange(fresh).mean() < 0.15


@pytest.mark.parametrize(
    ("rows", "options", "reason", "message"),
    [
        (correlated(19, 3, seed=18), {}, Reason.CALIBRATION_INSUFFICIENT, "too few.*at least 10"),
        (np.zeros((0, 3)), {}, Reason.CALIBRATION_INSUFFICIENT, "0 samples"),
        (np.full((100, 3), 7.0), {}, Reason.CALIBRATION_INSUFFICIENT, "same features"),
        (np.full((100, 3), np.nan), {}, Reason.TENSOR_NOT_FINITE, "NaN"),
        (np.full((100, 3), 1e200), {}, Reason.FIELD_INVALID, "float32"),
        (np.zeros((100, 0)), {}, Reason.FIELD_INVALID, "0 numbers"),
        (np.zeros((100, 5000)), {}, Reason.FIELD_INVALID, "5000 numbers"),
        (np.zeros(100), {}, Reason.TENSOR_SHAPE_MISMATCH, "samples, features"),
        (np.zeros((100, 3), dtype=bool), {}, Reason.TENSOR_DTYPE_MISMATCH, "bool"),
        (correlated(100, 3, seed=19), {"share": 0.0}, Reason.FIELD_INVALID, "share"),
        (correlated(100, 3, seed=19), {"share": math.nan}, Reason.FIELD_INVALID, "share"),
        (correlated(100, 3, seed=19), {"holdout": 1.0}, Reason.FIELD_INVALID, "holdout"),
        (correlated(100, 3, seed=19), {"groups": np.zeros(9)}, Reason.FIELD_INVALID, "groups"),
    ],
)
def test_unusable_arguments_are_refused_with_what_was_found(
    rows: Floats, options: dict[str, float], reason: Reason, message: str
) -> None:
    with pytest.raises(MeshError, match=message) as error:
        fit_unusual(rows, **options)
    assert error.value.reason is reason
