"""Fitting the deferral score: on worlds whose best answer is known, and on too little or unusable data."""

from __future__ import annotations

import numpy as np
import pytest

from splitmesh.errors import MeshError, Reason
from splitmesh.routing.deferral import MAX_DIRECTIONS, Deferral
from splitmesh.routing.deferral_fit import MIN_SAMPLES, fit_deferral
from splitmesh.routing.scores import ease

Floats = np.ndarray


def rows_with_top(top: Floats, random: np.random.Generator, classes: int = 4) -> Floats:
    """Distributions whose largest probability, of at least 1/2, is given; the rest falls as it likes."""
    others = random.dirichlet(np.ones(classes - 1), size=len(top)) * (1 - top)[:, None]
    return random.permuted(np.column_stack([top, others]), axis=1)


def auc(score: Floats, positive: Floats) -> float:
    """P(a positive sample scores above a negative one), ties count half."""
    above = score[positive][:, None] - score[~positive][None, :]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


def blind_world(n: int, seed: int) -> tuple[Floats, Floats, Floats, Floats]:
    """An exit that is as sure as ever, and mostly wrong, where feature 0 is large; the tail is right wherever it is not also
    blind, where feature 1 is large."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n, 6)).astype(np.float32)
    exit_blind, both_blind = features[:, 0] > 1, features[:, 1] > 1
    exit_right = random.random(n) < np.where(exit_blind | both_blind, 0.2, 0.95)
    tail_right = random.random(n) < np.where(both_blind, 0.2, 0.95)
    return rows_with_top(random.uniform(0.5, 1.0, n), random), features, exit_right, tail_right


def test_samples_of_a_region_where_the_exit_fails_rank_first_although_it_is_as_sure_there() -> None:
    def one_region(n: int, seed: int) -> tuple[Floats, Floats, Floats]:
        rows, features, exit_right, _ = blind_world(n, seed)
        kept = features[:, 1] <= 1
        return rows[kept], features[kept], exit_right[kept]

    rows, features, exit_right = one_region(600, seed=1)
    fitted = fit_deferral(rows, exit_right=exit_right, tail_right=None, features=features)
    rows, features, exit_right = one_region(3000, seed=2)
    best = auc((features[:, 0] > 1).astype(float), ~exit_right)
    assert best > 0.8
    assert auc(fitted.worth(rows, features), ~exit_right) > best - 0.05
    assert abs(auc(-ease("max_probability", rows), ~exit_right) - 0.5) < 0.05


def test_where_the_tail_fails_too_nothing_is_gained_by_asking_it() -> None:
    rows, features, exit_right, tail_right = blind_world(1200, seed=3)
    fitted = fit_deferral(rows, exit_right=exit_right, tail_right=tail_right, features=features)
    rows, features, exit_right, tail_right = blind_world(2000, seed=4)
    worth = fitted.worth(rows, features)
    exit_only, both = features[:, 0] > 1, features[:, 1] > 1
    assert worth[exit_only & ~both].mean() > 0.3
    assert worth[both & ~exit_only].mean() < 0.15
    asked = np.argsort(-worth)[:300]
    gain = tail_right.astype(float) - exit_right
    least_sure = np.argsort(fitted.exit_right(rows, features))[:300]
    assert gain[asked].mean() > gain[least_sure].mean() + 0.1


def test_probabilities_are_those_of_the_world_they_were_learnt_in() -> None:
    def world(n: int, seed: int) -> tuple[Floats, Floats, Floats]:
        random = np.random.default_rng(seed)
        features = random.normal(size=(n, 3)) * [1.0, 20.0, 0.1] + [0.0, 500.0, 3.0]
        true = sigmoid(1.0 + 2.0 * features[:, 0])
        return rows_with_top(random.uniform(0.5, 1.0, n), random), features, true

    rows, features, true = world(1200, seed=5)
    outcomes = np.random.default_rng(6).random(1200) < true
    fitted = fit_deferral(rows, exit_right=outcomes, tail_right=~outcomes, features=features)
    rows, features, true = world(2000, seed=7)
    found = fitted.exit_right(rows, features)
    assert np.abs(found - true).mean() < 0.04
    for fifth in np.array_split(np.argsort(found), 5):
        assert abs(found[fifth].mean() - true[fifth].mean()) < 0.05
    assert np.abs(fitted.tail_right(rows, features) - (1 - found)).mean() < 0.02


def test_without_features_a_calibrated_exit_is_right_as_often_as_it_says() -> None:
    random = np.random.default_rng(8)
    top = random.uniform(0.5, 1.0, 1500)
    fitted = fit_deferral(rows_with_top(top, random), exit_right=random.random(1500) < top, tail_right=None)
    top = np.linspace(0.55, 0.97, 300)
    found = fitted.exit_right(rows_with_top(top, random))
    assert np.abs(found - top).mean() < 0.05
    assert auc(found, top > 0.75) > 0.95


def test_features_that_say_nothing_do_no_harm() -> None:
    random = np.random.default_rng(9)

    def draw(n: int) -> tuple[Floats, Floats, Floats]:
        top = random.uniform(0.5, 1.0, n)
        return rows_with_top(top, random), random.normal(size=(n, 60)), random.random(n) < top

    rows, noise, right = draw(200)
    plain = fit_deferral(rows, exit_right=right, tail_right=None)
    given = fit_deferral(rows, exit_right=right, tail_right=None, features=noise)
    assert given.projection is None
    assert given.to_bytes() == plain.to_bytes()


def test_units_seen_twenty_times_are_not_learnt_by_heart_when_the_groups_are_named() -> None:
    random = np.random.default_rng(10)
    units, each = 24, 20
    unit = np.repeat(np.arange(units), each)
    features = random.normal(size=(units, 20))[unit] + random.normal(size=(units * each, 20)) * 0.05
    right = (random.permutation(units) < units // 2)[unit]
    rows = rows_with_top(np.full(len(unit), 0.7), random)
    fresh, fresh_rows = random.normal(size=(500, 20)), rows_with_top(np.full(500, 0.7), random)

    def spread(groups: Floats | None) -> float:
        fitted = fit_deferral(rows, exit_right=right, tail_right=None, features=features, groups=groups)
        return float(fitted.exit_right(fresh_rows, fresh).std())

    assert spread(None) > 0.3
    assert spread(np.array([f"unit {number}" for number in unit])) < 0.15


def test_where_all_samples_agree_the_mean_is_that_of_one_more_sample_of_each_kind_and_the_odds_keep_their_order() -> (
    None
):
    rows, features, _, _ = blind_world(98, seed=11)
    always, never = np.ones(98, dtype=bool), np.zeros(98, dtype=bool)
    fitted = fit_deferral(rows, exit_right=never, tail_right=always, features=features)
    assert fitted.exit_right(rows, features).mean() == pytest.approx(0.01)
    np.testing.assert_allclose(fitted.tail_right(rows, features), 0.99)
    top = np.sort(rows, axis=1)
    by_odds = np.argsort(np.log(top[:, -1] / top[:, -2]))
    assert (np.diff(fitted.exit_right(rows, features)[by_odds]) > -1e-9).all()


@pytest.mark.parametrize("errors", [0, 1, 2, 4])
def test_a_handful_of_errors_leaves_the_order_to_the_exits_own_odds(errors: int) -> None:
    for seed in range(5):
        random = np.random.default_rng((errors, seed))
        rows = rows_with_top(random.uniform(0.5, 1.0, 150), random, classes=2)
        right = np.ones(150, dtype=bool)
        right[random.choice(150, errors, replace=False) if errors else []] = False
        fitted = fit_deferral(rows, exit_right=right, tail_right=None, features=random.normal(size=(150, 40)))
        fresh, features = (
            rows_with_top(np.linspace(0.501, 0.999, 200), random, classes=2),
            random.normal(size=(200, 40)),
        )
        assert (np.diff(fitted.worth(fresh, features)) < 0).all()


def test_a_tail_that_is_the_reference_is_always_right() -> None:
    rows, _, exit_right, _ = blind_world(100, seed=12)
    fitted = fit_deferral(rows, exit_right=exit_right, tail_right=None)
    assert (fitted.tail_right(rows) == 1.0).all()
    assert (fitted.worth(rows) == 1.0 - fitted.exit_right(rows)).all()


def test_a_perfectly_separated_exit_is_sure_but_never_certain() -> None:
    random = np.random.default_rng(13)
    right = random.random(100) < 0.5
    rows = rows_with_top(np.where(right, 0.99, 0.51), random)
    found = fit_deferral(rows, exit_right=right, tail_right=None).exit_right(rows)
    assert found[right].min() > 0.9
    assert found[~right].max() < 0.1
    assert 0 < found.min() < found.max() < 1


def test_the_same_seed_gives_the_same_bytes() -> None:
    rows, features, exit_right, tail_right = blind_world(120, seed=14)

    def once() -> bytes:
        return fit_deferral(rows, exit_right=exit_right, tail_right=tail_right, features=features, seed=3).to_bytes()

    assert once() == once()


@pytest.mark.parametrize(("n", "width", "directions"), [(40, 100, 4), (400, 100, MAX_DIRECTIONS), (400, 5, 5)])
def test_directions_are_as_many_as_the_samples_can_carry(n: int, width: int, directions: int) -> None:
    random = np.random.default_rng(15)
    cause = random.normal(size=n)
    features = 3 * cause[:, None] + random.normal(size=(n, width))
    rows = rows_with_top(random.uniform(0.5, 1.0, n), random)
    fitted = fit_deferral(rows, exit_right=cause > 0, tail_right=None, features=features)
    assert fitted.projection is not None
    assert fitted.projection.count == directions


def test_features_that_never_move_are_left_out_and_a_dead_one_among_others_does_nothing() -> None:
    rows, features, exit_right, _ = blind_world(200, seed=16)
    dead = np.full((200, 3), 7.0)
    assert fit_deferral(rows, exit_right=exit_right, tail_right=None, features=dead).projection is None
    with_dead = np.hstack([features, dead])
    fitted: Deferral = fit_deferral(rows, exit_right=exit_right, tail_right=None, features=with_dead)
    woken = with_dead.copy()
    woken[:, -1] = 9.0
    np.testing.assert_allclose(fitted.worth(rows, woken), fitted.worth(rows, with_dead), atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_any_number_of_classes_from_two_on_can_be_fitted(classes: int) -> None:
    random = np.random.default_rng(17)
    rows = random.dirichlet(np.full(classes, 0.3), size=80).astype(np.float32)
    fitted = fit_deferral(rows, exit_right=rows.max(axis=1) > 0.6, tail_right=None)
    assert len(fitted.exit.weights) == min(3, classes) + 2
    assert np.isfinite(fitted.worth(rows)).all()


def test_fewer_samples_than_forty_are_refused_with_both_numbers() -> None:
    rows, _, exit_right, _ = blind_world(MIN_SAMPLES, seed=18)
    fit_deferral(rows, exit_right=exit_right, tail_right=None)
    with pytest.raises(MeshError, match=r"39 samples are too few.*at least 40") as error:
        fit_deferral(rows[1:], exit_right=exit_right[1:], tail_right=None)
    assert error.value.reason is Reason.CALIBRATION_INSUFFICIENT
    assert error.value.metadata == {"samples": "39", "needed": "40"}


def test_samples_of_one_group_are_refused() -> None:
    rows, _, exit_right, _ = blind_world(50, seed=19)
    with pytest.raises(MeshError, match="one group") as error:
        fit_deferral(rows, exit_right=exit_right, tail_right=None, groups=np.zeros(50))
    assert error.value.reason is Reason.CALIBRATION_INSUFFICIENT


@pytest.mark.parametrize(
    ("changed", "reason", "message"),
    [
        ({"rows": np.full((50, 4), 0.3)}, Reason.FIELD_INVALID, "50 of 50 are no distribution"),
        ({"rows": np.ones((50, 1))}, Reason.FIELD_INVALID, "at least 2 classes"),
        ({"rows": np.ones(50)}, Reason.TENSOR_SHAPE_MISMATCH, "samples, classes"),
        ({"exit_right": np.ones(49, dtype=bool)}, Reason.FIELD_INVALID, "exit_right: is bool .49., expected bool .50."),
        ({"exit_right": np.full(50, np.nan)}, Reason.FIELD_INVALID, "exit_right: is float64"),
        ({"tail_right": np.ones((50, 1), dtype=bool)}, Reason.FIELD_INVALID, "tail_right"),
        ({"features": np.full((50, 2), np.nan)}, Reason.TENSOR_NOT_FINITE, "NaN"),
        ({"features": np.full((50, 2), 1e300)}, Reason.FIELD_INVALID, "float32"),
        ({"features": np.zeros((49, 2))}, Reason.TENSOR_SHAPE_MISMATCH, "49 rows of features for 50"),
        ({"features": np.zeros((50, 2, 2))}, Reason.TENSOR_SHAPE_MISMATCH, "samples, features"),
        ({"features": np.zeros((50, 5000))}, Reason.FIELD_INVALID, "5000"),
        ({"features": np.zeros((50, 2), dtype=bool)}, Reason.TENSOR_DTYPE_MISMATCH, "bool"),
        ({"groups": np.zeros(49)}, Reason.FIELD_INVALID, "groups"),
    ],
)
def test_unusable_arguments_are_refused_with_what_was_found(
    changed: dict[str, Floats], reason: Reason, message: str
) -> None:
    rows, features, exit_right, tail_right = blind_world(50, seed=20)
    given = {"rows": rows, "features": features, "exit_right": exit_right, "tail_right": tail_right} | changed
    with pytest.raises(MeshError, match=message) as error:
        fit_deferral(given.pop("rows"), **given)
    assert error.value.reason is reason
